"""Sequence and Block: the state of one request inside the engine. A leaf: no torch.

The invariant every policy keeps: when no block is open and the prompt is cached, exactly one token, the *seed*, is
chosen but not yet cached (`num_cached == len(token_ids) - 1`). An open block starts at that seed's position.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.events import GenerationStats, TokenLogprob
from engine.request import Request

if TYPE_CHECKING:
    from engine.decoding.contract import DecodingPolicy
    from engine.grammar.state import GrammarState


@dataclass(slots=True)
class Block:
    """The canvas being refined: token ids and an explicit mask. A masked position's id is meaningless.

    Never infer a mask from `id == mask_token_id`: masks are a fact about the canvas, not about its text.
    """

    start: int
    """Absolute position of the canvas's first token."""
    token_ids: list[int]
    masked: list[bool]
    num_settled: int = 0
    """Leading tokens already reported as settled: they are in the sequence's `token_ids` too."""
    awaits_anchor: bool = False
    """A shared pass refines this canvas before its seed is known: position 0 is a mask and takes no part."""
    index: int = 0
    """Number of blocks before this one in the answer."""
    steps: int = 0
    """Denoising steps taken."""
    confidences: list[float | None] = field(default_factory=list)
    """Probability of each token when it was chosen; None while masked, or for a token chosen causally."""
    logprobs: dict[int, TokenLogprob] = field(default_factory=dict)
    """By position in the canvas, kept from the step that chose the token until it settles."""
    candidates: tuple[list[list[int]], list[list[float]]] | None = None
    """Of a fresh draft under a grammar, until it has been fitted to it: by position the likeliest tokens, best first,
    and their log-probabilities."""

    @classmethod
    def fresh(
        cls, start: int, length: int, index: int, seed: int | None = None, *, awaits_anchor: bool = False
    ) -> Block:
        """A canvas of masks, its first token the seed if there is one."""
        block = cls(start, [0] * length, [True] * length, 0, awaits_anchor, index, 0, [None] * length)
        if seed is not None:
            block.place_anchor(seed)
        return block

    def place_anchor(self, token_id: int) -> None:
        """Puts the causally chosen, already settled token at position 0."""
        self.token_ids[0], self.masked[0], self.num_settled, self.awaits_anchor = token_id, False, 1, False

    def truncate(self, length: int) -> None:
        """Drops everything after the first `length` positions. A draft may be cut anywhere: verification is exact."""
        del self.token_ids[length:], self.masked[length:], self.confidences[length:]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def end(self) -> int:
        """Absolute position after the canvas."""
        return self.start + len(self.token_ids)

    @property
    def num_masked(self) -> int:
        return sum(self.masked)


@dataclass(slots=True, eq=False)
class Sequence:
    """One request in the engine: settled tokens, pages, the valid KV prefix, and the open block."""

    request: Request
    policy: DecodingPolicy
    end_token_ids: frozenset[int]
    """Tokens that end this answer."""
    arrival: int
    """Number of requests that came before; ties of priority are broken by it."""
    token_ids: list[int] = field(default_factory=list)
    """The prompt and every settled token."""
    pages: list[int] = field(default_factory=list)
    num_cached: int = 0
    """KV positions [0, num_cached) are valid. Pages beyond are private to this sequence."""
    page_hashes: list[bytes] = field(default_factory=list)
    """Prefix-cache hash chain over this sequence's full pages, as far as it has been computed."""
    num_mapped: int = 0
    """Leading pages the device's page table already knows."""
    num_registered: int = 0
    """Leading pages already offered to the prefix cache."""
    unverified: bool = False
    """KV has been written since the last finite logits: nobody knows yet whether it is finite."""
    block: Block | None = None
    next_block: Block | None = None
    """The canvas a shared pass refines beside `block`; it takes its place when the pass commits `block`."""
    row: int = -1
    """Row of the device's page table while running, else -1."""
    grammar: GrammarState | None = None
    """Where the answer stands in the grammar it must follow; None where it may be anything."""
    stats: GenerationStats = field(default_factory=GenerationStats)
    received_at: float = 0.0
    admitted: bool = False
    """Has been scheduled at least once."""
    num_scored: int = 1
    """Leading prompt tokens whose log-probabilities are known; the first has none."""
    plain: bool = field(init=False)
    """No parameter of the request has a say in which token is chosen."""

    def __post_init__(self) -> None:
        if not self.token_ids:
            self.token_ids = list(self.request.prompt_token_ids)
        self.plain = self.request.sampling.plain and self.request.grammar is None

    @property
    def scores_prompt(self) -> bool:
        """Log-probabilities of prompt tokens are wanted and not all known yet."""
        return self.request.prompt_logprobs is not None and self.num_scored < self.num_prompt

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def num_remaining(self) -> int:
        """Tokens `max_tokens` still leaves."""
        return self.request.max_tokens - self.num_generated

    @property
    def order(self) -> tuple[int, int]:
        """Scheduling order: lower first. The highest is preempted first."""
        return (self.request.priority, self.arrival)
