"""The response objects that completions and chats have in common, as typed structs.

They are what is written and what the OpenAPI document shows. Fields with the value UNSET are left out of the JSON.
"""

from __future__ import annotations

import math
import time
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from server.generation.choice import ScoredToken
from server.generation.generation import Generation

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""

FinishReason = Literal["stop", "length", "tool_calls"]
StopReason = str | int | None
"""The stop string or stop token that ended the answer; null where the model's own end token did, or the length."""
Count = Annotated[int, msgspec.Meta(ge=0)]


class Response(msgspec.Struct, forbid_unknown_fields=True):
    """Base of the response objects: exactly the declared fields."""


class Ending(NamedTuple):
    """Why a choice ended."""

    finish_reason: FinishReason
    stop_reason: StopReason


class PromptTokensDetails(Response):
    """Part of Usage."""

    cached_tokens: Count
    """Prompt tokens found in the prefix cache."""


class CompletionTokensDetails(Response):
    """Part of Usage."""

    reasoning_tokens: Count
    """Tokens of the model's reasoning, its tags included."""
    accepted_prediction_tokens: Count
    """Tokens of the request's prediction that were put to verification and are part of the answer."""
    rejected_prediction_tokens: Count
    """Those that were put to verification in vain. They are no tokens of the answer."""


class DiffusionUsage(Response):
    """What decoding did for the answers of a request, summed over them."""

    decoding: str
    passes: Count
    """Passes of the model, those of the prompt not counted."""
    denoising_steps: Count
    tokens_per_pass: float
    draft_tokens: Count
    accepted_draft_tokens: Count
    edited_tokens: Count
    """Times that an unmasked token was replaced before it settled."""
    seed: Count


class Usage(Response):
    """OpenAI's usage object, and what diffusion adds to it."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    diffusion: DiffusionUsage


class RequestMetrics(Response):
    """The times of a request, in milliseconds, as vLLM tells them."""

    queue_time_ms: float
    """Before the engine began with it."""
    time_to_first_token_ms: float | UnsetType = UNSET
    """From then to the first text; left out of an answer without text, with the fields below."""
    generation_time_ms: float | UnsetType = UNSET
    """From the first text to the end."""
    mean_itl_ms: float | UnsetType = UNSET
    """A token of that time; where there is more than one."""
    tokens_per_second: float | UnsetType = UNSET
    """Of the whole time but the queue's."""


class DiffusionMeta(Response):
    """Beside a chunk that replaces the text before it (Mercury's form)."""

    diffusion_content: Literal[True]
    diffusion_progress: float
    """From 0 to 1."""


def metrics_of(generation: Generation) -> RequestMetrics | UnsetType:
    """The times of a generation that ends now; UNSET where the server does not tell them. Choices share one clock."""
    if not generation.job.tells_metrics:
        return UNSET
    queue = max(choice.stats.queue_seconds for choice in generation.choices)
    told = RequestMetrics(_ms(queue))
    if generation.first_text is None:
        return told
    tokens = sum(choice.stats.completion_tokens for choice in generation.choices)
    begun, now = generation.started + queue, time.monotonic()
    told.time_to_first_token_ms = _ms(generation.first_text - begun)
    told.generation_time_ms = _ms(now - generation.first_text)
    if tokens > 1:
        told.mean_itl_ms = _ms((now - generation.first_text) / (tokens - 1))
    told.tokens_per_second = round(tokens / max(now - begun, 1e-6), 3)
    return told


def _ms(seconds: float) -> float:
    return round(max(seconds, 0.0) * 1000, 3)


def usage_of(generation: Generation) -> Usage:
    """The tokens of a generation so far. A prompt counts once, however many choices it has."""
    job, stats = generation.job, [choice.stats for choice in generation.choices]
    prompt = sum(job.choices[index].prompt_tokens for index in job.first_choices)
    completion = sum(choice.completion_tokens for choice in stats)
    passes = sum(choice.passes for choice in stats)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=sum(stats[index].cached_tokens for index in job.first_choices)
        ),
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=sum(choice.reasoning_tokens for choice in generation.choices),
            accepted_prediction_tokens=sum(choice.accepted_prediction_tokens for choice in stats),
            rejected_prediction_tokens=sum(choice.rejected_prediction_tokens for choice in stats),
        ),
        diffusion=DiffusionUsage(
            decoding=job.decoding,
            passes=passes,
            denoising_steps=sum(choice.denoising_steps for choice in stats),
            tokens_per_pass=round(completion / passes, 2) if passes else 0.0,
            draft_tokens=sum(choice.draft_tokens for choice in stats),
            accepted_draft_tokens=sum(choice.accepted_draft_tokens for choice in stats),
            edited_tokens=sum(choice.edited_tokens for choice in stats),
            seed=job.seed,
        ),
    )


class PromptTokenLogprob(Response):
    """A token at one place of the prompt."""

    logprob: float
    rank: Count
    """1 for the likeliest token."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptTokenLogprob] | None]
"""By place in the prompt and by token id: the prompt's own token and the likeliest ones. The first place has none."""


def name_by_id(token_id: int) -> str:
    """What a token is called where tokens are called by their ids."""
    return f"token_id:{token_id}"


def finite(logprob: float) -> float:
    """A log-probability as JSON can say it."""
    return max(logprob, LOWEST_LOGPROB)


def has_logprob(token: ScoredToken) -> bool:
    """False for the first token of a prompt, which follows nothing."""
    return not math.isnan(token.scores.logprob)
