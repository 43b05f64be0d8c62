"""Grammars from clients are compiled where that can hurt nobody. If a test here fails, one client with a hostile or
merely unlucky schema takes the server's memory, its processor or its engine away from everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from engine.config import EngineInfo
from engine.models.files import model_directory
from engine.request import MAX_REGEX_LENGTH, MAX_SCHEMA_BYTES, Grammar
from server.engine_link.grammar_checker import GrammarChecker
from server.http.errors import BadRequest, Overloaded, Unavailable

pytestmark = pytest.mark.anyio

INFO = EngineInfo(
    family="some_family", vocab_size=1643, max_model_len=1024, mask_token_id=5, banned_token_ids=(5, 0), bos_token_id=1,
    end_token_ids=(2,), decodings=("ar", "diffusion", "speculative", "auto"), default_decoding="auto", block_length=32,
    max_block_length=64, max_infill_window=64, page_size=16, num_pages=64, dtype="float32", device="cpu",
    num_parameters=1,
)  # fmt: skip
OBJECT = Grammar(kind="json_object")


def schema(value: Any) -> Grammar:
    return Grammar(kind="json_schema", source=json.dumps(value))


def chain(length: int, link: Any) -> Grammar:
    """References `length` deep."""
    links = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(length)}
    return schema({"$defs": {**links, f"d{length}": {}}, "$ref": "#/$defs/d0"})


SLOW = schema({"allOf": [{"type": "string", "pattern": f"a{i}.*b"} for i in range(60)]})
"""Minutes: an automaton for sixty patterns at once."""
HUNGRY = schema(
    {"allOf": [{"anyOf": [{"type": "object", "properties": {f"x{i}": {"type": "integer"}}} for i in range(3)]}] * 8}
)
"""Hundreds of megabytes: three alternatives to the power of eight."""


def checker(**options: Any) -> GrammarChecker:
    return GrammarChecker(INFO, model_directory("builtin"), **({"seconds": 20.0} | options))


@pytest.fixture
async def patient(anyio_backend: str) -> AsyncIterator[GrammarChecker]:
    made = checker()
    yield made
    await made.close()


def pid(made: GrammarChecker) -> int | None:
    return made._process.pid if made._process is not None else None


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


async def refusal(made: GrammarChecker, grammar: Grammar) -> BadRequest:
    with pytest.raises(BadRequest) as refused:
        await made.check(grammar, "response_format")
    assert refused.value.param == "response_format"
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 300
    return refused.value


async def test_what_can_be_followed_passes(patient: GrammarChecker) -> None:
    """Structured output would not work at all."""
    for grammar in (
        OBJECT,
        schema({"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"format": "uuid"}}}),
        Grammar(kind="regex", source=r"\d{3}-\d{4}"),
        Grammar(kind="choice", source='["yes", "no"]'),
    ):
        await patient.check(grammar)


@pytest.mark.parametrize(
    ("grammar", "part"),
    [
        (schema({"type": "strin"}), "strin"),
        (schema({"$ref": "https://example.com/x"}), "example.com"),
        (Grammar(kind="json_schema", source="[" * 60000), "JSON object"),
        (Grammar(kind="regex", source="(" * 2000 + ")" * 2000), "nest"),
        (Grammar(kind="regex", source="(a*)" * 1000), "too complex"),
        (schema({"type": "string", "pattern": "^(ab|c)*$", "minLength": 3000}), "too complex"),
        (schema({"properties": {f"property{i}": {} for i in range(600)}}), "too complex"),
        (Grammar(kind="regex", source="((a{1000}){1000}){9}" * 9), None),
        (chain(1400, lambda link: {"items": link}), None),
        (chain(1000, lambda link: {"anyOf": [link]}), None),
        (chain(550, lambda link: {"properties": {"a": link, "b": link}}), None),
    ],
)  # fmt: skip
async def test_hostile_grammars_are_borne_or_refused_in_one_line(
    patient: GrammarChecker, grammar: Grammar, part: str | None
) -> None:
    """Deep nesting would crash a process, or a mistake in a schema be answered with a riddle."""
    if part is None:
        await patient.check(grammar)
    else:
        assert part in (await refusal(patient, grammar)).message
    await patient.check(OBJECT)


async def test_a_grammar_that_takes_too_long_is_killed_and_the_next_one_served() -> None:
    """One schema would keep a processor busy for ever and all structured output waiting."""
    made = checker(seconds=1.0)
    await made.check(OBJECT)
    first, started = pid(made), time.monotonic()
    assert "longer than 1 seconds" in (await refusal(made, SLOW)).message
    assert time.monotonic() - started < 4
    assert pid(made) is None
    started = time.monotonic()
    await refusal(made, SLOW)
    assert time.monotonic() - started < 0.5, "the same schema was tried again at once"
    await made.check(Grammar(kind="choice", source='["a"]'))
    assert pid(made) not in (None, first)
    assert first is not None
    assert not is_running(first), "the killed worker is still there"
    await made.close()


async def test_a_grammar_that_takes_too_much_memory_dies_alone() -> None:
    """The machine would run out of memory, and the kernel choose whom to kill."""
    made = checker(memory_bytes=48 * 2**20)
    assert "memory" in (await refusal(made, HUNGRY)).message
    await made.check(OBJECT)
    await made.close()


async def test_verdicts_are_remembered_but_not_without_end() -> None:
    """Every request would pay for compilation, or a client with many schemas would fill the memory."""
    made = checker(cache_size=3)
    wrong = schema({"type": "strin"})
    await made.check(OBJECT)
    await refusal(made, wrong)
    made.kill()
    await made.check(OBJECT)
    await refusal(made, wrong)
    assert pid(made) is None, "a known grammar was compiled again"
    for i in range(5):
        await made.check(Grammar(kind="choice", source=f'["{i}"]'))
    assert len(made._verdicts) == 3
    await made.close()


async def test_size_is_bounded_before_anything_is_done() -> None:
    """Megabytes of schema would be hashed, sent and parsed before they are refused."""
    made = checker()
    for grammar, part in (
        (Grammar(kind="regex", source="a" * (MAX_REGEX_LENGTH + 1)), str(MAX_REGEX_LENGTH)),
        (Grammar(kind="json_schema", source="é" * (MAX_SCHEMA_BYTES // 2 + 1)), str(MAX_SCHEMA_BYTES)),
        (Grammar(kind="choice", source=" " * (MAX_SCHEMA_BYTES + 1)), str(MAX_SCHEMA_BYTES)),
    ):
        assert part in (await refusal(made, grammar)).message
    assert pid(made) is None
    await made.close()


async def test_no_more_wait_than_there_is_room_for() -> None:
    """Requests with new schemas would pile up without end behind a slow one."""
    made = checker(seconds=1.0, max_waiting=2)
    waiting = [asyncio.create_task(made.check(grammar)) for grammar in (SLOW, OBJECT)]
    await asyncio.sleep(0.05)
    with pytest.raises(Overloaded):
        await made.check(Grammar(kind="choice", source='["a"]'))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], BadRequest)
    assert results[1] is None
    await made.close()


async def test_without_a_file_descriptor_left_a_client_is_told_to_come_back() -> None:
    """The client would be told of a fault of the server's that nobody can find, and stay away."""
    made = checker()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, before[1]))
    held: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        for _ in range(2):
            with pytest.raises(Unavailable) as refused:
                await made.check(OBJECT)
            assert (refused.value.status, refused.value.code) == (503, "grammar_unavailable")
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    await made.check(OBJECT)
    await made.close()


async def test_a_client_that_leaves_does_not_leave_its_answer_to_the_next() -> None:
    """The next client would get the verdict on somebody else's schema."""
    made = checker()
    await made.check(OBJECT)
    leaving = asyncio.create_task(made.check(SLOW))
    await asyncio.sleep(0.2)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await refusal(made, schema({"type": "strin"}))
    await made.check(Grammar(kind="choice", source='["a"]'))
    await made.close()


def test_a_worker_never_outlives_its_parent() -> None:
    """An orphan would burn a processor after the server is gone, and hold on to what it inherited."""
    tokenizer = model_directory("builtin") / "tokenizer.json"
    worker = [sys.executable, "-m", "engine.grammar.worker", f"--tokenizer={tokenizer}", "--vocab-size=1643"]
    worker += ["--end-token-id=2", "--mask-token-id=5", "--memory-bytes=1073741824", "--cpu-seconds=1"]
    done = subprocess.run(worker, input=msgspec.json.encode(OBJECT) + b"\n", capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"null\nnull\n", b"")
    killed = subprocess.run(worker, input=msgspec.json.encode(SLOW) + b"\n", capture_output=True, timeout=120)
    assert killed.returncode in (-signal.SIGXCPU, -signal.SIGKILL)


async def test_a_model_without_a_tokenizer_says_so(tmp_path: Any) -> None:
    """Clients would be told to try again what can never work, or be shown a path."""
    made = GrammarChecker(INFO, tmp_path)
    assert (await refusal(made, OBJECT)).message == "This model's tokenizer cannot be used with grammars."
    await made.close()
