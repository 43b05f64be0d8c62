"""OpenAI's response objects: one form for completions, one for chats, and the usage both carry."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any

from server.generation.answer import ChoiceState, Delta, ScoredToken
from server.generation.job import Job
from server.generation.run import Generation
from server.text.tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


def usage(generation: Generation) -> dict[str, Any]:
    """Tokens so far, and what diffusion did for them. A prompt counts once, however many choices it has."""
    job, stats = generation.job, [choice.stats for choice in generation.choices]
    first_of_prompt = {plan.prompt_index: index for index, plan in reversed(list(enumerate(job.choices)))}
    prompt = sum(
        len(job.choices[index].request.prompt_token_ids) + len(job.choices[index].request.suffix_token_ids or ())
        for index in first_of_prompt.values()
    )
    completion = sum(choice.completion_tokens for choice in stats)
    passes = sum(choice.passes for choice in stats)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(stats[i].cached_tokens for i in first_of_prompt.values())},
        "diffusion": {
            "decoding": job.decoding,
            "passes": passes,
            "denoising_steps": sum(choice.denoising_steps for choice in stats),
            "tokens_per_pass": round(completion / passes, 2) if passes else 0.0,
            "draft_tokens": sum(choice.draft_tokens for choice in stats),
            "accepted_draft_tokens": sum(choice.accepted_draft_tokens for choice in stats),
            "seed": job.seed,
        },
    }


def _clamped(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)


def _is_known(token: ScoredToken) -> bool:
    """False for the first token of a prompt, which follows nothing."""
    return not math.isnan(token.scores.logprob)


class Form(ABC):
    """How an endpoint writes its answers. One per request: a stream's first chunks differ from the rest."""

    object: str
    chunk_object: str

    def __init__(self, job: Job, tokenizer: Tokenizer) -> None:
        self.job = job
        self.tokenizer = tokenizer
        self._begun: set[int] = set()  # choices whose first chunk has been written

    def envelope(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        """What surrounds the choices."""
        return {
            "id": self.job.id,
            "object": self.chunk_object if chunk else self.object,
            "created": self.job.created,
            "model": self.job.model,
            "choices": choices,
        }

    def answer(self, generation: Generation, tokens: list[list[ScoredToken]]) -> dict[str, Any]:
        """The whole answer, not streamed."""
        choices = [self._whole(state, scored) for state, scored in zip(generation.choices, tokens, strict=True)]
        return {**self.envelope(choices, chunk=False), "usage": usage(generation)}

    def chunk(self, state: ChoiceState, delta: Delta) -> dict[str, Any]:
        """One chunk of a stream that only appends."""
        text = self._opening(delta.index) + delta.text
        choice = self._chunk_choice(delta.index, text, self.logprobs(delta.index, delta.tokens), delta.finish_reason)
        if self.job.include_drafts and delta.drafted:
            draft = state.draft()
            choice["draft"] = None if draft is None else asdict(draft)
        return self.envelope([choice], chunk=True)

    def replacement(self, state: ChoiceState, delta: Delta) -> dict[str, Any]:
        """One chunk of a stream in Mercury's form: the full current text, replacing the last one."""
        draft = state.draft() if delta.finish_reason is None else None
        text = self._echo(delta.index) + state.text + ("" if draft is None else draft.text)
        limit = self.job.choices[delta.index].request.max_tokens
        progress = 1.0 if delta.finish_reason is not None else min(state.stats.completion_tokens / limit, 1.0)
        choice = self._chunk_choice(delta.index, text, None, delta.finish_reason)
        meta = {"diffusion_content": True, "diffusion_progress": round(progress, 4)}
        return {**self.envelope([choice], chunk=True), "diffusion_meta": meta}

    def closing(self) -> dict[str, Any]:
        """The empty chunk that ends a stream in Mercury's form."""
        return self.envelope([self._chunk_choice(0, "", None, None)], chunk=True)

    def _opening(self, index: int) -> str:
        """Text in front of a choice's first chunk."""
        return "" if index in self._begun else self._echo(index)

    def _echo(self, index: int) -> str:
        return self.job.choices[index].echo.text

    @abstractmethod
    def logprobs(self, index: int, tokens: list[ScoredToken]) -> dict[str, Any] | None:
        """The log-probabilities of some tokens, as this endpoint writes them; None when they were not asked for."""

    @abstractmethod
    def _whole(self, state: ChoiceState, tokens: list[ScoredToken]) -> dict[str, Any]:
        """A choice of an answer that is not streamed."""

    @abstractmethod
    def _chunk_choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        """A choice of a chunk. Marks the choice as begun."""


class CompletionForm(Form):
    """POST /v1/completions"""

    object = "text_completion"
    chunk_object = "text_completion"

    def logprobs(self, index: int, tokens: list[ScoredToken]) -> dict[str, Any] | None:
        if self.job.logprobs is None:
            return None
        name, echoed = self.tokenizer.token_text, len(self._echo(index))
        return {
            "tokens": [name(token.scores.token_id) for token in tokens],
            "token_logprobs": [_clamped(token.scores.logprob) if _is_known(token) else None for token in tokens],
            "top_logprobs": [
                {name(token_id): _clamped(logprob) for token_id, logprob in token.scores.top}
                if _is_known(token)
                else None
                for token in tokens
            ]
            if self.job.logprobs
            else None,
            "text_offset": [token.offset + (0 if token.of_prompt else echoed) for token in tokens],
        }

    def _whole(self, state: ChoiceState, tokens: list[ScoredToken]) -> dict[str, Any]:
        return {
            "index": state.index,
            "text": self._echo(state.index) + state.text,
            "logprobs": self.logprobs(state.index, tokens),
            "finish_reason": state.finish_reason,
        }

    def _chunk_choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        self._begun.add(index)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


class ChatForm(Form):
    """POST /v1/chat/completions"""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def logprobs(self, index: int, tokens: list[ScoredToken]) -> dict[str, Any] | None:
        if self.job.logprobs is None:
            return None
        content = [
            {
                **self._scored(token.scores.token_id, token.scores.logprob),
                "top_logprobs": [self._scored(token_id, logprob) for token_id, logprob in token.scores.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _scored(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token_id], skip_special_tokens=False)
        return {"token": text, "logprob": _clamped(logprob), "bytes": self.tokenizer.token_bytes(token_id)}

    def _whole(self, state: ChoiceState, tokens: list[ScoredToken]) -> dict[str, Any]:
        return {
            "index": state.index,
            "message": {"role": "assistant", "content": state.text, "refusal": None},
            "logprobs": self.logprobs(state.index, tokens),
            "finish_reason": state.finish_reason,
        }

    def _chunk_choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        """The role comes with the first text, so that time to first token is honest."""
        delta: dict[str, Any] = {}
        if index not in self._begun and (text or finish_reason is not None):
            self._begun.add(index)
            delta["role"] = "assistant"
        if text or delta or finish_reason is None:
            delta["content"] = text
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


FORMS: dict[str, type[Form]] = {"completions": CompletionForm, "chat": ChatForm}
