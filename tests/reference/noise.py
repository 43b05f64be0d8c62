"""The positional Gumbel noise, written again in Python integers and numpy, sharing no code with the engine."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

WORD = 0xFFFFFFFF
STEP_PLACES = 2**20
"""Places between those of a position at one step and at the next."""


def mix(x: int, inject: int = 0) -> int:
    """A permutation of 32-bit words: two rounds of xor-shift and multiply, `inject` xored in between."""
    x &= WORD
    x = ((x ^ x >> 16) * 0x21F0AAAD) & WORD ^ inject
    x = ((x ^ x >> 15) * 0xD35A2D97) & WORD
    return x ^ x >> 15


def position_keys(seed: int, position: int) -> tuple[int, int]:
    """64 bits that name a place: one seed at one absolute position."""
    low, high = seed & WORD, seed >> 32
    first = mix(mix(mix(low + 0x3C6EF372) ^ high) ^ mix(position + 0x1BD11BDA))
    second = mix(mix(mix(high + 0x2545F491) + low) ^ (position * 0x9E3779B9 + 0x5BF03635) & WORD)
    return first, second


def noise_word(seed: int, position: int, token: int) -> int:
    """The 32 random bits of one token at one place."""
    first, second = position_keys(seed, position)
    return mix(mix(token * 0x9E3779B9 + 1) ^ first, second)


def step_uniform(seed: int, position: int, step: int) -> float:
    """A uniform number in [0, 1) that belongs to one place at one denoising step."""
    first, second = position_keys(seed, position)
    return (mix(mix(step * 0x9E3779B9 + 0x6A09E667) ^ first, second) >> 8) / 2**24


def uniform_token(seed: int, position: int, step: int, vocab_size: int) -> int:
    """A random token of a canvas, that belongs to one place at one step."""
    first, second = position_keys(seed, position + step * STEP_PLACES)
    return mix(mix(0x5BE0CD19) ^ first, second) * vocab_size >> 32


def noise_words(seed: int, position: int, vocab_size: int) -> np.ndarray:
    """`noise_word` of every token: [vocab_size] uint64, each below 2**32."""
    first, second = position_keys(seed, position)
    return _mix_words(_token_words(vocab_size) ^ np.uint64(first), second)


def gumbel(seed: int, position: int, vocab_size: int) -> np.ndarray:
    """[vocab_size] float64: -log(-log(1 - u)) of a uniform u in single precision."""
    words = noise_words(seed, position, vocab_size) & np.uint64(0x7FFFFFFF)
    uniform = (words.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-31)
    uniform = np.minimum(uniform, np.float32(1.0 - 2.0**-24)).astype(np.float64)
    noise: np.ndarray = -np.log(-np.log1p(-uniform))
    return noise


def _mix_words(x: np.ndarray, inject: int = 0) -> np.ndarray:
    word = np.uint64(WORD)
    x = ((x ^ x >> np.uint64(16)) * np.uint64(0x21F0AAAD)) & word ^ np.uint64(inject)
    x = ((x ^ x >> np.uint64(15)) * np.uint64(0xD35A2D97)) & word
    mixed: np.ndarray = x ^ x >> np.uint64(15)
    return mixed


@lru_cache(maxsize=4)
def _token_words(vocab_size: int) -> np.ndarray:
    tokens = np.arange(vocab_size, dtype=np.uint64)
    return _mix_words((tokens * np.uint64(0x9E3779B9) + np.uint64(1)) & np.uint64(WORD))
