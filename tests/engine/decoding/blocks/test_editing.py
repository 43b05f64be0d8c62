"""LLaDA2.1's editing against its published loop on transformers' mixture module, token for token and pass for pass.

And what a stream may rely on. If one fails, answers are not the model's own, or text changes that was given out as
final.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.batch import Phase
from engine.engine import Engine
from engine.events import DraftUpdated, TokensSettled
from engine.models.families.llada2 import EDIT_SETTINGS
from engine.request import Request
from engine.sequence import Status
from tests.engine.decoding.blocks.cases import ORDERS, BlockPair, check, random_tasks
from tests.engine.decoding.blocks.conftest import Pairs
from tests.engine.decoding.harness import agrees, logprobs_of, random_prompt, request_for
from tests.engine.driving import Answer, ask, collect, drive
from tests.reference.denoising.editing import EditTask, llada2_1
from tests.reference.sampling import GREEDY, Sampling

NAME, LENGTH = "llada2_1", 8
SAMPLINGS = {
    "greedy": [GREEDY],
    "sampled": [Sampling(temperature=0.8, seed=seed) for seed in range(4)],
    "penalised": [
        Sampling(repetition_penalty=1.3, frequency_penalty=0.5),
        Sampling(temperature=0.8, seed=9, presence_penalty=0.6, top_k=12, min_tokens=1, logit_bias={20: 3.0}),
    ],
}
THRESHOLDS = [(own.threshold, own.edit_threshold) for own in EDIT_SETTINGS if own.edit_threshold is not None]
THRESHOLDS += [(0.95, 0.9), (0.2, 0.1), (None, 0.3), (0.1, 0.0), (0.9, 1.0)]


COUNTS = {"greedy": 200, "sampled": 40, "penalised": 24}


def edit_tasks(count: int, samplings: list[Sampling]) -> Iterator[EditTask]:
    """Prompts and limits around the boundaries of blocks, with all that editing can be asked for."""
    rng = random.Random(f"{count}/{samplings}")
    for task in random_tasks(count, LENGTH, ORDERS[NAME]["dynamic"]):
        threshold, edit_threshold = rng.choice(THRESHOLDS)
        plain = replace(task, max_denoising_steps=None, threshold=threshold, sampling=rng.choice(samplings))
        values = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
        posts = rng.choice((0, 1, 2, 3, 5, 16))
        yield EditTask(**values, edit_threshold=edit_threshold, max_post_steps=posts)


def edit_request(task: EditTask, request_id: str = "r", **overrides: Any) -> Request:
    """The engine's request for a reference task."""
    request = request_for(task, "diffusion", request_id, **overrides)
    edits = {"edit_threshold": task.edit_threshold, "max_post_steps": task.max_post_steps}
    return msgspec.structs.replace(request, decoding=msgspec.structs.replace(request.decoding, **edits))


def held_against_the_loop(pair: BlockPair, tasks: list[EditTask], *, shared_commit: bool) -> Counter[str]:
    """Answers, passes and edits equal the loop's, all requests run beside each other. Returns what took place."""
    requests = [edit_request(task, f"r{i}") for i, task in enumerate(tasks)]
    answers = drive(pair.make(shared_commit=shared_commit, kv_cache_tokens=1024), requests)
    seen: Counter[str] = Counter()
    for i, task in enumerate(tasks):
        answer, run = answers[f"r{i}"], llada2_1(pair.reference, task)
        if not agrees(answer, run):
            seen["near ties"] += 1
            continue
        stats, saved = answer.finished.stats, run.commits if shared_commit else 0
        assert (stats.passes, stats.denoising_steps) == (run.passes - saved, run.denoising_steps), task
        assert stats.edited_tokens == run.edited, task
        seen.update({run.reason: 1, "commits": run.commits, "edited": run.edited, "blocks": stats.blocks})
    return seen


@pytest.mark.parametrize("shared_commit", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_writes_what_the_published_loop_writes(block_pairs: Pairs, sampling: str, shared_commit: bool) -> None:
    """At temperature 0, and with the same noise in both at 0.8: the penalties of a token do not count itself."""
    tasks = list(edit_tasks(COUNTS[sampling], SAMPLINGS[sampling]))[shared_commit::2]
    seen = held_against_the_loop(block_pairs(NAME, "float64"), tasks, shared_commit=shared_commit)
    assert min(seen["stop"], seen["length"], seen["commits"]) > len(tasks) // 20
    assert seen["edited"] > len(tasks)
    assert not seen["near ties"]


def test_writes_it_in_single_precision_too(block_pairs: Pairs) -> None:
    tasks = list(edit_tasks(24, SAMPLINGS["greedy"] + SAMPLINGS["sampled"]))
    seen = held_against_the_loop(block_pairs(NAME, "float32"), tasks, shared_commit=True)
    assert seen["edited"] > len(tasks)
    assert seen["near ties"] <= len(tasks) // 10


@pytest.mark.parametrize("order", ORDERS["llada2"])
def test_without_editing_it_writes_what_llada2_0_would(block_pairs: Pairs, order: str) -> None:
    """`editing` "off": the same requests as a LLaDA2.0 would get."""
    seen = check(block_pairs(NAME, "float64"), order, 40, shared_commit=True)
    assert min(seen["stop"], seen["length"], seen["commits"]) > 5


def test_a_block_that_stays_as_it_is_needs_no_commit(block_pairs: Pairs) -> None:
    """The pass that found nothing to edit has encoded the block: another one for its KV would be lost time."""
    engine = block_pairs(NAME, "float64").make(shared_commit=False)
    phases: Counter[Phase] = Counter()
    forward = engine.runner.forward

    def watching(plan: Any) -> Any:
        phases.update(span.phase for span in plan.spans)
        return forward(plan)

    engine.runner.forward = watching  # type: ignore[method-assign]
    request = ask(
        "r", random_prompt(9), "diffusion", block_length=LENGTH, max_tokens=40, threshold=0.7, edit_threshold=0.9,
        max_post_steps=64, ignore_eos=True,
    )  # fmt: skip
    answer = drive(engine, [request])["r"]
    assert (len(answer.tokens), phases[Phase.COMMIT]) == (40, 0)
    assert answer.finished.stats.blocks == 6


def test_the_log_probabilities_are_those_of_the_token_that_stays(block_pairs: Pairs) -> None:
    """Of an edited token: from the step that edited it last."""
    pair = block_pairs(NAME, "float64")
    for task in edit_tasks(12, SAMPLINGS["greedy"]):
        task = replace(task, sampling=Sampling(logprobs=2))
        answer, run = drive(pair.make(), [edit_request(task)])["r"], llada2_1(pair.reference, task)
        assert [entry.token_id for entry in logprobs_of(answer)] == answer.tokens
        for entry, row in zip(logprobs_of(answer), run.logprobs, strict=False):
            assert entry.logprob == pytest.approx(row[entry.token_id], abs=1e-9)


def watched_answers(engine: Engine, requests: list[Request]) -> dict[str, Answer]:
    """Runs requests; after every pass, what a sequence holds as settled still begins with what it held before."""
    answers: dict[str, Answer] = {}
    settled: dict[str, list[int]] = {}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        running = list(engine.scheduler.running)
        events, _ = engine.step()
        collect(events, answers)
        for seq in running:
            before = settled.get(seq.request.request_id, [])
            assert seq.token_ids[: len(before)] == before, "what had settled was changed"
            settled[seq.request.request_id] = list(seq.token_ids)
            block = seq.block
            if block is not None and seq.status is not Status.FINISHED:
                assert block.token_ids[: block.num_settled] == seq.token_ids[block.start :][: block.num_settled]
                whole = (len(block), max(0, seq.num_prompt - block.start))
                assert block.num_settled in whole, "a part of a block settled before its end"
    return answers


@settings(
    max_examples=15, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_what_has_settled_is_never_withdrawn(block_pairs: Pairs, data: st.DataObject) -> None:
    """Text that a client was given as final would change behind its back. In a pool so small that requests are
    preempted, too; drafts, where edits show, begin where the settled text ends."""
    requests = []
    for i in range(data.draw(st.integers(1, 3))):
        threshold, edit_threshold = data.draw(st.sampled_from(THRESHOLDS))
        requests.append(
            ask(
                f"r{i}", random_prompt(data.draw(st.integers(1, 17)), i), "diffusion", block_length=LENGTH,
                max_tokens=data.draw(st.integers(1, 18)), threshold=threshold, edit_threshold=edit_threshold,
                max_post_steps=data.draw(st.integers(0, 3)), temperature=data.draw(st.sampled_from((0.0, 0.8))),
                include_drafts=True, seed=i,
            )
        )  # fmt: skip
    pool = {"kv_cache_tokens": data.draw(st.sampled_from((64, 128, 512))), "page_size": 8, "max_model_len": 48}
    engine = block_pairs(NAME, "float64").make(
        **pool, max_block_length=LENGTH, max_infill_window=0, max_batch_tokens=64
    )
    answers = watched_answers(engine, requests)
    for request in requests:
        answer = answers[request.request_id]
        boundary = len(request.prompt_token_ids)
        for event in answer.events:
            if isinstance(event, TokensSettled):
                assert (boundary == len(request.prompt_token_ids)) or boundary % LENGTH == 0
                boundary += len(event.token_ids)
            elif isinstance(event, DraftUpdated):
                begun = boundary // LENGTH * LENGTH
                assert len(event.token_ids) <= begun + LENGTH - boundary


def test_drafts_show_the_edits(block_pairs: Pairs) -> None:
    """A token that a draft shows, and the next draft of the same block shows otherwise, is an edit; all are seen."""
    pair, edits = block_pairs(NAME, "float64"), 0
    for task in edit_tasks(12, SAMPLINGS["greedy"]):
        task = replace(task, ignore_eos=True, max_tokens=16, prompt=random_prompt(8))
        answer = drive(pair.make(), [edit_request(task, include_drafts=True)])["r"]
        shown = sum(
            token not in (None, other)
            for one, next_one in pairwise(answer.drafts)
            if one.block == next_one.block and next_one.token_ids
            for token, other in zip(one.token_ids, next_one.token_ids, strict=True)
        )
        # What the step that settles a block has edited is in no draft: its tokens are the text.
        assert shown <= answer.finished.stats.edited_tokens
        edits += shown
    assert edits > 20
