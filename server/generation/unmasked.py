"""How the tokens of an answer were unmasked, as clients are told."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.events import TokenUnmasking
from server.text.token_texts import TokenTexts


class UnmaskedToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token of the answer, and how it was unmasked."""

    token_id: int
    token: str
    block: int
    """From 0."""
    step: int
    """Of the block, from 1. 0: a causal pass chose it, as the first token of its block."""
    confidence: float | None
    """Null where a causal pass chose it."""


def unmasked_tokens(
    texts: TokenTexts, token_ids: Sequence[int], unmasking: Sequence[TokenUnmasking] | None
) -> list[UnmaskedToken]:
    """Tokens with how they were unmasked; none where that is not told."""
    return [
        UnmaskedToken(token, texts.display(token), how.block, how.step, how.confidence)
        for token, how in zip(token_ids, unmasking or (), strict=False)
    ]
