"""Gumbel noise as a pure function of (choice seed, absolute position, token id).

Because draft, verification and plain AR add the same noise at the same position, the argmax of `logits / T + noise` is
the same token whichever of them computes it: sampling stays exact under speculation, batching and preemption. The
counter-based integers are 32-bit hashes made of xor, shift and wrapping multiply, so every device computes the same
ones; the floats derived from them agree to 4 ulp across devices (two logarithms).

The mixing function is a two-round xorshift-multiply permutation of 32 bits with constants found by exhaustive bias
search (hash-prospector, C. Wellons, public domain).
"""

from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch

_MULTIPLIER_1 = 0x21F0AAAD
_MULTIPLIER_2 = 0xD35A2D97 - (1 << 32)  # as a signed 32-bit integer
_GOLDEN = 0x9E3779B9 - (1 << 32)
_STEP = 0x6A09E667
_CANVAS = 0x5BE0CD19
STEP_PLACES = 1 << 20
"""Positions that have a place of their own at each step: see `step_places`."""
_MAX_UNIFORM = 1.0 - 2.0**-24
_HOST_BLOCK = 1 << 15
"""Values that the host works on at once: they stay in a second-level cache from one operation to the next."""

_Words = TypeVar("_Words", torch.Tensor, np.ndarray)
"""int32, of either library: both wrap around, and both keep the sign in a right shift."""


def _shift_right(x: _Words, bits: int) -> _Words:
    """Logical right shift of int32."""
    shifted: _Words = (x >> bits) & ((1 << (32 - bits)) - 1)
    return shifted


def _mix(x: _Words, inject: _Words | None = None) -> _Words:
    """Permutes int32 values; `inject` is xored in between the two rounds: with the input it makes a key of 64 bits."""
    x = (x ^ _shift_right(x, 16)) * _MULTIPLIER_1
    if inject is not None:
        x = x ^ inject
    x = (x ^ _shift_right(x, 15)) * _MULTIPLIER_2
    mixed: _Words = x ^ _shift_right(x, 15)
    return mixed


@lru_cache(maxsize=8)
def _token_hashes(vocab_size: int, device: torch.device, first: int = 0) -> torch.Tensor:
    """[vocab_size] int32: one well-mixed word a token id, from `first` on."""
    return _mix(torch.arange(first, first + vocab_size, dtype=torch.int32, device=device) * _GOLDEN + 1)


def _keys(low: _Words, high: _Words, place: _Words) -> tuple[_Words, _Words]:
    """Two words for every (seed, position), the seed in two halves."""
    first = _mix(_mix(_mix(low + 0x3C6EF372) ^ high) ^ _mix(place + 0x1BD11BDA))
    second = _mix(_mix(_mix(high + 0x2545F491) + low) ^ (place * _GOLDEN + 0x5BF03635))
    return first, second


def noise_bits(seeds: torch.Tensor, positions: torch.Tensor, vocab_size: int, first_token: int = 0) -> torch.Tensor:
    """The integers behind the noise, of `vocab_size` token ids from `first_token` on.

    seeds: [n] int64 in [0, 2**53); positions: [n, r] int64. Returns [n, r, vocab_size] int32, uniform over 32 bits.
    """
    low = (seeds & 0xFFFFFFFF).to(torch.int32)[:, None]
    high = (seeds >> 32).to(torch.int32)[:, None]
    first, second = _keys(low, high, positions.to(torch.int32))
    return _mix(_token_hashes(vocab_size, seeds.device, first_token) ^ first[..., None], second[..., None])


def step_uniforms(seed: int, positions: np.ndarray, step: int) -> np.ndarray:
    """One uniform number in [0, 1) for every position at one denoising step, apart from the noise of tokens: float32.

    seed: in [0, 2**53); positions: [r] int64. Multiples of 2**-24, which float32 holds exactly. On the host: the orders
    of unmasking that need them look at no logits.
    """
    low, high = np.array((seed & 0xFFFFFFFF, seed >> 32), dtype=np.int64).astype(np.int32)[:, None]
    first, second = _keys(low, high, positions.astype(np.int32))
    # Another constant than a token's word has: a step is no token.
    word = _mix(np.array([step * _GOLDEN + _STEP & 0xFFFFFFFF], dtype=np.int64).astype(np.int32))
    bits = _mix(word ^ first, second).view(np.uint32)
    uniforms: np.ndarray = (bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    return uniforms


def step_places(positions: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """[n, r] int64: places for noise that belongs to a position at one step. positions: [n, r]; steps: [n], at least 0.

    Where every position is drawn anew in each step, noise of the position alone would draw the same again and again.
    At step 0 a place is the position.
    """
    return positions + steps[:, None] * STEP_PLACES


def uniform_tokens(seeds: torch.Tensor, places: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """[n, r] int64: one token for every place, all as likely up to vocab_size / 2**32, apart from the noise of tokens.

    seeds: [n] int64; places: [n, r] int64. The integers, and so the tokens, are the same on every device.
    """
    low = (seeds & 0xFFFFFFFF).to(torch.int32)[:, None]
    high = (seeds >> 32).to(torch.int32)[:, None]
    first, second = _keys(low, high, places.to(torch.int32))
    # Another constant than a token's word has, or a step's: a canvas is neither.
    word = _mix(torch.tensor(_CANVAS, dtype=torch.int32, device=seeds.device))
    bits = _mix(word ^ first, second).to(torch.int64) & 0xFFFFFFFF
    return (bits * vocab_size) >> 32


def gumbel_noise(seeds: torch.Tensor, positions: torch.Tensor, vocab_size: int, first_token: int = 0) -> torch.Tensor:
    """Standard Gumbel noise, float32 [n, r, vocab_size], finite everywhere, for token ids from `first_token` on.

    seeds: [n] int64; positions: [n, r] int64, the absolute positions of the tokens to choose.
    The upper tail, which decides rare tokens, is resolved to 2**-32: v is small there and floats are dense near 0.
    """
    if seeds.device.type == "cpu":
        return torch.from_numpy(_on_host(seeds.numpy(), positions.numpy(), vocab_size, first_token))
    return to_gumbel(noise_bits(seeds, positions, vocab_size, first_token))


def to_gumbel(bits: torch.Tensor) -> torch.Tensor:
    """int32 words to Gumbel noise."""
    uniform = (bits & 0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-31).clamp_(max=_MAX_UNIFORM)
    exponential = uniform.neg_().log1p_().neg_()
    return exponential.log_().neg_()


def _on_host(seeds: np.ndarray, positions: np.ndarray, vocab_size: int, first_token: int) -> np.ndarray:
    """`gumbel_noise` by numpy, block by block and in place: a few rows take half the time that torch needs to start so
    many operations, and many rows of a large vocabulary a fifth."""
    low, high = (seeds & 0xFFFFFFFF).astype(np.int32)[:, None], (seeds >> 32).astype(np.int32)[:, None]
    keys = _keys(low, high, positions.astype(np.int32))
    first, second = (key.reshape(-1, 1).view(np.uint32) for key in keys)
    tokens = _token_hashes(vocab_size, torch.device("cpu"), first_token).numpy().view(np.uint32)
    noise = np.empty((len(first), vocab_size), dtype=np.float32)
    step = max(1, _HOST_BLOCK // vocab_size)
    for at in range(0, len(first), step):
        rows = slice(at, at + step)
        to_gumbel_on_host(_bits_on_host(tokens, first[rows], second[rows]), noise[rows])
    return noise.reshape(*positions.shape, vocab_size)


def _bits_on_host(tokens: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[rows, vocab_size] uint32 from hashes [vocab_size] and keys [rows, 1]: `_mix`, with one operation a shift."""
    words: np.ndarray = tokens ^ first
    shifted = words >> np.uint32(16)
    words ^= shifted
    words *= np.uint32(_MULTIPLIER_1)
    words ^= second
    np.right_shift(words, np.uint32(15), out=shifted)
    words ^= shifted
    words *= np.uint32(_MULTIPLIER_2 & 0xFFFFFFFF)
    np.right_shift(words, np.uint32(15), out=shifted)
    words ^= shifted
    return words


def to_gumbel_on_host(bits: np.ndarray, out: np.ndarray) -> None:
    """uint32 words, which it overwrites, to Gumbel noise in `out`, float32."""
    bits &= np.uint32(0x7FFFFFFF)
    np.copyto(out, bits.view(np.int32), casting="same_kind")
    out += np.float32(0.5)
    out *= np.float32(2.0**-31)
    np.minimum(out, np.float32(_MAX_UNIFORM), out=out)
    for step in (np.negative, np.log1p, np.negative, np.log, np.negative):
        step(out, out=out)
