"""Small tokenizers of every kind that published models have, built with the `tokenizers` library."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

SPECIAL = ["<pad>", "<s>", "</s>", "<mask>", "<unk>"]
"""Control tokens; their ids are their places."""
TAG = "<note>"
"""An added token that is not a control token."""
WORDS = ["hello", "world", "ok", "na", "ï", "ve", "é", "日", "x", "y", "z", ".", ",", "'", "s", "\ufffd", "1"]


def _vocabulary(pieces: list[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(dict.fromkeys([*SPECIAL, *pieces]))}


def _letters(words: list[str]) -> list[str]:
    return [letter for word in words for letter in word]


def _bytes() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def _finish(tokenizer: RustTokenizer) -> RustTokenizer:
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(TAG, normalized=False)])
    return tokenizer


def _merged(words: list[str], letters: list[str], unk: str | None, **options: Any) -> models.BPE:
    """A BPE model that builds each of `words` from the left."""
    pieces, merges = list(letters), []
    for word in words:
        for end in range(2, len(word) + 1):
            pieces.append(word[:end])
            merges.append((word[: end - 1], word[end - 1]))
    return models.BPE(vocab=_vocabulary(pieces), merges=list(dict.fromkeys(merges)), unk_token=unk, **options)


def byte_level() -> RustTokenizer:
    """GPT-2, Llama 3, Qwen, Mistral's newer ones: bytes written as printable characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = RustTokenizer(_merged(["hello", "\u0120world", "\u0120ok"], alphabet, None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer)


def byte_fallback() -> RustTokenizer:
    """Llama 2, Mistral 7B, Phi 3: a prepended space, and a token for each byte."""
    letters = [*_bytes(), *_letters(WORDS), "▁"]
    model = _merged(["▁hello", "▁world", "ok", "▁ok"], letters, "<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = RustTokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return _finish(tokenizer)


def gemma() -> RustTokenizer:
    """Gemma: like Llama's, with no space in front."""
    letters = [*_bytes(), *_letters(WORDS), "▁"]
    tokenizer = RustTokenizer(_merged(["hello", "▁world"], letters, "<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _finish(tokenizer)


def metaspace_bytes() -> RustTokenizer:
    """Llama 2 converted anew: Metaspace before, byte fallback after."""
    letters = [*_bytes(), *_letters(WORDS), "▁"]
    tokenizer = RustTokenizer(_merged(["▁hello", "▁world"], letters, "<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return _finish(tokenizer)


def unigram() -> RustTokenizer:
    """T5, XLM-R: scores in place of merges, normalized text."""
    pieces = list(dict.fromkeys([*SPECIAL, *_letters(WORDS), "▁", "▁hello", "▁world", "hello", "ok"]))
    scores = [(piece, -float(number + 1) / len(piece)) for number, piece in enumerate(pieces)]
    tokenizer = RustTokenizer(models.Unigram(scores, unk_id=4))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _finish(tokenizer)


def wordpiece() -> RustTokenizer:
    """BERT: lower case, words cut into beginnings and continuations."""
    words = [*WORDS, *(f"##{word}" for word in WORDS), "n't", "do"]
    tokenizer = RustTokenizer(models.WordPiece(vocab=_vocabulary(words), unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return _finish(tokenizer)


def wordlevel() -> RustTokenizer:
    """Whole words and no decoder: the library joins them with spaces."""
    tokenizer = RustTokenizer(models.WordLevel(vocab=_vocabulary(WORDS), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _finish(tokenizer)


def end_of_word() -> RustTokenizer:
    """The first BPE models: the end of a word is marked."""
    words = [*_letters(WORDS), *(f"{letter}</w>" for letter in _letters(WORDS))]
    model = models.BPE(vocab=_vocabulary(words), merges=[], unk_token="<unk>", end_of_word_suffix="</w>")
    tokenizer = RustTokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    return _finish(tokenizer)


def byte_level_sequence() -> RustTokenizer:
    """Byte-level with a step after it, which no published model has, but which the format allows."""
    tokenizer = byte_level()
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("_", " ")])
    return tokenizer


KINDS = {
    make.__name__: make
    for make in (
        byte_level, byte_fallback, gemma, metaspace_bytes, unigram, wordpiece, wordlevel, end_of_word,
        byte_level_sequence,
    )
}  # fmt: skip


def spec_of(tokenizer: RustTokenizer) -> dict[str, Any]:
    """tokenizer.json"""
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    return spec
