"""From logits to tokens, against a naive loop over rows. If one fails, a sampling parameter does something else than
its documentation says, or does it to somebody else's request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from engine.request import Request, SamplingParams
from engine.sampling.chosen import Chosen
from engine.sampling.history import TokenHistory
from engine.sampling.sampler import Sampler
from engine.sequence import Sequence
from tests.reference import sampling as reference
from tests.reference.sampling import Sampling

V = 40
CPU = torch.device("cpu")
BANNED = (3, 4)
END = 2
INFINITY = float("inf")

GREEDY = Sampling()
MIXED = [
    GREEDY,
    Sampling(temperature=0.7, seed=1),
    Sampling(temperature=1.0, top_k=4, seed=2),
    Sampling(repetition_penalty=1.8, presence_penalty=-0.6),
    Sampling(temperature=1.4, top_p=0.6, seed=2**45),
    Sampling(temperature=1.0, min_p=0.2, seed=4, logit_bias={5: 4.0, END: 5.0}, min_tokens=3),
    Sampling(logit_bias={7: -100.0, 8: 100.0}),
    Sampling(
        temperature=0.9, top_k=12, top_p=0.9, min_p=0.02, seed=6, repetition_penalty=0.8, presence_penalty=0.5,
        frequency_penalty=0.4, logit_bias={11: 2.0}, min_tokens=2,
    ),
]  # fmt: skip


def sequence(sampling: Sampling, row: int, answer: tuple[int, ...] = ()) -> Sequence:
    """A running sequence whose prompt and settled answer depend on its row."""
    params = SamplingParams(**{name: getattr(sampling, name) for name in sampling.__dataclass_fields__})
    prompt = [(7 * row + i * i) % V for i in range(1 + row)]
    request = Request(request_id=str(row), prompt_token_ids=prompt, max_tokens=50, sampling=params)
    return Sequence(request, frozenset({END}), row, token_ids=[*prompt, *answer], row=row)


def group(samplings: list[Sampling], answers: tuple[int, ...] = (9, 9, 10)) -> list[Sequence]:
    return [sequence(sampling, row, answers) for row, sampling in enumerate(samplings)]


def random_logits(n: int, r: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(n, r, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def places(seqs: list[Sequence], r: int) -> torch.Tensor:
    """[n, r]: the positions after what has settled."""
    return torch.tensor([[len(seq.token_ids) + j for j in range(r)] for seq in seqs])


def engine_choice(logits: torch.Tensor, seqs: list[Sequence], **options: Any) -> Chosen:
    """A fresh sampler's choice; `logits` is left alone."""
    sampler = Sampler(BANNED, TokenHistory(16, V, CPU), CPU)
    return sampler.choose(logits.clone(), seqs, places(seqs, logits.shape[1]), **options)


def naive_choice(row: torch.Tensor, seq: Sequence, j: int, drafts: list[int]) -> reference.Choice:
    """The reference's choice at row j, with these drafts in the history."""
    params = seq.request.sampling
    sampling = Sampling(**{name: getattr(params, name) for name in Sampling.__dataclass_fields__})
    position = len(seq.token_ids) + j
    banned = {*BANNED, *([END] if position < seq.num_prompt + params.min_tokens else [])}
    return reference.choose(
        row.numpy(), sampling, position, banned=banned, prompt=seq.request.prompt_token_ids,
        generated=[*seq.token_ids[seq.num_prompt :], *(token for token in drafts if token >= 0)],
    )  # fmt: skip


def check_against_naive(logits: torch.Tensor, seqs: list[Sequence], drafts: list[list[int]], cumulative: bool) -> None:
    chosen = engine_choice(logits, seqs, unsettled=torch.tensor(drafts), cumulative=cumulative)
    for i, seq in enumerate(seqs):
        for j in range(logits.shape[1]):
            visible = drafts[i][: j + 1] if cumulative else drafts[i]
            wanted = naive_choice(logits[i, j], seq, j, visible)
            assert wanted.margin > 1e-5, "a near tie: take another seed"
            assert int(chosen.token_ids[i, j]) == wanted.token, (i, j)
            np.testing.assert_allclose(chosen.logits[i, j].log_softmax(-1).numpy(), wanted.logprobs, atol=1e-9)


@pytest.mark.parametrize("cumulative", [False, True], ids=["denoising", "verifying"])
@pytest.mark.parametrize("seed", range(4))
def test_a_mixed_group_equals_a_naive_loop_over_rows(seed: int, cumulative: bool) -> None:
    """All parameters side by side, with drafts in the history: each row sees those that its phase lets it see."""
    seqs = group(MIXED)
    rng = np.random.default_rng(seed)
    drafts = rng.integers(-1, V, (len(seqs), 6)).tolist()
    drafts[0] = drafts[7] = [-1, 9, 9, 12, 12, 12]
    check_against_naive(random_logits(len(seqs), 6, seed), seqs, drafts, cumulative)


def test_a_token_that_may_be_edited_is_no_history_of_itself() -> None:
    """It would be penalised for being there, and give way to a worse one in every step."""
    seqs, rng = group(MIXED), np.random.default_rng(7)
    drafts, logits = rng.integers(-1, V, (len(seqs), 6)).tolist(), random_logits(len(MIXED), 6, 9)
    chosen = engine_choice(logits, seqs, unsettled=torch.tensor(drafts), without_own=True)
    for i, seq in enumerate(seqs):
        for j in range(6):
            others = [token for place, token in enumerate(drafts[i]) if place != j]
            wanted = naive_choice(logits[i, j], seq, j, others)
            assert wanted.margin > 1e-5, "a near tie: take another seed"
            assert int(chosen.token_ids[i, j]) == wanted.token, (i, j)


def test_every_request_of_a_group_gets_what_it_gets_alone() -> None:
    """Bit for bit, in any order of rows: what a neighbour asked for changes nothing."""
    seqs, logits = group(MIXED), random_logits(len(MIXED), 3)
    together = engine_choice(logits, seqs)
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    shuffled = engine_choice(logits[order], [seqs[i] for i in order])
    assert torch.equal(shuffled.token_ids, together.token_ids[order])
    assert torch.equal(shuffled.logits, together.logits[order])
    for i, seq in enumerate(seqs):
        alone = engine_choice(logits[i : i + 1], [seq])
        assert torch.equal(alone.token_ids[0], together.token_ids[i])
        assert torch.equal(alone.logits[0], together.logits[i])


def test_top_k_of_one_is_greedy() -> None:
    seqs = group([Sampling(temperature=2.0, top_k=1, seed=seed) for seed in range(8)])
    logits = random_logits(8, 5)
    greedy = engine_choice(logits, group([GREEDY] * 8))
    assert torch.equal(engine_choice(logits, seqs).token_ids, greedy.token_ids)


@pytest.mark.parametrize("parameter", [{"top_p": 1e-9}, {"min_p": 1.0}])
def test_the_tightest_filter_is_greedy(parameter: dict[str, float]) -> None:
    """A filter never leaves nothing: the best token always stays."""
    logits = random_logits(4, 5)
    seqs = group([Sampling(temperature=1.5, seed=seed, **parameter) for seed in range(4)])  # type: ignore[arg-type]
    assert torch.equal(engine_choice(logits, seqs).token_ids, engine_choice(logits, group([GREEDY] * 4)).token_ids)


@pytest.mark.parametrize("parameter", [{"top_k": V}, {"top_k": 10 * V}, {"top_p": 1.0}, {"min_p": 0.0}])
def test_the_widest_filter_changes_nothing(parameter: dict[str, float]) -> None:
    logits = random_logits(8, 5)
    plain = [Sampling(temperature=1.5, seed=seed) for seed in range(8)]
    filtered = [replace(sampling, **parameter) for sampling in plain]  # type: ignore[arg-type]
    assert torch.equal(engine_choice(logits, group(filtered)).token_ids, engine_choice(logits, group(plain)).token_ids)


def test_sampled_tokens_have_the_probabilities_of_the_filtered_distribution() -> None:
    """End to end, over many seeds: top_k, then top_p of what is left, then min_p, of logits / temperature."""
    sampling = Sampling(temperature=0.8, top_k=6, top_p=0.9, min_p=0.05)
    row = random_logits(1, 1)[0, 0]
    row[list(BANNED)] = -INFINITY
    scores = reference.keep(row.numpy() / 0.8, 6, 0.9, 0.05)
    probabilities = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    count, draws = 0, np.zeros(V)
    for start in range(0, 4000, 500):
        seqs = [sequence(replace(sampling, seed=start + i), 0) for i in range(500)]
        tokens = engine_choice(row.expand(500, 1, V), seqs).token_ids
        draws += np.bincount(tokens.ravel().numpy(), minlength=V)
        count += 500
    assert draws[probabilities == 0].sum() == 0
    kept = probabilities > 0
    assert 2 < kept.sum() < 7
    statistic = ((draws - count * probabilities)[kept] ** 2 / (count * probabilities[kept])).sum()
    assert statistic < 20


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, seed=1)])
def test_min_tokens_bans_end_tokens_by_position(sampling: Sampling) -> None:
    """Row by row of a block: the end is banned in front of the limit, allowed from it on."""
    logits = random_logits(1, 6)
    logits[..., END] = 50.0
    seq = sequence(replace(sampling, min_tokens=5), 0, (9, 9))  # rows choose answer tokens 2, 3, 4, 5, 6, 7
    ends = engine_choice(logits, [seq]).token_ids[0] == END
    assert ends.tolist() == [False, False, False, True, True, True]


def test_barred_tokens_are_chosen_at_no_position() -> None:
    """`ignore_eos` and infill bar the ends from an answer, at its last position as at its first."""
    logits = random_logits(2, 6)
    logits[..., END] = 50.0
    seqs = group([GREEDY, GREEDY])
    seqs[0].bar(frozenset([END]))
    chosen = engine_choice(logits, seqs)
    assert not (chosen.token_ids[0] == END).any()
    assert (chosen.token_ids[1] == END).all()


def test_bias_cannot_bring_back_a_banned_token() -> None:
    seqs = group(
        [Sampling(logit_bias=dict.fromkeys(BANNED, 1000.0)), Sampling(temperature=1.0, logit_bias={3: 1000.0})]
    )
    assert not torch.isin(engine_choice(random_logits(2, 20), seqs).token_ids, torch.tensor(BANNED)).any()


@pytest.mark.parametrize("repetition", [1e-46, 1e-30, 10.0])
def test_penalties_cannot_bring_back_a_banned_token(repetition: float) -> None:
    """A factor that is zero in float32 would turn a banned token's -inf into NaN, which no comparison beats."""
    logits = random_logits(1, 1).float()
    logits[..., :6] = 0.0
    seqs = group([Sampling(repetition_penalty=repetition)], answers=(*BANNED, 1))
    assert int(engine_choice(logits, seqs).token_ids) not in BANNED


def test_penalties_leave_unseen_tokens_alone() -> None:
    seqs = group([Sampling(repetition_penalty=2.0, presence_penalty=1.0, frequency_penalty=1.0)], (9, 9, 9))
    logits = random_logits(1, 1)
    changed = engine_choice(logits, seqs).logits[0, 0] != logits[0, 0]
    assert torch.nonzero(changed).ravel().tolist() == sorted({*BANNED, 9, *seqs[0].request.prompt_token_ids})


def test_a_repetition_penalty_never_favours_what_was_said() -> None:
    """Positive logits are divided and negative ones multiplied: both fall."""
    logits = torch.zeros(1, 1, V, dtype=torch.float64)
    logits[..., 9], logits[..., 10] = 3.0, -3.0
    after = engine_choice(logits, group([Sampling(repetition_penalty=1.5)], (9, 10))).logits[0, 0]
    assert (float(after[9]), float(after[10])) == pytest.approx((2.0, -4.5))


def test_non_finite_logits_are_reported_for_their_request_alone() -> None:
    """One request's NaN must not end the others."""
    logits = random_logits(4, 3)
    logits[1, 2, 7], logits[3, 0, 0] = float("nan"), INFINITY
    assert engine_choice(logits, group(MIXED[:4])).finite.tolist() == [True, False, True, False]


def test_choosing_does_not_remember_drafts() -> None:
    """Rejected drafts leave no trace: the same step again gives the same."""
    sampler = Sampler(BANNED, TokenHistory(16, V, CPU), CPU)
    seqs, logits = group([Sampling(frequency_penalty=2.0)] * 2), random_logits(2, 4)
    before = sampler.choose(logits.clone(), seqs, places(seqs, 4)).logits
    sampler.choose(logits.clone(), seqs, places(seqs, 4), unsettled=torch.full((2, 4), 9), cumulative=True)
    assert torch.equal(sampler.choose(logits.clone(), seqs, places(seqs, 4)).logits, before)


@pytest.mark.parametrize("sampling", [s for s in MIXED if s is not GREEDY])
def test_only_plain_requests_may_leave_out_positions(sampling: Sampling) -> None:
    """Noise, penalties, bias and minima would silently not apply."""
    sampler = Sampler(BANNED, TokenHistory(16, V, CPU), CPU)
    with pytest.raises(ValueError, match="positions are needed"):
        sampler.choose(random_logits(2, 1), group([GREEDY, sampling]), None)


def test_plain_requests_get_the_likeliest_token() -> None:
    logits = random_logits(3, 1)
    seqs = group([GREEDY] * 3)
    sampler = Sampler(BANNED, TokenHistory(16, V, CPU), CPU)
    without = sampler.choose(logits.clone(), seqs, None).token_ids
    assert torch.equal(without, engine_choice(logits, seqs).token_ids)
    assert without[:, 0].tolist() == [naive_choice(logits[i, 0], seq, 0, []).token for i, seq in enumerate(seqs)]
