"""Stand-ins for the engine, for tests that are about the server: no model, no process, every answer known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import engine
from engine.config import EngineConfig, EngineInfo
from engine.events import (
    Finished,
    FinishReason,
    GenerationEvent,
    GenerationStats,
    StepStats,
    TokenLogprob,
    TokensSettled,
)
from engine.messages import EngineUpdate
from engine.request import Request
from server.engine_link.in_flight import EventSink
from server.engine_link.link import EngineLink, EngineState
from server.http.errors import Unavailable
from server.text.tokenizer import Tokenizer, TokenizerFiles

BUILTIN = Path(engine.__file__).parent / "builtin"

INFO = EngineInfo(
    family="fake",
    vocab_size=1643,
    max_model_len=256,
    mask_token_id=5,
    banned_token_ids=(5, 0),
    bos_token_id=1,
    end_token_ids=(2,),
    decodings=("ar", "diffusion", "speculative", "auto"),
    default_decoding="auto",
    block_length=32,
    max_block_length=64,
    max_infill_window=128,
    page_size=16,
    num_pages=64,
    dtype="float32",
    device="cpu",
    num_parameters=1,
)

TEXT = "Once upon a time there was a gentle owl named Emma. She found a coin by the river and kept it."

Script = Callable[[Request], Iterable[GenerationEvent | None]]
"""The events of one request; None lets a moment pass without an event."""


def builtin_tokenizer(info: EngineInfo = INFO) -> Tokenizer:
    """The built-in model's tokenizer."""
    return Tokenizer(TokenizerFiles.read(BUILTIN), info)


_tokenizer: list[Tokenizer] = []


def encode(text: str) -> list[int]:
    """Token ids of plain text."""
    if not _tokenizer:
        _tokenizer.append(builtin_tokenizer())
    return _tokenizer[0].encode_text(text)


def stats_of(request: Request, tokens: int, passes: int) -> GenerationStats:
    """Totals after so many tokens and passes."""
    return GenerationStats(
        prompt_tokens=len(request.prompt_token_ids), completion_tokens=tokens, passes=passes, denoising_steps=passes
    )


def saying(
    text: str = TEXT, chunk: int = 3, ending: FinishReason = "stop"
) -> Callable[[Request], Iterator[GenerationEvent]]:
    """An engine that says this text, `chunk` tokens a pass, cut at max_tokens."""

    def script(request: Request) -> Iterator[GenerationEvent]:
        ids = encode(text)[: request.max_tokens]
        count = passes = 0
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            count, passes = count + len(part), passes + 1
            scores = None
            if request.sampling.logprobs is not None:
                top = [(token + 1, -2.0 - n) for n, token in enumerate(part[:1] * request.sampling.logprobs)]
                scores = [TokenLogprob(token, -0.5, top) for token in part]
            yield TokensSettled(
                request_id=request.request_id,
                token_ids=part,
                stats=stats_of(request, count, passes),
                logprobs=scores,
            )
        reason: FinishReason = "length" if count == request.max_tokens else ending
        yield Finished(
            request_id=request.request_id, reason=reason, stats=stats_of(request, count, passes), stop_token_id=2
        )

    return script


class FakeEngine(EngineLink):
    """An engine that follows a script in place of a process."""

    def __init__(self, script: Script | None = None, info: EngineInfo = INFO) -> None:
        super().__init__()
        self.script = script or saying()
        self.fake_info = info
        self.requests: list[Request] = []
        self.aborted: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.load = asyncio.Event()
        """Clear it before the start to keep the model loading."""
        self.load.set()

    async def start(self, config: EngineConfig) -> EngineInfo:
        await self.load.wait()
        self.info, self.state = self.fake_info, EngineState.RUNNING
        self.on_ready(True)
        return self.fake_info

    async def stop(self) -> None:
        self.state = EngineState.STOPPED
        self.fail_all(Unavailable("The server is shutting down.", "shutting_down", close=True))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def kill(self) -> None:
        self.state = EngineState.STOPPED

    def submit(self, requests: list[Request], sink: EventSink) -> None:
        self.in_flight.add(requests, sink)
        for request in requests:
            self.requests.append(request)
            task = asyncio.get_running_loop().create_task(self._run(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def abort(self, request_ids: list[str]) -> None:
        self.abort_in_engine(self.in_flight.drop(request_ids))

    def abort_in_engine(self, request_ids: list[str]) -> None:
        self.aborted += request_ids

    async def _run(self, request: Request) -> None:
        for event in self.script(request):
            await asyncio.sleep(0)
            if request.request_id not in self.in_flight:
                return
            events = [] if event is None else [event]
            self.deliver(EngineUpdate(events, StepStats(running=1, waiting=0, free_pages=60, num_pages=64)))


def hanging(request: Request) -> Iterator[GenerationEvent]:
    """An engine that says one thing and then nothing, for ever."""
    yield TokensSettled(request_id=request.request_id, token_ids=encode("Once"), stats=stats_of(request, 1, 1))
