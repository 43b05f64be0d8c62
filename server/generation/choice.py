"""One choice of an answer while it forms: the engine's events go in, text, log-probabilities and drafts come out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from engine.events import (
    DraftUpdated,
    Finished,
    GenerationEvent,
    GenerationStats,
    PromptScored,
    TokenLogprob,
    TokensSettled,
)
from server.formats.parts import OutputParser, Part, PlainText, ToolCallStart, text_of, thought_of
from server.generation.job import Job
from server.generation.unmasked import UnmaskedToken, unmasked_tokens
from server.text.detokenizer import IncrementalDecoder, StopFinder
from server.text.tokenizer import Tokenizer

MASK_CHARACTER = "\u2592"
"""Stands for a masked token in the text of a draft."""


@dataclass(slots=True)
class ScoredToken:
    """A token with its log-probabilities."""

    scores: TokenLogprob
    offset: int
    """Where its text begins in the answer, or in the prompt."""
    of_prompt: bool = False
    """It is a token of the echoed prompt, which comes before the answer."""


class DraftToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One position of a draft. Both are null where it is masked; a token that no confidence chose has none."""

    text: str | None
    confidence: float | None


class Draft(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tokens of the open block that are not settled yet."""

    text: str
    block: int
    step: int
    masked: int
    length: int
    tokens: list[DraftToken]


@dataclass(slots=True)
class Delta:
    """The news about a choice since it was last asked for."""

    index: int
    parts: list[Part] = field(default_factory=list)
    tokens: list[ScoredToken] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    """All tokens, where their ids are told."""
    unmasked: list[UnmaskedToken] = field(default_factory=list)
    """All tokens, where it is told how they were unmasked."""
    drafted: bool = False
    """There is a newer draft."""
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """The stop string or token that the client asked for and that ended the answer."""

    @property
    def text(self) -> str:
        """The visible text of the parts."""
        return text_of(self.parts)


class ChoiceState:
    """Follows one choice. Events are fed as they arrive; `take` hands out the news since the last call."""

    def __init__(self, index: int, job: Job, tokenizer: Tokenizer) -> None:
        choice = job.choices[index]
        self.index = index
        self.stats = GenerationStats()
        """Totals so far. Tokens count up to the one that completed a stop string, whatever the engine made beyond."""
        self.text = ""
        """Everything settled and safe to show, as it was generated."""
        self.thoughts = ""
        """What of it is reasoning."""
        self.reasoning_tokens = 0
        """Tokens that were generated while the answer was reasoning."""
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.error: str | None = None
        self._tokenizer = tokenizer
        before = choice.request.prompt_token_ids if job.continues_prompt else ()
        self._decoder = IncrementalDecoder(tokenizer.texts, before, skip_special_tokens=job.skips_control_tokens)
        self._stop = StopFinder(job.stops, include=job.include_stop)
        self._min_tokens = choice.request.sampling.min_tokens
        self._told_token_ids = job.told_token_ids
        self._num_tokens = 0  # of the answer, fed so far
        reading = job.reading
        self._parser: OutputParser = PlainText() if reading is None else reading.new_parser()
        self._markers: Mapping[int, str] = {}
        if reading is not None and job.skips_control_tokens:  # else the decoder spells them
            self._markers = reading.markers
        self._visible: str | None = None if reading is None else ""  # None: the text itself
        self._marked = 0  # characters of markers, which the decoder does not count
        self._has_called = False
        self._end_token_ids = job.end_token_ids
        self._parts: list[Part] = []  # not handed out yet
        self._scored: list[ScoredToken] = []  # not handed out yet
        self._token_ids: list[int] | None = [] if job.tells_token_ids else None  # not handed out yet
        self._unmasked: list[UnmaskedToken] | None = [] if job.tells_unmasking else None  # not handed out yet
        self._prompt_offsets = list(choice.echo.offsets)  # of the tokens whose scores have not come yet
        self._prompt: list[ScoredToken] = []  # not handed out yet
        if self._prompt_offsets:  # the first token of a prompt follows nothing, so it has no probability
            self._feed_prompt([TokenLogprob(choice.request.prompt_token_ids[0], math.nan, [])])
        self.prompt_scores: list[TokenLogprob] | None = None if job.prompt_logprobs is None else []
        """Of the prompt's tokens but the first, where they are told."""
        self._draft: DraftUpdated | None = None
        self._draft_is_new = False

    @property
    def visible(self) -> str:
        """What of the text is content: neither reasoning nor calls of tools."""
        return self.text if self._visible is None else self._visible

    @property
    def is_thinking(self) -> bool:
        """The answer is reasoning."""
        return self._parser.is_thinking

    @property
    def done(self) -> bool:
        """Nothing more will come."""
        return self.finish_reason is not None or self.error is not None

    def feed(self, event: GenerationEvent) -> None:
        """Takes one event in. After the end, events are ignored: they were sent before an abort arrived."""
        if self.done:
            return
        if isinstance(event, DraftUpdated):
            self._draft, self._draft_is_new = event, True
            return
        if isinstance(event, PromptScored):
            self._feed_prompt(event.logprobs)
            if self.prompt_scores is not None:
                self.prompt_scores += event.logprobs
            return
        self.stats = event.stats
        self._draft_is_new = self._draft_is_new or self._draft is not None
        self._draft = None  # it showed tokens that have settled now
        if isinstance(event, TokensSettled):
            before = self._num_tokens
            self._feed_tokens(event)
            if self._token_ids is not None:  # a stop string may have ended the answer before the last of them
                self._token_ids += event.token_ids[: self._num_tokens - before]
            if self._unmasked is not None:
                told = event.token_ids[: self._num_tokens - before]
                self._unmasked += unmasked_tokens(self._tokenizer.texts, told, event.unmasking)
        elif isinstance(event, Finished):
            self._finish(event)

    def take(self) -> Delta | None:
        """The news, or None where there is none. Log-probabilities come with the text they belong to."""
        parts, self._parts = self._parts, []
        shown, released = len(self.text), len(self._scored)
        if not self.done:
            released = next((n for n, token in enumerate(self._scored) if token.offset >= shown), released)
        tokens, self._scored = self._scored[:released], self._scored[released:]
        if self._prompt and (self.done or self.stats.completion_tokens):  # whole, with the first of the answer
            tokens, self._prompt = self._prompt + tokens, []
        drafted, self._draft_is_new = self._draft_is_new, False
        if not (parts or tokens or drafted or self.done):
            return None
        delta = Delta(self.index, parts, tokens, [], [], drafted, self.finish_reason, self.stop_reason)
        if self._token_ids:
            delta.token_ids, self._token_ids = self._token_ids, []
        if self._unmasked:
            delta.unmasked, self._unmasked = self._unmasked, []
        return delta

    def draft(self) -> Draft | None:
        """The newest draft. Text held back because of a stop string or half a character stands in front of it."""
        event = self._draft
        if event is None:
            return None
        tokens = [
            DraftToken(None if token is None else self._shown([token]), confidence)
            for token, confidence in zip(event.token_ids, event.confidences, strict=True)
        ]
        masked = sum(token is None for token in event.token_ids)
        return Draft(self._draft_text(event), event.block, event.step, masked, event.length, tokens)

    # -- inside -------------------------------------------------------------------------------------------------

    def _feed_prompt(self, scores: list[TokenLogprob]) -> None:
        offsets, self._prompt_offsets = self._prompt_offsets[: len(scores)], self._prompt_offsets[len(scores) :]
        self._prompt += [ScoredToken(score, at, of_prompt=True) for score, at in zip(scores, offsets, strict=False)]

    def _feed_tokens(self, event: TokensSettled) -> None:
        scores: Sequence[TokenLogprob | None] = event.logprobs or [None] * len(event.token_ids)
        for token_id, score in zip(event.token_ids, scores, strict=True):
            self._num_tokens += 1
            if score is not None:
                self._scored.append(ScoredToken(score, self._decoder.offset + self._marked))
            plain = self._visible is None
            ended = self._release(self._decoder.step(token_id)) if plain else self._read(token_id)
            if ended:
                return

    def _read(self, token_id: int) -> bool:
        """As `_release` of the token's text, where the answer is taken apart."""
        thinking = self._parser.is_thinking
        marker = self._markers.get(token_id, "")
        self._marked += len(marker)
        ended = self._release(self._decoder.step(token_id) + marker)
        self.reasoning_tokens += thinking or self._parser.is_thinking
        return ended

    def _release(self, text: str) -> bool:
        """Shows as much of new text as is safe. Returns whether a stop string ended the answer."""
        safe, stop = self._stop.feed(text, active=self._num_tokens > self._min_tokens)
        self._show(safe)
        if stop is None:
            return False
        self._end("stop", stop)
        self._scored = [token for token in self._scored if token.offset < len(self.text)]
        self.stats = msgspec.structs.replace(self.stats, completion_tokens=self._num_tokens)
        return True

    def _show(self, text: str) -> None:
        if text:
            self.text += text
            self._tell(self._parser.feed(text))

    def _tell(self, parts: list[Part]) -> None:
        self._parts += parts
        if self._visible is not None:
            self._visible += text_of(parts)
            self.thoughts += thought_of(parts)
            self._has_called = self._has_called or any(isinstance(part, ToolCallStart) for part in parts)

    def _end(self, reason: str, stop_reason: str | int | None = None) -> None:
        self._tell(self._parser.flush())
        self.finish_reason = "tool_calls" if reason == "stop" and self._has_called else reason
        self.stop_reason = stop_reason

    def _finish(self, event: Finished) -> None:
        if event.reason in ("error", "abort"):
            self.error = event.error or "The engine ended this request."
            return
        if not self._release(self._decoder.flush()):
            self._show(self._stop.flush())
            told = event.stop_token_id if event.stop_token_id in self._told_token_ids else None
            self._end(event.reason, told)
            if self._token_ids is not None and event.reason == "stop" and event.stop_token_id is not None:
                self._token_ids.append(event.stop_token_id)
            if self._unmasked is not None and event.stop_token_id is not None and event.stop_unmasking is not None:
                stop, how = [event.stop_token_id], [event.stop_unmasking]
                self._unmasked += unmasked_tokens(self._tokenizer.texts, stop, how)

    def _draft_text(self, event: DraftUpdated) -> str:
        runs: list[list[int]] = [[]]  # of tokens between masks
        for token in event.token_ids:
            if token in self._end_token_ids:
                break  # nothing beyond the end will be part of the answer
            if token is None:
                runs.append([])
            else:
                runs[-1].append(token)
        first = self._decoder.preview(runs[0]).replace("\ufffd", MASK_CHARACTER)
        return self._stop.held + MASK_CHARACTER.join([first, *map(self._shown, runs[1:])])

    def _shown(self, token_ids: list[int]) -> str:
        """Text of some tokens within the answer; half characters look like masks."""
        return self._tokenizer.texts.decode_inner(token_ids).replace("\ufffd", MASK_CHARACTER) if token_ids else ""
