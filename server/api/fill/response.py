"""The answers of POST /v1/fim/completions and POST /infill, and their writers."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from server.api.responses import Count, DiffusionMeta, DiffusionUsage, Ending, FinishReason, Response, Usage, usage_of
from server.api.writer import OpenAIWriter, ended_by
from server.formats.parts import Part, text_of
from server.generation.choice import ChoiceState, Delta, Draft, ScoredToken
from server.generation.generation import Generation, WholeChoice
from server.generation.job import Job
from server.generation.sse import sse_event
from server.generation.unmasked import UnmaskedToken
from server.generation.writer import AnswerWriter


class FimMessage(Response):
    """What fills the gap, as a message."""

    role: Literal["assistant"]
    content: str
    tool_calls: None = None


class FimChoice(Response):
    """One filling. `message` and `text` hold the same: clients read one or the other."""

    index: Count
    message: FimMessage
    text: str
    finish_reason: FinishReason


class FimCompletion(Response):
    """The answer to a request to fill in that is not streamed."""

    id: str
    object: Literal["chat.completion"]
    created: Count
    model: str
    choices: list[FimChoice]
    usage: Usage


class FimMessageDelta(Response):
    """What is new in the message."""

    content: str
    role: Literal["assistant"] | UnsetType = UNSET


class FimDelta(Response):
    """The news about one filling."""

    index: Count
    delta: FimMessageDelta
    text: str
    finish_reason: FinishReason | None
    draft: Draft | UnsetType | None = UNSET
    """Tokens that are not settled yet; only with stream_options.include_drafts, where they changed."""


class FimChunk(Response):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: Count
    model: str
    choices: list[FimDelta]
    diffusion_meta: DiffusionMeta | UnsetType = UNSET
    usage: Usage | UnsetType | None = UNSET


class FimWriter(OpenAIWriter[Response, FimDelta]):
    """Writes the answer of /v1/fim/completions."""

    def whole(self, generation: Generation, choices: list[WholeChoice]) -> FimCompletion:
        """See AnswerWriter."""
        answers = [
            FimChoice(state.index, FimMessage("assistant", state.text), state.text, ended_by(state))
            for state in (choice.state for choice in choices)
        ]
        job = self.job
        return FimCompletion(job.id, "chat.completion", job.created, job.model, answers, usage_of(generation))

    def logprobs(self, index: int, tokens: list[ScoredToken]) -> None:
        """See OpenAIWriter. There are none."""

    def chunk_choice(
        self,
        index: int,
        parts: list[Part],
        logprobs: Response | None,
        ending: Ending | None,
        draft: Draft | UnsetType | None,
        token_ids: list[int] | UnsetType = UNSET,
        unmasking: list[UnmaskedToken] | UnsetType = UNSET,
    ) -> FimDelta:
        """See OpenAIWriter. Ids of tokens, and how they were unmasked, are not told."""
        text = text_of(parts)
        opens = bool(parts or ending is not None) and self.begin(index)
        message = FimMessageDelta(text, "assistant" if opens else UNSET)
        return FimDelta(index, message, text, None if ending is None else ending.finish_reason, draft)

    def chunk_object(
        self,
        choices: list[FimDelta],
        usage: Usage | UnsetType | None = UNSET,
        diffusion_meta: DiffusionMeta | UnsetType = UNSET,
        prompt_token_ids: list[int] | UnsetType = UNSET,
    ) -> FimChunk:
        """See OpenAIWriter."""
        job = self.job
        return FimChunk(job.id, "chat.completion.chunk", job.created, job.model, choices, diffusion_meta, usage)


class InfillAnswer(Response):
    """The answer of /infill, and the last event of its stream, whose content is empty."""

    index: Literal[0]
    content: str
    model: str
    stop: Literal[True]
    stop_type: Literal["eos", "limit", "word"]
    stopping_word: str
    """The stop string that ended the content, if one did."""
    tokens_predicted: Count
    tokens_evaluated: Count
    """Tokens before and behind the gap."""
    tokens_cached: Count
    truncated: Literal[False]
    """What does not fit the context is refused."""
    diffusion: DiffusionUsage


class InfillChunk(Response):
    """An event of a stream but the last."""

    index: Literal[0]
    content: str
    stop: Literal[False]


class InfillWriter(AnswerWriter):
    """Writes the answer of /infill."""

    def __init__(self, job: Job, n_indent: int) -> None:
        """n_indent: white space that every line of the content but the first begins with."""
        self._job, self._n_indent = job, n_indent

    def whole(self, generation: Generation, choices: list[WholeChoice]) -> InfillAnswer:
        """See AnswerWriter."""
        [choice] = choices
        return self._answer(generation, choice.state, choice.state.text)

    def chunk(self, generation: Generation, delta: Delta) -> bytes:
        """See AnswerWriter."""
        return sse_event(InfillChunk(0, delta.text, False)) if delta.text else b""

    def ending(self, generation: Generation) -> bytes:
        """See AnswerWriter."""
        return sse_event(self._answer(generation, generation.choices[0], ""))

    def _answer(self, generation: Generation, state: ChoiceState, text: str) -> InfillAnswer:
        content, usage = indented(text, self._n_indent), usage_of(generation)
        word = state.stop_reason if isinstance(state.stop_reason, str) and content == text else ""
        limited = state.finish_reason == "length" or content != text
        return InfillAnswer(
            index=0,
            content=content,
            model=self._job.model,
            stop=True,
            stop_type="limit" if limited else "word" if word else "eos",
            stopping_word=word,
            tokens_predicted=usage.completion_tokens,
            tokens_evaluated=usage.prompt_tokens,
            tokens_cached=usage.prompt_tokens_details.cached_tokens,
            truncated=False,
            diffusion=usage.diffusion,
        )


def indented(text: str, least: int) -> str:
    """The text up to the first line, but its own first, that begins with less white space and is not blank."""
    if not least:
        return text
    first, *lines = text.splitlines(keepends=True) or [""]
    kept = [first]
    for line in lines:
        if line.strip() and len(line) - len(line.lstrip()) < least:
            return "".join(kept)[:-1]
        kept.append(line)
    return "".join(kept)
