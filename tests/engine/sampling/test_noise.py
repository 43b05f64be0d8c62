"""The noise behind sampling. If one fails, sampled text is not distributed as the model says, or not reproducible."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from engine.sampling.noise import (
    STEP_PLACES,
    gumbel_noise,
    noise_bits,
    step_places,
    step_uniforms,
    to_gumbel,
    to_gumbel_on_host,
    uniform_tokens,
)
from tests.reference import noise as reference

EULER = 0.5772156649015329
SEEDS = (0, 1, 2, 3, 1000, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40, 2**53 - 1)
PINNED_ZERO = [0x8048602B, 0x08706EF6, 0x2923BD1D, 0xE6F1DA85]
PINNED_LARGE = [0xAC25AA27, 0x6BFE618B, 0x7D2D50C1, 0x09771949]
PINNED_WIDE = [0x2499C470, 0xFDFD54C7, 0xB8735ECD]


def words(seeds: list[int], positions: list[int], vocab_size: int) -> np.ndarray:
    """The engine's 32 bits of every (seed, position, token) as unsigned integers: [seeds, positions, V]."""
    grid = torch.tensor(positions).expand(len(seeds), -1)
    return noise_bits(torch.tensor(seeds), grid, vocab_size).numpy().astype(np.uint32).astype(np.uint64)


def noise(seeds: list[int], positions: list[int], vocab_size: int) -> np.ndarray:
    """The engine's noise: [seeds, positions, V] float64."""
    grid = torch.tensor(positions).expand(len(seeds), -1)
    return gumbel_noise(torch.tensor(seeds), grid, vocab_size).double().numpy()


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """Deviations above what chance gives, in standard deviations of the statistic (about normal for many bins)."""
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = expected.size - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation times the square root of the sample size: standard normal if a and b are independent."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1] * math.sqrt(a.size))


def test_the_integers_are_those_of_an_independent_implementation() -> None:
    positions = [0, 1, 2, 31, 32, 4096, 131071, 2**20]
    ours = words(list(SEEDS), positions, 300)
    for i, seed in enumerate(SEEDS):
        for j, position in enumerate(positions):
            for token in (0, 1, 2, 17, 128, 299):
                assert ours[i, j, token] == reference.noise_word(seed, position, token)
            assert np.array_equal(ours[i, j], reference.noise_words(seed, position, 300))


@pytest.mark.parametrize("vocab_size", [5, 1600, 40_000])
def test_a_cpu_and_a_gpu_make_the_same_noise(vocab_size: int) -> None:
    """The host's way and the device's are two programs: a text must not depend on which one ran."""
    seeds, positions = torch.tensor(SEEDS), torch.arange(44).view(11, 4) * 977
    on_device = to_gumbel(noise_bits(seeds, positions, vocab_size))
    torch.testing.assert_close(gumbel_noise(seeds, positions, vocab_size), on_device, rtol=2e-6, atol=2e-6)


def test_the_integers_never_change() -> None:
    """Pinned: a seed that gave a text must give it after an upgrade, and on another device."""
    assert words([0], [0], 4).ravel().tolist() == PINNED_ZERO
    assert words([2**53 - 1], [4095], 4).ravel().tolist() == PINNED_LARGE
    assert words([123456789], [77], 131072)[0, 0, [0, 65536, 131071]].tolist() == PINNED_WIDE


def test_the_floats_are_those_of_an_independent_implementation() -> None:
    for seed in SEEDS:
        ours = noise([seed], [5], 2000)[0, 0]
        np.testing.assert_allclose(ours, reference.gumbel(seed, 5, 2000), rtol=4e-6, atol=4e-6)


def test_a_wide_vocabulary_begins_like_a_narrow_one() -> None:
    """Noise is a function of the token, not of the table it stands in: padding a vocabulary changes no text."""
    assert np.array_equal(words([7], [3], 131072)[..., :96], words([7], [3], 96))


def test_a_place_has_the_same_noise_in_every_batch_shape() -> None:
    alone = noise([5], [9], 200)[0, 0]
    assert np.array_equal(noise([4, 5, 6], [8, 9, 10], 200)[1, 1], alone)
    assert np.array_equal(noise([5], list(range(20)), 200)[0, 9], alone)


def test_noise_is_finite_everywhere() -> None:
    """An infinite noise would choose a token whatever its probability. Both ends of the integers, and many draws."""
    ends = torch.tensor([0, 1, 0x7FFFFFFF, -0x80000000, -1, 0x7FFFFF80], dtype=torch.int32)
    on_device = to_gumbel(ends.clone())
    assert torch.isfinite(on_device).all()
    on_host = np.empty(6, dtype=np.float32)
    to_gumbel_on_host(ends.numpy().view(np.uint32).copy(), on_host)
    np.testing.assert_allclose(on_host, on_device.numpy(), rtol=1e-6)
    many = noise(list(range(20)), list(range(20)), 4096)
    assert np.isfinite(many).all()
    assert many.max() < 23
    assert many.min() > -3


def test_integers_are_uniform_in_every_byte() -> None:
    drawn = words(list(range(64)), list(range(64)), 256).ravel()
    for shift in (0, 8, 16, 24):
        observed = np.bincount((drawn >> np.uint64(shift)).astype(np.int64) & 255, minlength=256)
        assert abs(chi_square(observed, np.full(256, drawn.size / 256))) < 4


def test_noise_has_the_gumbel_distribution() -> None:
    """Mean, variance, and the share of every hundredth of it; also of the upper tail, which decides rare tokens."""
    drawn = noise(list(range(100, 164)), list(range(64)), 256).ravel()
    assert drawn.mean() == pytest.approx(EULER, abs=4 * 1.2825 / math.sqrt(drawn.size))
    assert drawn.var() == pytest.approx(math.pi**2 / 6, rel=0.01)
    observed, _ = np.histogram(np.exp(-np.exp(-drawn)), bins=100, range=(0, 1))
    assert abs(chi_square(observed, np.full(100, drawn.size / 100))) < 4
    for level in (6.0, 8.0, 10.0):
        expected = drawn.size * -math.expm1(-math.exp(-level))
        assert abs((drawn > level).sum() - expected) < 4 * math.sqrt(expected)


@pytest.mark.parametrize("vocab_size", [97, 256])
def test_neighbours_are_independent(vocab_size: int) -> None:
    """Adjacent positions, seeds, tokens, and the diagonals: else a text would repeat, or variants would be alike."""
    drawn = noise(list(range(40)), list(range(40)), vocab_size)
    pairs = {
        "positions": (drawn[:, 1:], drawn[:, :-1]),
        "seeds": (drawn[1:], drawn[:-1]),
        "tokens": (drawn[..., 1:], drawn[..., :-1]),
        "seed and position": (drawn[1:, :-1], drawn[:-1, 1:]),
        "position and token": (drawn[:, 1:, :-1], drawn[:, :-1, 1:]),
        "far positions": (drawn[:, 32:], drawn[:, :-32]),
    }
    for name, (a, b) in pairs.items():
        assert abs(correlation(a, b)) < 4, name
        # The best token of a row is what is seen of the noise.
        assert np.mean(a.argmax(-1) == b.argmax(-1)) < 4 / min(a.shape[-1], b.shape[-1]) if name != "tokens" else True


@pytest.mark.parametrize("bit", [0, 1, 15, 31, 32, 33, 45, 52])
def test_every_bit_of_a_seed_counts(bit: int) -> None:
    """Seeds that differ in one bit, however high, share nothing."""
    seeds = [seed & ~(1 << bit) for seed in (0, 12345, 2**53 - 1)]
    for seed in seeds:
        a, b = noise([seed, seed | 1 << bit], list(range(40)), 256)
        assert abs(correlation(a, b)) < 4
        assert np.mean(a == b) < 1e-3


def test_seeds_with_swapped_halves_differ() -> None:
    a, b = noise([5 << 32 | 9, 9 << 32 | 5], list(range(40)), 256)
    assert abs(correlation(a, b)) < 4


@pytest.mark.parametrize("axis", ["positions", "seeds"])
def test_the_best_noisy_token_has_its_softmax_probability(axis: str) -> None:
    """What sampling is: over many positions of one text, and over many seeds at one position."""
    logits = np.array([2.0, 1.0, 0.0, -1.0, -3.0, 1.5, 0.3, -6.0])
    many = list(range(60_000))
    drawn = noise([42], many, 8)[0] if axis == "positions" else noise(many, [42], 8)[:, 0]
    chosen = (drawn + logits).argmax(-1)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    assert abs(chi_square(np.bincount(chosen, minlength=8), probabilities * len(many))) < 4


def test_successive_choices_are_independent() -> None:
    """Pairs of adjacent positions take all combinations in proportion."""
    logits = np.log(np.array([0.5, 0.3, 0.2]))
    chosen = (noise([7], list(range(60_000)), 3)[0] + logits).argmax(-1)
    observed = np.bincount(chosen[:-1] * 3 + chosen[1:], minlength=9)
    expected = np.outer(np.exp(logits), np.exp(logits)).ravel() * (len(chosen) - 1)
    assert abs(chi_square(observed, expected)) < 4


def test_uniforms_of_steps_are_those_of_an_independent_implementation() -> None:
    """Random orders of unmasking: a text would not be that of its seed on another machine or after an upgrade."""
    positions = [0, 1, 31, 4096, 2**20]
    for seed in SEEDS:
        for step in (0, 1, 7, 1023):
            ours = step_uniforms(seed, np.array(positions), step)
            assert ours.tolist() == [reference.step_uniform(seed, position, step) for position in positions]


def test_uniforms_of_steps_are_uniform_and_independent_of_step_position_and_token_noise() -> None:
    """A random order that favours some positions would be another sampler than the published one."""
    places = np.arange(20_000)
    draws = [step_uniforms(seed, places, step) for seed, step in ((0, 0), (0, 1), (1, 0))]
    for drawn in draws:
        counts = np.histogram(drawn, bins=64, range=(0.0, 1.0))[0]
        assert abs(chi_square(counts, np.full(64, len(places) / 64))) < 5
        assert abs(correlation(drawn[1:], drawn[:-1])) < 5
    tokens = noise([0], places.tolist(), 1)[0, :, 0]
    for other in (draws[1], draws[2], tokens):
        assert abs(correlation(draws[0], other)) < 5


def test_random_tokens_are_those_of_an_independent_implementation() -> None:
    """A canvas of random tokens would begin elsewhere on another device, or after an update."""
    positions, steps = torch.tensor([[0, 1, 977, 2**18]]), (0, 1, 2, 47, 1023)
    for seed in SEEDS:
        for step in steps:
            places = step_places(positions, torch.tensor([step]))
            for vocab_size in (5, 96, 262_144):
                found = uniform_tokens(torch.tensor([seed]), places, vocab_size)[0].tolist()
                expected = [reference.uniform_token(seed, place, step, vocab_size) for place in positions[0].tolist()]
                assert found == expected


def test_random_tokens_are_uniform_and_new_at_every_step() -> None:
    """Canvases that favour some tokens, or repeat those of the step before, are other noise than was trained on."""
    vocab_size, steps = 96, 40
    places = step_places(torch.arange(2000).expand(steps, -1), torch.arange(steps))
    tokens = uniform_tokens(torch.full((steps,), 7), places, vocab_size).numpy()
    counts = np.bincount(tokens.ravel(), minlength=vocab_size)
    assert abs(chi_square(counts, np.full(vocab_size, tokens.size / vocab_size))) < 5
    repeated = float((tokens[1:] == tokens[:-1]).mean())
    assert abs(repeated - 1 / vocab_size) < 5 * math.sqrt(1 / vocab_size / tokens.size)
    likeliest = gumbel_noise(torch.full((steps,), 7), places, vocab_size).argmax(-1).numpy()
    same = float((likeliest == tokens).mean())
    assert abs(same - 1 / vocab_size) < 5 * math.sqrt(1 / vocab_size / tokens.size), "the draws know the canvas"


def test_places_of_steps_never_meet() -> None:
    """Two steps with one place would draw alike. At the first step a place is the position itself."""
    positions = torch.tensor([[0, 5, STEP_PLACES - 1]])
    places = torch.cat([step_places(positions, torch.tensor([step])) for step in range(1025)])
    assert torch.equal(places[0], positions[0])
    assert places.unique().numel() == places.numel()
    assert int(places.max()) < 2**31, "places are hashed as 32 bits"
