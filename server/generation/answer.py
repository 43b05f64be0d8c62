"""One choice of an answer: the engine's events in, text out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.events import (
    DraftUpdated,
    Finished,
    GenerationEvent,
    GenerationStats,
    PromptScored,
    TokenLogprob,
    TokensSettled,
)
from server.text.detokenizer import IncrementalDecoder, StopFinder
from server.text.tokenizer import Tokenizer

MASK_CHARACTER = "\u2592"
"""Stands for a masked token in the text of a draft."""


@dataclass(slots=True)
class ScoredToken:
    """A token of the answer with its log-probabilities, and where its text begins in the answer."""

    scores: TokenLogprob
    offset: int
    of_prompt: bool = False
    """Its text is the prompt's, and so is the offset; it comes before the answer."""


@dataclass(slots=True)
class DraftToken:
    """One position of a draft; both None where masked, no confidence where a token was not chosen by one."""

    text: str | None
    confidence: float | None


@dataclass(slots=True)
class Draft:
    """What is not settled yet."""

    text: str
    block: int
    step: int
    masked: int
    length: int
    tokens: list[DraftToken]


@dataclass(slots=True)
class Delta:
    """What became known about a choice since it was last looked at."""

    index: int
    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    drafted: bool = False
    """There is a newer draft."""
    finish_reason: str | None = None


class ChoiceState:
    """Follows one choice. Events are fed as they arrive; `take` hands out what has become known since."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        stops: tuple[str, ...],
        end_token_ids: frozenset[int],
        prompt_offsets: Sequence[int] = (),
        first_token_id: int = 0,
    ) -> None:
        """prompt_offsets: where in the echoed prompt each of its tokens begins, if their log-probabilities are to be
        told; `first_token_id` is the first of them, which has none."""
        self.index = index
        self.stats = GenerationStats()
        self.text = ""
        """Everything settled and safe to show."""
        self.finish_reason: str | None = None
        self.error: str | None = None
        self._tokenizer = tokenizer
        self._decoder = IncrementalDecoder(tokenizer)
        self._stop = StopFinder(stops)
        self._end_token_ids = end_token_ids
        self._decoded = 0  # characters decoded, held back ones included
        self._scored: list[ScoredToken] = []  # not handed out yet
        self._prompt_offsets = list(prompt_offsets)  # of the tokens whose scores have not come yet
        self._prompt: list[ScoredToken] = []  # not handed out yet
        if self._prompt_offsets:
            self._feed_prompt([TokenLogprob(first_token_id, math.nan, [])])
        self._taken = 0  # characters handed out
        self._draft: DraftUpdated | None = None
        self._draft_is_new = False

    @property
    def done(self) -> bool:
        """Nothing more will be known."""
        return self.finish_reason is not None or self.error is not None

    def feed(self, event: GenerationEvent) -> None:
        """Takes one event in. After the end, events are ignored: they crossed the abort on their way."""
        if self.done:
            return
        if isinstance(event, DraftUpdated):
            self._draft, self._draft_is_new = event, True
            return
        if isinstance(event, PromptScored):
            self._feed_prompt(event.logprobs)
            return
        self.stats = event.stats
        self._draft_is_new = self._draft_is_new or self._draft is not None
        self._draft = None  # it showed what has settled now
        if isinstance(event, TokensSettled):
            self._commit(event)
        elif isinstance(event, Finished):
            self._finish(event)

    def _feed_prompt(self, scores: list[TokenLogprob]) -> None:
        offsets, self._prompt_offsets = self._prompt_offsets[: len(scores)], self._prompt_offsets[len(scores) :]
        self._prompt += [ScoredToken(score, at, of_prompt=True) for score, at in zip(scores, offsets, strict=False)]

    def _commit(self, event: TokensSettled) -> None:
        scores: Sequence[TokenLogprob | None] = event.logprobs or [None] * len(event.token_ids)
        for token_id, score in zip(event.token_ids, scores, strict=True):
            if score is not None:
                self._scored.append(ScoredToken(score, self._decoded))
            text = self._decoder.step(token_id)
            self._decoded += len(text)
            if self._release(text):
                return

    def _release(self, text: str) -> bool:
        """Shows what is safe of new text. Returns whether a stop string ended the answer."""
        safe, hit = self._stop.feed(text)
        self.text += safe
        if hit:
            self.finish_reason = "stop"
            self._scored = [token for token in self._scored if token.offset < len(self.text)]
        return hit

    def _finish(self, event: Finished) -> None:
        if event.reason in ("error", "abort"):
            self.error = event.error or "The engine ended this request."
            return
        if not self._release(self._decoder.flush()):
            self.text += self._stop.flush()
            self.finish_reason = event.reason

    def take(self) -> Delta | None:
        """What is new, or None. Log-probabilities come with the text they are of."""
        text = self.text[self._taken :]
        self._taken = len(self.text)
        released = len(self._scored)
        if not self.done:
            released = next((n for n, token in enumerate(self._scored) if token.offset >= self._taken), released)
        tokens, self._scored = self._scored[:released], self._scored[released:]
        if self._prompt and (self.done or self.stats.completion_tokens):  # whole, with the first of the answer
            tokens, self._prompt = self._prompt + tokens, []
        drafted, self._draft_is_new = self._draft_is_new, False
        if not (text or tokens or drafted or self.done):
            return None
        return Delta(self.index, text, tokens, drafted, self.finish_reason)

    def draft(self) -> Draft | None:
        """The newest draft; text held back because of a stop string or a half character stands in front of it."""
        event = self._draft
        if event is None:
            return None
        tokens = [
            DraftToken(None if token is None else self._shown([token]), confidence)
            for token, confidence in zip(event.token_ids, event.confidences, strict=True)
        ]
        masked = sum(token is None for token in event.token_ids)
        return Draft(self._draft_text(event), event.block, event.step, masked, event.length, tokens)

    def _draft_text(self, event: DraftUpdated) -> str:
        parts, run = [self._stop.held], list(self._decoder.pending)
        for token in event.token_ids:
            if token in self._end_token_ids:
                break  # what a draft holds beyond its end will not be part of the answer
            if token is None:
                parts += [self._shown(run), MASK_CHARACTER]
                run = []
            else:
                run.append(token)
        return "".join([*parts, self._shown(run)])

    def _shown(self, token_ids: list[int]) -> str:
        """Text of a run; half characters look like masks."""
        return self._tokenizer.decode(token_ids).replace("\ufffd", MASK_CHARACTER) if token_ids else ""
