"""Widths of speculation, chosen from what passes cost and from how far a request's drafts are accepted.

Self-speculation is exact whatever is drafted and however much of a draft is verified, so every choice here is a matter
of speed alone. All of them maximise expected tokens a second.

Both sides of that are learned while requests are served. A width that looks worse than another one, but of which too
little is known, is tried now and then; what this may lose is bounded.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import NamedTuple

from engine.decoding.acceptance import TOKEN_FADES, AcceptanceEstimate, fade
from engine.decoding.costs import CostTable, PassCosts
from engine.request import GREEDY_BELOW
from engine.sequence import Block, DraftRecord, Sequence

EXPLORE_SHARE = 0.02
"""Most of the time of all passes that trying widths may lose in the long run."""
CREDIT_PASSES = 32
"""What may be lost at once beyond that: the time of so many plain passes of one sequence. Granted at the start."""
HOPE = 8.0
"""Accepted drafts that a request is given when the question is whether to try a width."""
DEVIATIONS = 2.0
"""Standard deviations by which a pass may be cheaper than it is thought to be, when the question is the same."""
STAY = 1.03
"""A request changes its width for one that promises at least so much more."""
PLAIN_RUN = 4
"""Tokens that a request decodes plainly before its width is chosen anew."""
CONTEXT_STEP = 64
"""Within one pass, contexts that agree but for so many positions are taken for the same."""

VERIFY_STEP = 8
"""Verified lengths are multiples of this: sequences that verify equally many tokens share one step group."""


class Round(NamedTuple):
    """A round of one width: a plain pass, or a drafting and a verifying one."""

    width: int
    seconds: float


class WidthController:
    """Decides widths for all speculating sequences of an engine."""

    def __init__(self, costs: CostTable, acceptance: AcceptanceEstimate) -> None:
        self.costs = PassCosts(costs)
        self.acceptance = acceptance
        self._most_credit = CREDIT_PASSES * self.costs.lookup(1, 1)
        self._credit = self._most_credit
        """Seconds that trying widths may lose now. It may fall below 0, and is then earned back first."""
        self.explores = True
        """Whether widths are tried that do not look best."""
        self._rounds: dict[tuple[int, int], list[Round]] = {}
        """By sequences and context, of the pass that is being planned."""

    def observe_pass(self, tokens: int, sequences: int, cached: int, seconds: float) -> None:
        """Takes in what a pass without prefill took: query tokens, sequences, and KV positions that they had cached."""
        width, context = tokens / sequences, cached / sequences
        self._credit += EXPLORE_SHARE * self.costs.lookup(width, sequences, context)
        self._credit = min(self._credit, self._most_credit)
        self.costs.observe(width, sequences, context, seconds)
        self._rounds.clear()

    def observe_draft(self, seq: Sequence, drafted: int, accepted: int) -> None:
        """Takes in a verification of `drafted` tokens."""
        record = record_of(seq)
        self.acceptance.observe_for(record, drafted, accepted)
        if record.stake:
            self._credit += record.stake * min(1.0, (accepted + 1) / record.even)
            record.stake = 0.0

    def draft_width(self, seq: Sequence, num_running: int, limit: int) -> int:
        """Tokens of the sequence's next block, anchor included, up to `limit`; 1 is plain AR."""
        record = record_of(seq)
        if record.plain:
            record.plain -= 1
            return 1
        rounds = self._rounds_of(num_running, seq.num_cached)
        rounds = [each for each in rounds if each.width <= limit]
        best, rate = self._best(record, rounds)
        if seq.block is not None:  # beside its verification; whether it was wide enough is not known yet
            return best.width
        tried = None
        if self.explores and self._credit > 0.0:
            tried = self._tried(record, num_running, seq.num_cached, rounds, best, rate)
        record.width = best.width
        width = best.width if tried is None else tried.width
        if width == 1:
            fade(record, TOKEN_FADES**PLAIN_RUN)
            record.plain = PLAIN_RUN - 1 if tried is None else 0
        return width

    def _rounds_of(self, num_running: int, context: int) -> list[Round]:
        """The rounds of all widths, as if all sequences took the same and had the same context."""
        key = (num_running, context // CONTEXT_STEP)
        rounds = self._rounds.get(key)
        if rounds is None:
            cost = self.costs.lookup
            rounds = [Round(w, (1 if w == 1 else 2) * cost(w, num_running, context)) for w in self.costs.widths]
            self._rounds[key] = rounds
        return rounds

    def _best(self, record: DraftRecord, rounds: list[Round]) -> tuple[Round, float]:
        """The round with the most tokens a second, and how many: each sequence's, as if all took the same width."""
        tokens = list(accumulate(self.acceptance.survival_of(record), initial=1.0))
        best, best_rate, best_promise = rounds[0], 0.0, 0.0
        for each in rounds:
            rate = tokens[min(each.width, len(tokens)) - 1] / each.seconds
            promise = rate * STAY if each.width == record.width else rate
            if promise > best_promise:
                best, best_rate, best_promise = each, rate, promise
        return best, best_rate

    def _tried(
        self, record: DraftRecord, num_running: int, context: int, rounds: list[Round], best: Round, rate: float
    ) -> Round | None:
        """A round that may well be better than the best one and costs little to try. Charges its cost."""
        tokens = list(accumulate(self.acceptance.survival_of(record, HOPE), initial=1.0))
        tried, most, stake, delay = None, 0.0, 0.0, 0.0
        usual = self.costs.lookup(best.width, num_running, context)
        for each in rounds:
            least = each.seconds * math.exp(-DEVIATIONS * self.costs.spread(each.width, num_running))
            gain = tokens[min(each.width, len(tokens)) - 1] / least / rate - 1.0
            if each.width == best.width or gain <= 0.0:
                continue
            # Its own round may bring nothing, and the others' passes become longer by the tokens that it has more.
            own = each.seconds / num_running
            mean = best.width + (each.width - best.width) / num_running
            longer = self.costs.lookup(mean, num_running, context) - usual
            others = max(0.0, longer) * (1 if each.width == 1 else 2) * (1 - 1 / num_running)
            if gain / (own + others) > most:
                tried, most, stake, delay = each, gain / (own + others), own, others
        if tried is not None:
            even = rate * tried.seconds
            known = min(1.0, 1 / even) if tried.width == 1 else 0.0
            self._credit -= stake * (1.0 - known) + delay
            record.stake, record.even = (0.0, 0.0) if tried.width == 1 else (stake, even)
        return tried

    def survival(self, seq: Sequence, block: Block) -> list[float]:
        """P(drafts 1..k are all accepted), k = 1, 2, ...: from the draft's own confidences where it is greedy.

        With noise a token of small probability may well be the noise's choice in both passes, so there the record of
        recent verifications is the better guide.
        """
        if seq.request.sampling.temperature >= GREEDY_BELOW:
            return self.acceptance.survival_of(record_of(seq))[: len(block) - 1]
        return list(accumulate((p if p is not None else 1.0 for p in block.confidences[1:]), lambda a, b: a * b))

    def verify_length(self, seq: Sequence, block: Block, num_running: int) -> int:
        """How many tokens of a drafted block, anchor included, are worth verifying. Nothing after a drafted end is."""
        limit = len(block)
        for j in range(1, len(block)):
            if block.token_ids[j] in seq.end_token_ids:
                limit = j + 1
                break
        survival = self.survival(seq, block)
        cost, context = self.costs.lookup, seq.num_cached
        drafted = cost(len(block), num_running, context)
        best, best_rate = len(block), 0.0
        for length in range(VERIFY_STEP, len(block) + VERIFY_STEP, VERIFY_STEP):
            length = min(length, len(block))
            expected = 1.0 + sum(survival[: min(length, limit) - 1])
            rate = expected / (drafted + cost(length, num_running, context))
            if rate > best_rate:
                best, best_rate = length, rate
        return best

    def draft_ahead(self, seq: Sequence, block: Block, next_width: int, num_running: int) -> bool:
        """Whether drafting the next block in the verifying pass pays: wasted unless this block is accepted whole."""
        if any(token in seq.end_token_ids for token in block.token_ids[1:]):
            return False
        survival = self.survival(seq, block)
        whole = survival[len(block) - 2] if len(block) - 2 < len(survival) else 0.0
        cost, context = self.costs.lookup, seq.num_cached
        verify = cost(len(block), num_running, context)
        together = cost(len(block) + next_width, num_running, context)
        return whole * cost(next_width, num_running, context) > together - verify


def record_of(seq: Sequence) -> DraftRecord:
    """The sequence's record, begun where there is none yet."""
    if seq.drafts is None:
        seq.drafts = DraftRecord()
    return seq.drafts
