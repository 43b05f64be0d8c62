"""The response objects of POST /v1/completions, and their writer."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from server.api.responses import (
    Count,
    DiffusionMeta,
    Ending,
    FinishReason,
    PromptLogprobs,
    RequestMetrics,
    Response,
    StopReason,
    Usage,
    finite,
    has_logprob,
    metrics_of,
    name_by_id,
    usage_of,
)
from server.api.writer import OpenAIWriter, ended_by
from server.formats.parts import Part, text_of
from server.generation.choice import Draft, ScoredToken
from server.generation.generation import Generation, WholeChoice
from server.generation.unmasked import UnmaskedToken


class CompletionLogprobs(Response):
    """Log-probabilities, a list entry a token. The first token of an echoed prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Count]
    """Where the token's text begins in the choice's text."""


class CompletionChoice(Response):
    """One answer."""

    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    stop_reason: StopReason
    token_ids: list[Count] | UnsetType = UNSET
    """All tokens of the answer, an end token included; only with return_token_ids."""
    unmasking: list[UnmaskedToken] | UnsetType = UNSET
    """How all of them were unmasked; only with unmasking_trace."""
    prompt_token_ids: list[Count] | UnsetType = UNSET
    """The tokens of its prompt; only with return_token_ids."""
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    """Only with prompt_logprobs."""


class Completion(Response):
    """The answer to a completion request that is not streamed."""

    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    metrics: RequestMetrics | UnsetType = UNSET
    """How long it took."""


class CompletionDelta(Response):
    """The news about one answer."""

    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: StopReason | UnsetType = UNSET
    """Only beside a finish_reason."""
    draft: Draft | UnsetType | None = UNSET
    """Tokens that are not settled yet; only with stream_options.include_drafts, where they changed."""
    token_ids: list[Count] | UnsetType = UNSET
    """Further tokens of the answer; only with return_token_ids."""
    unmasking: list[UnmaskedToken] | UnsetType = UNSET
    """How further tokens were unmasked; only with unmasking_trace."""
    prompt_token_ids: list[Count] | UnsetType = UNSET
    """The tokens of the prompt, once; only with return_token_ids."""


class CompletionChunk(Response):
    """One event of a streamed completion."""

    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    choices: list[CompletionDelta]
    diffusion_meta: DiffusionMeta | UnsetType = UNSET
    usage: Usage | UnsetType | None = UNSET
    metrics: RequestMetrics | UnsetType = UNSET
    """Beside the usage of the whole request."""


class CompletionWriter(OpenAIWriter[CompletionLogprobs, CompletionDelta]):
    """Writes the answer of a completion."""

    def whole(self, generation: Generation, choices: list[WholeChoice]) -> Completion:
        """See AnswerWriter."""
        answers = [
            CompletionChoice(
                index=state.index,
                text=self.echo(state.index) + state.text,
                logprobs=self.logprobs(state.index, tokens),
                finish_reason=ended_by(state),
                stop_reason=state.stop_reason,
                token_ids=self.answer_ids(token_ids),
                unmasking=self.unmasking(unmasked),
                prompt_token_ids=self.prompt_ids(state.index),
                prompt_logprobs=self.prompt_logprobs(state),
            )
            for state, _, tokens, token_ids, unmasked in choices
        ]
        job = self.job
        return Completion(
            id=job.id, object="text_completion", created=job.created, model=job.model, choices=answers,
            usage=usage_of(generation), metrics=metrics_of(generation),
        )  # fmt: skip

    def logprobs(self, index: int, tokens: list[ScoredToken]) -> CompletionLogprobs | None:
        """See OpenAIWriter."""
        if self.job.logprobs is None:
            return None
        name, echoed = self._name, len(self.echo(index))
        return CompletionLogprobs(
            tokens=[name(token.scores.token_id) for token in tokens],
            token_logprobs=[finite(token.scores.logprob) if has_logprob(token) else None for token in tokens],
            top_logprobs=[self._likeliest(token) if has_logprob(token) else None for token in tokens],
            text_offset=[token.offset + (0 if token.of_prompt else echoed) for token in tokens],
        )

    def _name(self, token_id: int) -> str:
        return name_by_id(token_id) if self.job.names_by_id else self.tokenizer.texts.token_text(token_id)

    def _likeliest(self, token: ScoredToken) -> dict[str, float]:
        """The likeliest tokens by their text, and the chosen one, which may not be among them.

        Of tokens with the same text the likeliest has it; the others are named by their ids.
        """
        scores = token.scores
        top = scores.top[: self.job.logprobs] if token.of_prompt else scores.top
        found: dict[str, float] = {}
        for token_id, logprob in dict([*top, (scores.token_id, scores.logprob)]).items():
            text = self._name(token_id)
            found[name_by_id(token_id) if text in found else text] = finite(logprob)
        return found

    def chunk_choice(
        self,
        index: int,
        parts: list[Part],
        logprobs: CompletionLogprobs | None,
        ending: Ending | None,
        draft: Draft | UnsetType | None,
        token_ids: list[int] | UnsetType = UNSET,
        unmasking: list[UnmaskedToken] | UnsetType = UNSET,
    ) -> CompletionDelta:
        """See OpenAIWriter."""
        self.begin(index)
        return CompletionDelta(
            index=index,
            text=text_of(parts),
            logprobs=logprobs,
            finish_reason=None if ending is None else ending.finish_reason,
            stop_reason=UNSET if ending is None else ending.stop_reason,
            draft=draft,
            token_ids=token_ids,
            unmasking=unmasking,
        )

    def chunk_object(
        self,
        choices: list[CompletionDelta],
        usage: Usage | UnsetType | None = UNSET,
        diffusion_meta: DiffusionMeta | UnsetType = UNSET,
        prompt_token_ids: list[int] | UnsetType = UNSET,
    ) -> CompletionChunk:
        """See OpenAIWriter."""
        if choices:
            choices[0].prompt_token_ids = prompt_token_ids
        job = self.job
        return CompletionChunk(
            id=job.id, object="text_completion", created=job.created, model=job.model, choices=choices,
            diffusion_meta=diffusion_meta, usage=usage,
        )  # fmt: skip
