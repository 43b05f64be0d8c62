"""Sequence and Block: the state of one request inside the engine. No torch.

While a sequence of a causal mode has no open block and its prompt is cached, exactly one of its tokens is chosen but
not yet cached: the *anchor* (`num_cached == len(token_ids) - 1`). Its next block starts at the anchor's position. Where
context is encoded by blocks, whole blocks are cached instead, and the tokens past the last one begin the next block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from engine.events import GenerationStats, TokenLogprob
from engine.grammar.state import GrammarState
from engine.request import Request


class Candidates(NamedTuple):
    """The likeliest tokens at every position of a drafted block, best first."""

    token_ids: list[list[int]]
    logprobs: list[list[float]]


@dataclass(slots=True)
class DraftRecord:
    """How the drafts of one sequence fared, by place in the block (draft 1, 2, ...), and the width chosen last."""

    tries: list[float] = field(default_factory=list)
    """Drafts verified after those before them were accepted. Counts fade as the text goes on."""
    hits: list[float] = field(default_factory=list)
    """Of them, those accepted."""
    all_tries: float = 0.0
    all_hits: float = 0.0
    rounds: int = 0
    """Verifications."""
    width: int = 0
    """Chosen last; 0: none yet."""
    plain: int = 0
    """Tokens to be decoded plainly before a width is chosen anew."""
    stake: float = 0.0
    """Seconds that the open block may lose, if it is drafted to find something out; 0: it is not."""
    even: float = 0.0
    """Tokens with which that block loses nothing."""


@dataclass(slots=True)
class KnownText:
    """A text that the answer may repeat, and the place in it that the answer has come to."""

    text: str
    """Its tokens, one character each, so that the interpreter's own search finds them."""
    predicted: bool
    """It is the client's prediction of the answer; else it is the prompt."""
    place: int | None = None
    """Index of the token that the answer should go on with; None: not known."""
    matched: int = 0
    """Tokens before `place` known to be those before it in the answer; 0: the place is a guess."""
    near: int = 0
    """Where the answer left the text last: it is looked for from there first."""
    num_read: int = 0
    """Leading tokens of the sequence that were looked at."""
    tries: list[float] = field(default_factory=lambda: [0.0] * 5)
    """Tokens foretold, by how many had matched before (engine.decoding.lookup). Counts fade."""
    hits: list[float] = field(default_factory=lambda: [0.0] * 5)
    """Of them, those that came."""


@dataclass(slots=True)
class Block:
    """Consecutive positions that are refined together: token ids and an explicit mask.

    The id at a masked position means nothing. A mask is never inferred from `id == mask_token_id`: a prompt may contain
    that token's text.
    """

    start: int
    """Absolute position of the block's first token."""
    token_ids: list[int]
    masked: list[bool]
    num_settled: int = 0
    """Leading tokens already reported as settled: they are in the sequence's `token_ids` too."""
    awaits_anchor: bool = False
    """A shared pass refines this block before its anchor is known: position 0 is a mask and takes no part."""
    index: int = 0
    """Number of blocks before this one in the answer."""
    steps: int = 0
    """Denoising steps taken."""
    confidences: list[float | None] = field(default_factory=list)
    """Probability of each token when it was chosen; None while masked, or for a token chosen causally."""
    logprobs: dict[int, TokenLogprob] = field(default_factory=dict)
    """By position in the block, kept from the step that chose the token until it settles."""
    unmasked_in: dict[int, int] = field(default_factory=dict)
    """By position in the block, the step that chose its token; filled where the request asks for it."""
    candidates: Candidates | None = None
    """Of a fresh draft under a grammar, until the draft has been fitted to it."""
    post_steps: int = 0
    """Denoising steps that found no mask, in a model that edits."""
    canvas: list[int] = field(default_factory=list)
    """Of a canvas of random tokens: what its next step reads; its `token_ids` are what the last one found likeliest."""
    unchanged: int = 0
    """Of such a canvas: the steps since its likeliest tokens last changed."""

    @classmethod
    def fresh(
        cls, start: int, length: int, index: int, anchor: int | None = None, *, awaits_anchor: bool = False
    ) -> Block:
        """A block of masks; with an anchor, its first token is that one."""
        block = cls(start, [0] * length, [True] * length, 0, awaits_anchor, index, 0, [None] * length)
        if anchor is not None:
            block.place_anchor(anchor)
        return block

    def place_anchor(self, token_id: int) -> None:
        """Puts the causally chosen, already settled token at position 0."""
        self.token_ids[0], self.masked[0], self.num_settled, self.awaits_anchor = token_id, False, 1, False

    def begin_with(self, token_ids: list[int]) -> None:
        """Puts settled tokens, which may be none, at the beginning."""
        count = len(token_ids)
        self.token_ids[:count], self.masked[:count], self.num_settled = token_ids, [False] * count, count

    def truncate(self, length: int) -> None:
        """Drops everything after the first `length` positions. A draft may be cut anywhere: verification is exact."""
        del self.token_ids[length:], self.masked[length:], self.confidences[length:]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def end(self) -> int:
        """Absolute position after the block."""
        return self.start + len(self.token_ids)

    @property
    def num_masked(self) -> int:
        return sum(self.masked)


class Status(StrEnum):
    """The scheduler's queue that a sequence is in."""

    WAITING = "waiting"
    """Holds no pages: not admitted yet, or preempted."""
    PREFILLING = "prefilling"
    """Holds pages; positions that its policy needs are not cached yet."""
    DECODING = "decoding"
    """Holds pages; its policy plans its spans."""
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """One request in the engine: settled tokens, pages, the valid KV prefix, and the open block.

    Every field names the part of the engine that writes it after construction.
    """

    request: Request
    end_token_ids: frozenset[int]
    """Tokens that end this answer. Never written."""
    arrival: int
    """Number of requests that came before; ties of priority are broken by it. Never written."""
    token_ids: list[int] = field(default_factory=list)
    """The prompt and every settled token. Written by scheduling.outcome."""
    barred_token_ids: frozenset[int] = frozenset()
    """Tokens that this answer never holds (`ignore_eos`, infill). Written by `bar`."""
    grammar: GrammarState | None = None
    """Position of the answer in the grammar it must follow; None for any text. Written by the engine, once."""
    stats: GenerationStats = field(default_factory=GenerationStats)
    """Written by the scheduler and scheduling.outcome; the prompt's length by the engine, once."""
    received_at: float = 0.0
    """time.monotonic() when the request came. Never written."""

    # Position in the scheduler's queues.
    status: Status = Status.WAITING
    """Written by the scheduler."""
    admitted: bool = False
    """Has held pages at least once. Written by the scheduler."""

    # KV: pages and what is in them.
    row: int = -1
    """Row of the device's page table while the sequence holds pages, else -1. Written by the scheduler."""
    pages: list[int] = field(default_factory=list)
    """Written by the scheduler."""
    num_mapped: int = 0
    """Leading pages the device's page table already knows. Written by the model runner, reset by the scheduler."""
    num_cached: int = 0
    """KV positions [0, num_cached) are valid; pages beyond are private to this sequence. Written by scheduling.outcome
    and, on admission and release, by the scheduler."""
    frozen_block: int = -1
    """Start of the block whose context cache is in the pages (see policies.whole), or whose last step the device
    remembers (see policies.refine); -1: there is none. Written by the policy, and on release by the scheduler."""
    page_hashes: list[bytes] = field(default_factory=list)
    """Hash chain over this sequence's full pages, as far as it has been computed. Written by the prefix cache."""
    num_registered: int = 0
    """Leading pages already offered to other requests. Written by the prefix cache; on admission by the scheduler."""
    unverified: bool = False
    """KV has been written since the last finite logits: it may be non-finite. Written by the prefix cache."""

    # What is being decoded.
    block: Block | None = None
    """The open block. Written by the policy."""
    next_block: Block | None = None
    """The block that a shared pass refines beside `block`; it takes its place once the pass has settled `block`.
    Written by the policy; the scheduler drops it together with an optional span and on preemption."""
    drafts: DraftRecord | None = None
    """Of a mode that drafts. Written by the width controller."""
    known_texts: list[KnownText] = field(default_factory=list)
    """Texts that the answer may repeat, the client's prediction first. Written by decoding.lookup."""
    repeats: KnownText | None = None
    """The text that the drafts of the planned verification were taken from; None: they are the model's own. Written by
    decoding.lookup."""
    num_scored: int = 1
    """Leading prompt tokens whose log-probabilities are known or not wanted; the first has none. Written by prefill."""

    mode: str = field(init=False)
    """Name of the policy that decodes the sequence. Never written."""
    plain: bool = field(init=False)
    """No parameter of the request has a say in which token is chosen, beside `barred_token_ids`. Never written."""

    def __post_init__(self) -> None:
        if not self.token_ids:
            self.token_ids = list(self.request.prompt_token_ids)
        self.mode = self.request.decoding.mode
        self.num_scored = max(self.num_scored, self.request.score_from)
        self.plain = self.request.sampling.plain and self.request.grammar is None

    def bar(self, token_ids: frozenset[int]) -> None:
        """Makes sure that the answer never holds these tokens."""
        self.barred_token_ids |= token_ids

    @classmethod
    def placeholder(cls, row: int, pages: list[int]) -> Sequence:
        """A sequence for passes that answer no request (measurements): a page-table row and its pages."""
        request = Request(request_id=f"row-{row}", prompt_token_ids=[0], max_tokens=1)
        return cls(request, frozenset(), row, row=row, pages=pages)

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
