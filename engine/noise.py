"""Gumbel noise as a pure function of (choice seed, absolute position, token id).

Because draft, verification and plain AR add the same noise at the same position, the argmax of `logits / T + noise` is
the same token whichever of them computes it: sampling stays exact under speculation, batching and preemption. The
counter-based integers are 32-bit hashes made of xor, shift and wrapping multiply, so every device computes the same
ones; the floats derived from them agree to 4 ulp across devices (two logarithms).

The mixing function is a two-round xorshift-multiply permutation of 32 bits with constants found by exhaustive bias
search (hash-prospector, C. Wellons, public domain).
"""

from functools import lru_cache

import torch

_MULTIPLIER_1 = 0x21F0AAAD
_MULTIPLIER_2 = 0xD35A2D97 - (1 << 32)  # as a signed 32-bit integer
_GOLDEN = 0x9E3779B9 - (1 << 32)
_MAX_UNIFORM = 1.0 - 2.0**-24


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int32 (torch's own keeps the sign)."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def _mix(x: torch.Tensor, inject: torch.Tensor | None = None) -> torch.Tensor:
    """Permutes int32 values; `inject` is xored in between the two rounds: with the input it makes a key of 64 bits."""
    x = (x ^ _shift_right(x, 16)) * _MULTIPLIER_1
    if inject is not None:
        x = x ^ inject
    x = (x ^ _shift_right(x, 15)) * _MULTIPLIER_2
    return x ^ _shift_right(x, 15)


@lru_cache(maxsize=8)
def _token_hashes(vocab_size: int, device: torch.device) -> torch.Tensor:
    """[vocab_size] int32: one well-mixed word a token id."""
    return _mix(torch.arange(vocab_size, dtype=torch.int32, device=device) * _GOLDEN + 1)


def noise_bits(seeds: torch.Tensor, positions: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """The integers behind the noise.

    seeds: [n] int64 in [0, 2**53); positions: [n, r] int64. Returns [n, r, vocab_size] int32, uniform over 32 bits.
    """
    low = (seeds & 0xFFFFFFFF).to(torch.int32)[:, None]
    high = (seeds >> 32).to(torch.int32)[:, None]
    place = positions.to(torch.int32)
    first = _mix(_mix(_mix(low + 0x3C6EF372) ^ high) ^ _mix(place + 0x1BD11BDA))
    second = _mix(_mix(_mix(high + 0x2545F491) + low) ^ (place * _GOLDEN + 0x5BF03635))
    return _mix(_token_hashes(vocab_size, seeds.device) ^ first[..., None], second[..., None])


def gumbel_noise(seeds: torch.Tensor, positions: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Standard Gumbel noise, float32 [n, r, vocab_size], finite everywhere.

    seeds: [n] int64; positions: [n, r] int64, the absolute positions of the tokens to choose.
    The upper tail, which decides rare tokens, is resolved to 2**-32: v is small there and floats are dense near 0.
    """
    bits = noise_bits(seeds, positions, vocab_size) & 0x7FFFFFFF
    uniform = bits.to(torch.float32).add_(0.5).mul_(2.0**-31).clamp_(max=_MAX_UNIFORM)
    exponential = uniform.neg_().log1p_().neg_()
    return exponential.log_().neg_()
