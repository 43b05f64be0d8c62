"""I-DLM against its published loop on transformers' Qwen3, token for token and pass for pass; its modes against each
other. If one fails, a faster mode changes the text, or costs more passes than it was published to."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.batch import Phase
from engine.errors import ConfigError, RequestError
from engine.request import Mode
from tests.engine.answers.test_company import Solo
from tests.engine.decoding.harness import SAMPLINGS, agrees, answer_to, random_prompt, request_for
from tests.engine.decoding.introspective.conftest import IntrospectivePair, IntrospectivePairs
from tests.engine.driving import Visit, ask, drive
from tests.engine.strategies import NARROW, prompt_of, samplings
from tests.reference.denoising.introspective import introspective
from tests.reference.grammars import CLOSING, GRAMMARS, text_of
from tests.reference.loops import Task
from tests.reference.sampling import Sampling

MODES: tuple[Mode, ...] = ("ar", "speculative", "auto")
AGREEABLE = {20: 30.0, 30: 30.0, 40: 30.0}
"""With only these left to say, a random model's drafts are often what it would say next."""


def random_tasks(count: int) -> list[Task]:
    """Small cases: any width, greedy and sampled, answers that end early, late or only at their limit."""
    rng = random.Random(count)
    tasks = []
    for i in range(count):
        sampling = rng.choice(list(SAMPLINGS.values()))
        if i % 2:
            sampling = replace(sampling, logit_bias=AGREEABLE)
        tasks.append(
            Task(
                prompt=random_prompt(rng.randint(1, 20), rng.randrange(9)), max_tokens=rng.randint(1, 24),
                sampling=replace(sampling, min_tokens=0), block_length=rng.choice((2, 3, 4, 4, 8, 16)),
                stop_token_ids=tuple(rng.sample(range(6, 95), rng.choice((0, 1, 6)))), ignore_eos=rng.random() < 0.5,
            )
        )  # fmt: skip
    return tasks


def held_against_the_loop(pair: IntrospectivePair, tasks: list[Task]) -> Counter[str]:
    """Answers, passes and accepted drafts equal the loop's, all requests run beside each other."""
    requests = [request_for(task, "speculative", f"r{i}") for i, task in enumerate(tasks)]
    answers = drive(pair.make(), requests)
    seen: Counter[str] = Counter()
    for i, task in enumerate(tasks):
        answer, run = answers[f"r{i}"], introspective(pair.reference, task)
        if not agrees(answer, run):
            seen["near ties"] += 1
            continue
        stats = answer.finished.stats
        assert (stats.passes, stats.denoising_steps) == (run.passes, run.denoising_steps), task
        assert (stats.draft_tokens, stats.accepted_draft_tokens) == (run.drafted, run.accepted), task
        seen.update({run.reason: 1, "accepted": run.accepted, "rejected": run.drafted - run.accepted})
    return seen


@pytest.mark.parametrize(("dtype", "count"), [("float64", 220), ("float32", 60)])
def test_writes_what_the_published_loop_writes(idlm: IntrospectivePairs, dtype: str, count: int) -> None:
    seen = held_against_the_loop(idlm(dtype), random_tasks(count))
    assert min(seen["stop"], seen["length"]) > count // 20
    assert min(seen["accepted"], seen["rejected"]) > count
    assert seen["near ties"] <= (count // 10 if dtype == "float32" else 0)


def test_every_mode_writes_the_same_text(idlm: IntrospectivePairs) -> None:
    """At every temperature: choosing a faster mode is free."""
    pair = idlm("float64")
    engine = pair.make()
    for task in random_tasks(40):
        outcomes = [answer_to(engine, task, mode).outcome for mode in MODES]
        assert outcomes[0] == outcomes[1] == outcomes[2], task


def test_a_pass_verifies_and_drafts(idlm: IntrospectivePairs) -> None:
    """Two spans of one sequence; without room for the second the answer is the same."""
    pair = idlm("float64")
    fields: dict[str, Any] = {"block_length": 4, "max_tokens": 40, "logit_bias": AGREEABLE, "ignore_eos": True}
    fields |= {"temperature": 2.0, "seed": 1}
    request = ask("r", random_prompt(9), "speculative", **fields)
    engine = pair.make()
    shapes: Counter[tuple[Phase, int]] = Counter()
    forward = engine.runner.forward

    def watching(plan: Any) -> Any:
        shapes.update((span.phase, len(span.token_ids)) for span in plan.spans if span.phase is not Phase.PREFILL)
        return forward(plan)

    engine.runner.forward = watching  # type: ignore[method-assign]
    answer = drive(engine, [request])["r"]
    assert shapes[Phase.VERIFY, 4] > 3
    assert shapes[Phase.DECODE, 1] > 0
    assert shapes[Phase.DRAFT, 3] >= shapes[Phase.VERIFY, 4]
    assert answer.finished.stats.passes < 36
    crowded = pair.make(max_batch_tokens=10, max_block_length=4, max_infill_window=0)
    others = [ask(f"o{i}", random_prompt(3, i), "speculative", **fields) for i in range(3)]
    assert drive(crowded, [request, *others])["r"].outcome == answer.outcome


def test_drafts_are_told_and_replaced(idlm: IntrospectivePairs) -> None:
    fields: dict[str, Any] = {"block_length": 4, "max_tokens": 30, "logit_bias": AGREEABLE, "include_drafts": True}
    answer = drive(idlm("float64").make(), [ask("r", random_prompt(9), "speculative", **fields)])["r"]
    assert {len(draft.token_ids) for draft in answer.drafts} >= {3}
    assert all(None not in draft.token_ids for draft in answer.drafts)


def test_what_it_cannot_do_is_refused(idlm: IntrospectivePairs) -> None:
    """It refines no blocks, and has no second copy of its weights to draft with."""
    make = idlm("float64").make
    engine = make()
    assert (engine.info.decodings, engine.info.default_decoding, engine.info.block_length) == (MODES, "auto", 4)
    with pytest.raises(RequestError, match="idlm does not support decoding 'diffusion'"):
        engine.add(ask("r", [9], "diffusion"))
    with pytest.raises(RequestError, match="idlm cannot fill in"):
        engine.add(ask("r", [9], "infill", suffix_token_ids=[7]))
    with pytest.raises(ConfigError, match="draft_quantization 'int8' is for models that draft in passes of their own"):
        make(draft_quantization="int8")


def test_a_prompt_can_be_scored(idlm: IntrospectivePairs) -> None:
    """As any causal model's."""
    pair, prompt = idlm("float64"), random_prompt(7)
    engine = pair.make()
    answer = drive(engine, [ask("r", prompt, "auto", prompt_logprobs=1, max_tokens=3)])["r"]
    scored = [entry for event in answer.events for entry in getattr(event, "logprobs", None) or []]
    rows = pair.reference.rows(prompt)
    for token, row, entry in zip(prompt[1:], rows, scored, strict=False):
        shifted = [value - max(row) for value in row]
        assert entry.token_id == token
        assert entry.logprob == pytest.approx(shifted[token] - float(torch_logsumexp(shifted)), abs=1e-9)


def torch_logsumexp(values: list[float]) -> float:
    import torch

    return float(torch.tensor(values, dtype=torch.float64).logsumexp(0))


@st.composite
def companies(draw: st.DrawFn) -> list[Visit]:
    """Requests of all modes that come at different times; some leave before they are done."""
    visits = []
    for i in range(draw(st.integers(2, 7))):
        fields: dict[str, Any] = draw(samplings())
        fields |= {
            "max_tokens": draw(st.integers(4, 40)), "block_length": draw(st.sampled_from((2, 4, 9))),
            "ignore_eos": draw(st.booleans()), "stop_token_ids": draw(st.sampled_from(((), (20,), (7, 8, 9)))),
            "priority": draw(st.sampled_from((0, 0, -1, 1))), "include_drafts": draw(st.booleans()),
        }  # fmt: skip
        prompt = prompt_of(draw(st.integers(0, 1)), draw(st.sampled_from((0, 16, 33))), draw(st.integers(1, 12)))
        request = ask(f"r{i}", prompt, draw(st.sampled_from(MODES)), **fields)
        leaves = draw(st.one_of(st.none(), st.none(), st.integers(0, 20)))
        visits.append(Visit(request, draw(st.integers(0, 12)), leaves))
    return visits


LIMITS = {"max_block_length": 16, "max_infill_window": 0, "max_model_len": 88}


@settings(
    max_examples=20, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)  # fmt: skip
@given(
    visits=companies(),
    pool=st.fixed_dictionaries(
        {
            "page_size": st.sampled_from((1, 4, 16)), "kv_cache_tokens": st.sampled_from((96, 144, 512)),
            "max_batch_tokens": st.sampled_from((64, 256)), "max_running": st.integers(1, 6),
        }
    ),
)  # fmt: skip
def test_company_never_changes_the_answer(idlm: IntrospectivePairs, visits: list[Visit], pool: dict[str, Any]) -> None:
    """Somebody's text would depend on who else is using the server: preempted, resumed, from the cache or not."""
    Solo(idlm("float64").make, shared_commit=True, limits=LIMITS).check(visits, **pool)


def test_a_crowd_in_a_small_pool(idlm: IntrospectivePairs) -> None:
    """The same, where each way in which company could matter is known to have occurred."""
    visits = [
        Visit(
            ask(
                f"r{i}", prompt_of(0, 24, 3 + i), MODES[i % 3], max_tokens=34, block_length=(4, 8)[i % 2], seed=i,
                temperature=(0.0, 0.8)[i % 2], logit_bias=NARROW,
            ),
            10 * (i // 6), 9 if i in (3, 7) else None,
        )
        for i in range(12)
    ]  # fmt: skip
    seen = Solo(idlm("float64").make, shared_commit=True, limits=LIMITS).check(
        visits, page_size=8, kv_cache_tokens=144, max_batch_tokens=64, max_running=5
    )
    assert (seen["requests"], seen["abort"]) == (12, 2)
    assert min(seen["preempted"], seen["cached"], seen["accepted"]) > 0


def test_a_form_of_the_answer_holds_and_changes_nothing_between_modes(idlm: IntrospectivePairs) -> None:
    """Drafts are fitted to the grammar; what it refuses is refused again in verification."""
    engine, ended = idlm("float64").make(), 0
    for i, (grammar, is_valid) in enumerate([*GRAMMARS.values()] * 3):
        fields: dict[str, Any] = {
            "grammar": grammar, "seed": i, "temperature": i % 3 * 0.6, "max_tokens": 40, "block_length": 4,
            "logit_bias": CLOSING,
        }  # fmt: skip
        answers = [drive(engine, [ask("r", random_prompt(5, i), mode, **fields)])["r"] for mode in MODES]
        assert answers[0].outcome == answers[1].outcome == answers[2].outcome
        if answers[0].finished.reason == "stop":
            ended += 1
            assert is_valid(text_of(answers[0].tokens)), text_of(answers[0].tokens)
    assert ended > 3, "hardly an answer came to its end: little was checked"


def test_one_seed_gives_one_text(idlm: IntrospectivePairs) -> None:
    engine = idlm("float64").make()
    task = Task(prompt=random_prompt(5), max_tokens=20, sampling=Sampling(temperature=0.9, seed=4), block_length=4)
    again, other = replace(task), replace(task, sampling=Sampling(temperature=0.9, seed=5))
    assert answer_to(engine, task, "auto").outcome == answer_to(engine, again, "speculative").outcome
    assert answer_to(engine, task, "auto").tokens != answer_to(engine, other, "auto").tokens
