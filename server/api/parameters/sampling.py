"""The request fields that choose tokens and end answers, which mean the same in every decoding mode."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engine.request import MAX_REPETITION_PENALTY, MIN_REPETITION_PENALTY
from server.api.fields import Strict
from server.api.parameters.values import (
    MAX_BAD_WORDS,
    MAX_COUNT,
    MAX_STOP_TOKENS,
    AllowedTokens,
    BadWord,
    LogitBias,
    Seed,
    Stops,
    TopK,
)


class SamplingFields(Strict):
    """How tokens are chosen, how many answers there are, and what ends them."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the likeliest tokens that together have this probability."""
    top_k: TopK = 0
    """Sample among this many likeliest tokens; 0 or -1: no limit."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Sample among tokens at least this likely, relative to the likeliest."""
    seed: Seed = None
    """The same request with the same seed gives the same text in ar, speculative and auto. Drawn if unset or -1."""
    n: Annotated[int, Field(ge=1, le=1024)] = 1
    """Answers to give for each prompt."""
    stop: Stops = Field(default=[])
    """Strings that end the answer; the text ends before them. They count once there are min_tokens tokens."""
    include_stop_str_in_output: bool = False
    """The text ends with the stop string, not before it."""
    stop_token_ids: list[int] = Field(default=[], max_length=MAX_STOP_TOKENS, fail_fast=True)
    """Tokens that end the answer."""
    ignore_eos: bool = False
    """The model's own end tokens are never generated: the answer runs on to max_tokens. A grammar still ends it."""
    min_tokens: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    """End tokens are banned, and stop strings ignored, until so many tokens have been generated."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Lowers the logits of tokens that the answer already holds."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Lowers the logits of tokens by how often the answer holds them."""
    repetition_penalty: Annotated[float, Field(ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)] = 1.0
    """Divides the logits of tokens that prompt or answer already hold; 1: off."""
    logit_bias: LogitBias = Field(default={})
    """Token ids and what is added to their logits."""
    allowed_token_ids: AllowedTokens | None = None
    """Only these tokens are chosen; the answer ends early only if an end token is among them."""
    bad_words: list[BadWord] = Field(default=[], max_length=MAX_BAD_WORDS, fail_fast=True)
    """Words that the answer never spells by the tokens that the tokenizer makes of them, with or without a space in
    front. A word of several tokens needs ar, speculative or auto."""
