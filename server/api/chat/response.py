"""The response objects of POST /v1/chat/completions, and their writer."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from server.api.responses import (
    Count,
    DiffusionMeta,
    Ending,
    FinishReason,
    Response,
    StopReason,
    Usage,
    finite,
    usage_of,
)
from server.api.writer import OpenAIWriter, ended_by
from server.generation.choice import Draft, ScoredToken
from server.generation.generation import Generation
from server.generation.parts import Part, text_of


class TokenLogprob(Response):
    """A token and its log-probability. `bytes` are its UTF-8 bytes, null where the tokenizer does not say."""

    token: str
    logprob: float
    bytes: list[Count] | None


class ScoredTokenLogprob(Response):
    """A token of the answer, and the likeliest tokens in its place."""

    token: str
    logprob: float
    bytes: list[Count] | None
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Response):
    """Log-probabilities of the answer's tokens."""

    content: list[ScoredTokenLogprob]
    refusal: None


class ChatMessage(Response):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Response):
    """One answer."""

    index: Count
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: StopReason


class ChatCompletion(Response):
    """The answer to a chat request that is not streamed."""

    id: str
    object: Literal["chat.completion"]
    created: Count
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatMessageDelta(Response):
    """What is new in the assistant's message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatDelta(Response):
    """The news about one answer."""

    index: Count
    delta: ChatMessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: StopReason | UnsetType = UNSET
    """Only beside a finish_reason."""
    draft: Draft | UnsetType | None = UNSET
    """Tokens that are not settled yet; only with stream_options.include_drafts, where they changed."""


class ChatCompletionChunk(Response):
    """One event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: Count
    model: str
    choices: list[ChatDelta]
    diffusion_meta: DiffusionMeta | UnsetType = UNSET
    usage: Usage | UnsetType | None = UNSET


class ChatWriter(OpenAIWriter[ChatLogprobs, ChatDelta]):
    """Writes the answer of a chat."""

    def whole(self, generation: Generation, tokens: list[list[ScoredToken]]) -> ChatCompletion:
        """See AnswerWriter."""
        choices = [
            ChatChoice(
                index=state.index,
                message=ChatMessage(role="assistant", content=state.text, refusal=None),
                logprobs=self.logprobs(state.index, scored),
                finish_reason=ended_by(state),
                stop_reason=state.stop_reason,
            )
            for state, scored in zip(generation.choices, tokens, strict=True)
        ]
        job = self.job
        return ChatCompletion(
            id=job.id, object="chat.completion", created=job.created, model=job.model, choices=choices,
            usage=usage_of(generation),
        )  # fmt: skip

    def logprobs(self, index: int, tokens: list[ScoredToken]) -> ChatLogprobs | None:
        """See OpenAIWriter."""
        if self.job.logprobs is None:
            return None
        content = []
        for token in tokens:
            text, raw = self._spelling(token.scores.token_id)
            top = []
            for token_id, logprob in token.scores.top:
                other, other_bytes = self._spelling(token_id)
                top.append(TokenLogprob(token=other, logprob=finite(logprob), bytes=other_bytes))
            logprob = finite(token.scores.logprob)
            content.append(ScoredTokenLogprob(token=text, logprob=logprob, bytes=raw, top_logprobs=top))
        return ChatLogprobs(content=content, refusal=None)

    def _spelling(self, token_id: int) -> tuple[str, list[int] | None]:
        texts = self.tokenizer.texts
        return texts.display(token_id), texts.token_bytes(token_id)

    def chunk_choice(
        self,
        index: int,
        parts: list[Part],
        logprobs: ChatLogprobs | None,
        ending: Ending | None,
        draft: Draft | UnsetType | None,
    ) -> ChatDelta:
        """See OpenAIWriter. The role comes with the first text, so that the time to first token is honest."""
        text = text_of(parts)
        opens = bool(text or ending is not None) and self.begin(index)
        told = text or opens or ending is None
        delta = ChatMessageDelta(role="assistant" if opens else UNSET, content=text if told else UNSET)
        return ChatDelta(
            index=index,
            delta=delta,
            logprobs=logprobs,
            finish_reason=None if ending is None else ending.finish_reason,
            stop_reason=UNSET if ending is None else ending.stop_reason,
            draft=draft,
        )

    def chunk_object(
        self,
        choices: list[ChatDelta],
        usage: Usage | UnsetType | None = UNSET,
        diffusion_meta: DiffusionMeta | UnsetType = UNSET,
    ) -> ChatCompletionChunk:
        """See OpenAIWriter."""
        job = self.job
        return ChatCompletionChunk(
            id=job.id, object="chat.completion.chunk", created=job.created, model=job.model, choices=choices,
            diffusion_meta=diffusion_meta, usage=usage,
        )  # fmt: skip
