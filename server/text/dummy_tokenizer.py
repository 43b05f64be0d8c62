"""The tokenizer of a model that has none, as with `load_format = "dummy"`, which needs no file but config.json.

Text is encoded byte by byte, and every id decodes to some text, so that random weights still stream visibly.
"""

from __future__ import annotations

from typing import Any

from engine.config import EngineInfo

TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "assistant:"
)


def dummy_tokenizer(info: EngineInfo, alphabet: list[str]) -> dict[str, Any]:
    """A tokenizer.json with one piece for every id. `alphabet`: the 256 characters of byte-level BPE."""
    control = {*info.banned_token_ids, *info.end_token_ids}
    if info.mask_token_id >= 0:  # some models have no mask
        control.add(info.mask_token_id)
    if info.bos_token_id is not None:
        control.add(info.bos_token_id)
    vocab = {f"<|{token}|>": token for token in sorted(control)}
    free = (token for token in range(info.vocab_size) if token not in control)
    vocab |= dict(zip(alphabet, free, strict=False))
    vocab |= {f"\u0120w{token}": token for token in free}  # U+0120 is a space in byte-level BPE
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": f"<|{token}|>", **flags} for token in sorted(control)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
