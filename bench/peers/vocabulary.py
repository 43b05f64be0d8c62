"""A byte-level vocabulary of any size, whose tokens are words that no text is made of."""

from __future__ import annotations

from typing import Any

BOS, EOS, PAD, MASK = 0, 1, 2, 3
SPECIAL = ("<s>", "</s>", "<pad>", "<mask>")
FIRST_WORD = 300
"""Below it are special tokens, bytes and the one merged token; from it on every token is a word of its own."""


def byte_characters() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies: printable bytes stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def tokenizer_json(size: int) -> dict[str, Any]:
    """A tokenizer.json with `size` tokens, at least 512."""
    tokens = [*SPECIAL, *byte_characters(), "Ġt"]
    tokens += [f"Ġt{index}" for index in range(len(tokens), size)]
    added = [
        {"id": index, "content": text, "special": True, "normalized": False, "lstrip": False, "rstrip": False,
         "single_word": False}
        for index, text in enumerate(SPECIAL)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [["Ġ", "t"]],
        },
    }


def special_tokens() -> dict[str, str]:
    """The special tokens, as tokenizer_config.json names them."""
    return dict(zip(("bos_token", "eos_token", "pad_token", "mask_token"), SPECIAL, strict=True))
