"""Events of requests and figures of passes, as the engine reports them to the API process. A leaf: no torch."""

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort", "error"]


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probability of a token and of the likeliest ones, before temperature and filters.

    For a token of the answer after bias, penalties, grammar and bans; for one of the prompt by the model's own logits.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]
    """(token id, log-probability), most likely first."""
    rank: int = 0
    """Of a prompt's token: how many tokens are at least as likely, itself included. 0: not known."""


class TokenUnmasking(msgspec.Struct, frozen=True, array_like=True):
    """When a token of an answer got its place, and how sure the model was of it."""

    block: int
    """Index of its block within the answer, from 0."""
    step: int
    """Denoising step of the block, from 1. 0: a causal pass chose it, as the first token of the block."""
    confidence: float | None
    """Softmax probability of the token when it was chosen; None where a causal pass chose it."""


class GenerationStats(msgspec.Struct, kw_only=True):
    """Running totals of one choice. `passes` counts every pass but those of prefill; a shared pass once."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose KV came from the prefix cache at the first admission."""
    completion_tokens: int = 0
    """Tokens generated so far, an end token included."""
    passes: int = 0
    denoising_steps: int = 0
    """Denoising and drafting passes."""
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    accepted_prediction_tokens: int = 0
    """Accepted draft tokens that were taken from the request's prediction."""
    rejected_prediction_tokens: int = 0
    blocks: int = 0
    """Blocks committed or verified."""
    edited_tokens: int = 0
    """Times that an unmasked token was replaced, before its block settled."""
    preemptions: int = 0
    queue_seconds: float = 0.0
    """From its arrival to its first admission."""
    prefill_seconds: float = 0.0
    """From its first admission until its prompt had been computed; 0 before that, or where the answer ended with it."""


class TokensSettled(msgspec.Struct, tag=True, kw_only=True):
    """Tokens that are final. Sent as soon as they settle and never withdrawn. An end token is not among them."""

    request_id: str
    token_ids: list[int]
    stats: GenerationStats
    logprobs: list[TokenLogprob] | None = None
    unmasking: list[TokenUnmasking] | None = None
    """Of each of the tokens, where the request asked for it."""


class PromptScored(msgspec.Struct, tag=True, kw_only=True):
    """Log-probabilities of the next tokens of the prompt, in order; the first token of a prompt has none. Only when the
    request asked for them."""

    request_id: str
    logprobs: list[TokenLogprob]


class DraftUpdated(msgspec.Struct, tag=True, kw_only=True):
    """The open block beyond its settled tokens. Replaces the request's previous draft as a whole. Only for requests
    that asked for drafts."""

    request_id: str
    block: int
    """Index of the block within the answer, from 0."""
    step: int
    """Denoising steps this block has had."""
    token_ids: list[int | None]
    """The block's tokens after the settled ones; None where masked."""
    confidences: list[float | None]
    """Softmax probability of each chosen token; None where masked."""
    length: int
    """Tokens of the whole block, settled ones included."""


class Finished(msgspec.Struct, tag=True, kw_only=True):
    """The last event of a request."""

    request_id: str
    reason: FinishReason
    stats: GenerationStats
    stop_token_id: int | None = None
    """The end or stop token that ended the answer, if one did."""
    error: str | None = None
    """For reason `error`: one sanitised line."""
    stop_unmasking: TokenUnmasking | None = None
    """Of the end or stop token, where the request asked for it."""


GenerationEvent = TokensSettled | PromptScored | DraftUpdated | Finished


class StepStats(msgspec.Struct, kw_only=True):
    """Figures of one pass and of the engine's state after it. The engine's metrics are made from them."""

    running: int
    waiting: int
    free_pages: int
    """Pages that can be had right now, the cached ones included."""
    num_pages: int
    sequences: int = 0
    tokens: int = 0
    duration: float = 0.0
    """Seconds of the whole step."""
    forward_duration: float = 0.0
    """Seconds of the model's forward alone."""
    phases: dict[str, int] = {}
    """Sequences of the pass by phase."""
    bytes: int = 0
    """Bytes that the pass has to move at least (engine.measure.roofline)."""
    operations: int = 0
    """Floating-point operations that the pass has to do (engine.measure.roofline)."""
    shared: int = 0
    """Sequences that had two spans in this pass."""
    preemptions: int = 0
    nan_logits: int = 0
    generated: int = 0
    """Tokens that settled, end tokens included."""
    denoising_steps_per_block: list[int] = []
    """Of the blocks that closed in this step."""
    edited_tokens: int = 0
    """Times that an unmasked token was replaced in this step."""
    accepted_draft_lengths: list[int] = []
    """Of the verifications of this step."""
    draft_tokens: int = 0
