"""Writes answers the way OpenAI's completions and chats have in common; the endpoints add their choice objects."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from server.api.responses import (
    DiffusionMeta,
    Ending,
    FinishReason,
    PromptLogprobs,
    PromptTokenLogprob,
    Response,
    Usage,
    finite,
    metrics_of,
    usage_of,
)
from server.formats.parts import AnswerText, Part, Thought
from server.generation.choice import ChoiceState, Delta, Draft, ScoredToken
from server.generation.generation import Generation
from server.generation.job import Job, StreamForm
from server.generation.sse import DONE, sse_event
from server.generation.unmasked import UnmaskedToken
from server.generation.writer import AnswerWriter
from server.text.tokenizer import Tokenizer

Logprobs = TypeVar("Logprobs", bound=Response)
ChunkChoice = TypeVar("ChunkChoice", bound=Response)


class OpenAIWriter(AnswerWriter, Generic[Logprobs, ChunkChoice]):
    """The envelope, usage, drafts and endings of an answer."""

    def __init__(self, job: Job, tokenizer: Tokenizer) -> None:
        self.job = job
        self.tokenizer = tokenizer
        self.form = job.stream or StreamForm()
        self._begun: set[int] = set()  # choices of which text, or their end, has been written
        self._prompts_told: set[int] = set()  # choices of which the prompt's ids have been written

    # -- the endpoint's part ------------------------------------------------------------------------------------

    @abstractmethod
    def logprobs(self, index: int, tokens: list[ScoredToken]) -> Logprobs | None:
        """The log-probabilities of some tokens of a choice; None where they were not asked for."""

    @abstractmethod
    def chunk_choice(
        self,
        index: int,
        parts: list[Part],
        logprobs: Logprobs | None,
        ending: Ending | None,
        draft: Draft | UnsetType | None,
        token_ids: list[int] | UnsetType = UNSET,
        unmasking: list[UnmaskedToken] | UnsetType = UNSET,
    ) -> ChunkChoice:
        """The choice object of a chunk. ending: None while the choice goes on."""

    @abstractmethod
    def chunk_object(
        self,
        choices: list[ChunkChoice],
        usage: Usage | UnsetType | None = UNSET,
        diffusion_meta: DiffusionMeta | UnsetType = UNSET,
        prompt_token_ids: list[int] | UnsetType = UNSET,
    ) -> Response:
        """A chunk of a stream."""

    # -- AnswerWriter -------------------------------------------------------------------------------------------

    def chunk(self, generation: Generation, delta: Delta) -> bytes:
        """See AnswerWriter. Parts to append, or in Mercury's form the whole current text in one event."""
        state = generation.choices[delta.index]
        if self.form.diffusing:
            choice, meta = self._replacing(state, delta)
            return sse_event(self.chunk_object([choice], self._usage(generation), meta))
        first, *others = self._appending(state, delta)
        usage, prompt = self._usage(generation), self._prompt_to_tell(delta.index)
        chunks = [self.chunk_object([first], usage, prompt_token_ids=prompt)]
        chunks += [self.chunk_object([choice], usage) for choice in others]
        return b"".join(map(sse_event, chunks))

    def ending(self, generation: Generation) -> bytes:
        """See AnswerWriter. Mercury's empty chunk, the chunk with the usage, and the end of the stream."""
        data = b""
        if self.form.diffusing:
            choice = self.chunk_choice(0, [], None, None, UNSET)
            data += sse_event(self.chunk_object([choice], self._usage(generation)))
        if self.form.include_usage:
            chunk = self.chunk_object([], usage_of(generation))
            if "metrics" in chunk.__struct_fields__:
                msgspec.structs.force_setattr(chunk, "metrics", metrics_of(generation))
            data += sse_event(chunk)
        return data + DONE

    # -- inside -------------------------------------------------------------------------------------------------

    def echo(self, index: int) -> str:
        """The prompt that stands in front of a choice's answer; empty where none was asked for."""
        return self.job.choices[index].echo.text

    def prompt_ids(self, index: int) -> list[int] | UnsetType:
        """The tokens of a choice's prompt, where they are told."""
        return self.job.choices[index].request.prompt_token_ids if self.job.tells_token_ids else UNSET

    def prompt_logprobs(self, state: ChoiceState) -> PromptLogprobs | UnsetType:
        """The log-probabilities of a choice's prompt, where they are told."""
        if state.prompt_scores is None:
            return UNSET
        text, count = self.tokenizer.texts.token_text, self.job.prompt_logprobs
        told: PromptLogprobs = [None]
        for scores in state.prompt_scores:
            ranked = [(scores.token_id, scores.logprob, scores.rank)]
            ranked += [(token, logprob, place) for place, (token, logprob) in enumerate(scores.top[:count], 1)]
            entries = dict[str, PromptTokenLogprob]()
            for token, logprob, rank in ranked:
                entries.setdefault(str(token), PromptTokenLogprob(finite(logprob), rank, text(token)))
            told.append(entries)
        return told

    def answer_ids(self, token_ids: list[int]) -> list[int] | UnsetType:
        """Tokens of an answer, where they are told."""
        return token_ids if self.job.tells_token_ids else UNSET

    def unmasking(self, unmasked: list[UnmaskedToken]) -> list[UnmaskedToken] | UnsetType:
        """How tokens of an answer were unmasked, where that is told."""
        return unmasked if self.job.tells_unmasking else UNSET

    def begin(self, index: int) -> bool:
        """Whether nothing of the choice had been written before this call."""
        first = index not in self._begun
        self._begun.add(index)
        return first

    def has_begun(self, index: int) -> bool:
        """Something of the choice has been written."""
        return index in self._begun

    def grouped(self, parts: list[Part]) -> list[list[Part]]:
        """The parts that go into one chunk each; at least one group, which may be empty."""
        return [parts]

    def _appending(self, state: ChoiceState, delta: Delta) -> list[ChunkChoice]:
        index = delta.index
        draft = state.draft() if self.form.include_drafts and delta.drafted else UNSET
        logprobs = self.logprobs(index, delta.tokens)
        parts = delta.parts
        if self.echo(index) and not self.has_begun(index):
            parts = [AnswerText(self.echo(index)), *parts]
        *first, last = self.grouped(parts)
        choices = [self.chunk_choice(index, group, None, None, UNSET) for group in first]
        told = self.answer_ids(delta.token_ids), self.unmasking(delta.unmasked)
        return [*choices, self.chunk_choice(index, last, logprobs, ending_of(delta), draft, *told)]

    def _prompt_to_tell(self, index: int) -> list[int] | UnsetType:
        """The tokens of a choice's prompt, once."""
        if not self.job.tells_token_ids or index in self._prompts_told:
            return UNSET
        self._prompts_told.add(index)
        return self.prompt_ids(index)

    def _replacing(self, state: ChoiceState, delta: Delta) -> tuple[ChunkChoice, DiffusionMeta]:
        ending = ending_of(delta)
        draft = None if ending is not None or state.is_thinking else state.draft()
        text = self.echo(delta.index) + state.visible + ("" if draft is None else draft.text)
        parts: list[Part] = [AnswerText(text)] if text else []
        if state.thoughts:
            parts.append(Thought(state.thoughts))
        limit = self.job.choices[delta.index].request.max_tokens
        progress = 1.0 if ending is not None else min(state.stats.completion_tokens / limit, 1.0)
        choice = self.chunk_choice(delta.index, parts, None, ending, UNSET)
        return choice, DiffusionMeta(diffusion_content=True, diffusion_progress=round(progress, 4))

    def _usage(self, generation: Generation) -> Usage | UnsetType | None:
        if self.form.continuous_usage:
            return usage_of(generation)
        return None if self.form.include_usage else UNSET


def ending_of(delta: Delta) -> Ending | None:
    """Why the choice ended; None while it goes on."""
    reason = _openai_reason(delta.finish_reason)
    return None if reason is None else Ending(reason, delta.stop_reason)


def ended_by(state: ChoiceState) -> FinishReason:
    """The finish reason of a choice that has ended. Raises ValueError while it goes on."""
    reason = _openai_reason(state.finish_reason)
    if reason is None:
        raise ValueError("the choice has not ended")
    return reason


def _openai_reason(reason: str | None) -> FinishReason | None:
    """The finish reason as OpenAI names it; None for none. Raises ValueError for any other."""
    match reason:
        case None | "stop" | "length" | "tool_calls":
            return reason
        case _:
            raise ValueError(f"an answer cannot end by {reason!r}")
