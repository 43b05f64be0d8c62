"""Writes the answers of POST /v1/chat/completions: whole, and as chunks."""

from __future__ import annotations

from itertools import groupby

from msgspec import UNSET, UnsetType

from server.api.chat.response import (
    CalledFunction,
    CalledFunctionDelta,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatMessageDelta,
    ScoredTokenLogprob,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)
from server.api.responses import (
    DiffusionMeta,
    Ending,
    Usage,
    finite,
    metrics_of,
    name_by_id,
    usage_of,
)
from server.api.writer import OpenAIWriter, ended_by
from server.formats.parts import Part, ToolCallArguments, ToolCallStart, text_of, thought_of
from server.generation.choice import Draft, ScoredToken
from server.generation.generation import Generation, WholeChoice
from server.generation.unmasked import UnmaskedToken


class ChatWriter(OpenAIWriter[ChatLogprobs, ChatDelta]):
    """Writes the answer of a chat."""

    def whole(self, generation: Generation, choices: list[WholeChoice]) -> ChatCompletion:
        """See AnswerWriter."""
        answers = [
            ChatChoice(
                index=state.index,
                message=_message(parts),
                logprobs=self.logprobs(state.index, tokens),
                finish_reason=ended_by(state),
                stop_reason=state.stop_reason,
                token_ids=self.answer_ids(token_ids),
                unmasking=self.unmasking(unmasked),
            )
            for state, parts, tokens, token_ids, unmasked in choices
        ]
        job = self.job
        return ChatCompletion(
            id=job.id, object="chat.completion", created=job.created, model=job.model, choices=answers,
            usage=usage_of(generation), metrics=metrics_of(generation), prompt_token_ids=self.prompt_ids(0),
            prompt_logprobs=self.prompt_logprobs(choices[0].state),
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
        name = name_by_id(token_id) if self.job.names_by_id else texts.display(token_id)
        return name, texts.token_bytes(token_id)

    def grouped(self, parts: list[Part]) -> list[list[Part]]:
        """See OpenAIWriter. Each step of a call has a chunk of its own, as clients know it from OpenAI."""
        if self.job.reading is None:
            return [parts]
        return [list(group) for _, group in groupby(parts, key=_chunk_of)] or [[]]

    def chunk_choice(
        self,
        index: int,
        parts: list[Part],
        logprobs: ChatLogprobs | None,
        ending: Ending | None,
        draft: Draft | UnsetType | None,
        token_ids: list[int] | UnsetType = UNSET,
        unmasking: list[UnmaskedToken] | UnsetType = UNSET,
    ) -> ChatDelta:
        """See OpenAIWriter. The role comes with the first text, so that the time to first token is honest."""
        text, thought, calls = text_of(parts), thought_of(parts), _call_deltas(parts)
        opens = bool(parts or ending is not None) and self.begin(index)
        told = text or (not (thought or calls) and (opens or ending is None))
        delta = ChatMessageDelta(
            role="assistant" if opens else UNSET,
            content=text if told else UNSET,
            reasoning_content=thought or UNSET,
            tool_calls=calls or UNSET,
        )
        return ChatDelta(
            index=index,
            delta=delta,
            logprobs=logprobs,
            finish_reason=None if ending is None else ending.finish_reason,
            stop_reason=UNSET if ending is None else ending.stop_reason,
            draft=draft,
            token_ids=token_ids,
            unmasking=unmasking,
        )

    def chunk_object(
        self,
        choices: list[ChatDelta],
        usage: Usage | UnsetType | None = UNSET,
        diffusion_meta: DiffusionMeta | UnsetType = UNSET,
        prompt_token_ids: list[int] | UnsetType = UNSET,
    ) -> ChatCompletionChunk:
        """See OpenAIWriter."""
        job = self.job
        return ChatCompletionChunk(
            id=job.id, object="chat.completion.chunk", created=job.created, model=job.model, choices=choices,
            diffusion_meta=diffusion_meta, usage=usage, prompt_token_ids=prompt_token_ids,
        )  # fmt: skip


def _message(parts: list[Part]) -> ChatMessage:
    """The assistant's message as a whole."""
    arguments: dict[int, str] = {}
    for part in parts:
        if isinstance(part, ToolCallArguments):
            arguments[part.number] = arguments.get(part.number, "") + part.text
    calls = [
        ToolCall(id=part.id, type="function", function=CalledFunction(part.name, arguments.get(part.number, "")))
        for part in parts
        if isinstance(part, ToolCallStart)
    ]
    return ChatMessage(
        role="assistant",
        content=text_of(parts) or (None if calls else ""),
        refusal=None,
        reasoning_content=thought_of(parts) or UNSET,
        tool_calls=calls or UNSET,
    )


def _chunk_of(part: Part) -> tuple[type[Part], int]:
    """What the parts of one chunk have in common."""
    return type(part), part.number if isinstance(part, ToolCallStart | ToolCallArguments) else 0


def _call_deltas(parts: list[Part]) -> list[ToolCallDelta]:
    """The news about calls; the parts are of one kind, and of one call."""
    deltas: list[ToolCallDelta] = []
    pieces: dict[int, str] = {}
    for part in parts:
        if isinstance(part, ToolCallStart):
            function = CalledFunctionDelta(arguments="", name=part.name)
            deltas.append(ToolCallDelta(index=part.number, function=function, id=part.id, type="function"))
        elif isinstance(part, ToolCallArguments):
            pieces[part.number] = pieces.get(part.number, "") + part.text
    grown = [ToolCallDelta(index=at, function=CalledFunctionDelta(arguments=text)) for at, text in pieces.items()]
    return deltas + grown
