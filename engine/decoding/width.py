"""Widths of speculation, chosen from what passes cost and from how far a request's drafts are accepted.

Self-speculation is exact whatever is drafted and however much of a draft is verified, so every choice here is a matter
of speed alone. All of them maximise expected tokens a second.

Both sides of that are learned while requests are served. A width that looks worse than another one, but of which too
little is known, is tried now and then; what this may lose is bounded.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate
from typing import NamedTuple

from engine.decoding.acceptance import TOKEN_FADES, AcceptanceEstimate, fade
from engine.decoding.costs import CostTable, PassCosts
from engine.request import GREEDY_BELOW
from engine.sequence import Block, DraftRecord, Sequence

EXPLORE_SHARE = 0.02
"""Most of the time of all passes that trying widths may lose in the long run."""
CREDIT_PASSES = 32
"""What may be lost at once beyond that: the time of so many passes. Granted at the start, too."""
PROBE_PASSES = 4
"""Passes in which all sequences that begin a block take the same width, so that its cost is seen: two rounds."""
HOPE = 8.0
"""Accepted drafts that a request is given when the question is whether to try a width."""
WORTH = 0.1
"""Share by which a width must seem able to beat the best one, to be tried."""
DEVIATIONS = 2.0
"""Standard deviations by which a pass may be cheaper than it is thought to be, when the question is the same."""
STAY = 1.03
"""A request changes its width for one that promises at least so much more."""
PLAIN_RUN = 4
"""Tokens that a request decodes plainly before its width is chosen anew."""
CONTEXT_STEP = 64
"""Within one pass, contexts that agree but for so many positions are taken for the same."""

KINDS = (GREEDY_BELOW, 0.5, 1.0)
"""Highest temperature of each kind of requests but the last."""

VERIFY_STEP = 8
"""Verified lengths are multiples of this: sequences that verify equally many tokens share one step group."""


class Round(NamedTuple):
    """A round of one width: a plain pass, or a drafting and a verifying one."""

    width: int
    passes: int
    seconds: float
    """Of one of them."""


class Choice(NamedTuple):
    """What a width is chosen from."""

    prior: AcceptanceEstimate
    """Of requests of its kind."""
    record: DraftRecord
    num_running: int
    context: int
    """KV positions that the sequence has cached, taken for those of all."""
    rounds: list[Round]
    """Of the widths that the request allows."""


class WidthController:
    """Decides widths for all speculating sequences of an engine."""

    passes = 2
    """Of a round that drafts."""

    def __init__(self, costs: CostTable, acceptance: AcceptanceEstimate) -> None:
        """acceptance: what is thought of every kind of requests before one of them was seen."""
        self.costs = PassCosts(costs)
        self.acceptance = acceptance
        self._priors: dict[int, AcceptanceEstimate] = {0: acceptance}
        self.explores = True
        """Whether widths are tried that do not look best."""
        self._credit: float | None = None
        """Seconds that trying widths may lose now; below 0 it is earned back first. None: no pass was seen yet."""
        self._probe, self._probe_passes = 0, 0
        """The width that all blocks begun in the next few passes have; 0: none."""
        self._rounds: dict[tuple[int, int], list[Round]] = {}
        """By sequences and context, of the pass that is being planned."""

    def observe_pass(self, tokens: int, sequences: int, cached: int, seconds: float | None) -> None:
        """Takes in a pass: query tokens, sequences, KV positions that they had cached, and its time.

        seconds: None of a pass with prefill, or of any whose time tells nothing.
        """
        if self._probe_passes:
            self._probe_passes -= 1
        if seconds is None:
            return
        self.costs.observe(tokens / sequences, sequences, cached / sequences, seconds)
        self._rounds.clear()
        most = CREDIT_PASSES * seconds
        self._credit = most if self._credit is None else min(self._credit + EXPLORE_SHARE * seconds, most)

    def observe_draft(self, seq: Sequence, drafted: int, accepted: int) -> None:
        """Takes in a verification of `drafted` tokens."""
        record = record_of(seq)
        self.prior_of(seq).observe_for(record, drafted, accepted)
        if record.stake and self._credit is not None:
            self._credit += record.stake * min(1.0, (accepted + 1) / record.even)
            record.stake = 0.0

    def prior_of(self, seq: Sequence) -> AcceptanceEstimate:
        """What is known of requests like it: greedy drafts say nothing of those at a high temperature."""
        kind = bisect_left(KINDS, seq.request.sampling.temperature)
        prior = self._priors.get(kind)
        if prior is None:
            prior = self._priors[kind] = self.acceptance.fresh()
        return prior

    def draft_width(self, seq: Sequence, num_running: int, limit: int) -> int:
        """Tokens of the sequence's next block, anchor included, up to `limit`; 1 is plain AR."""
        record = record_of(seq)
        if self._probe_passes and self._probe <= limit:
            return self._probe
        if record.plain:
            record.plain -= 1
            return 1
        choice = self._choice_of(seq, num_running, limit)
        best, rate = self._best(choice)
        if seq.block is not None:  # beside its verification; whether it was wide enough is not known yet
            return best.width
        record.width = best.width
        if self.explores and self._credit is not None and self._credit > 0.0:
            width = self._tried(choice, best, rate) or self._probed(choice, best, rate)
            if width:
                return width
        if best.width == 1:
            fade(record, TOKEN_FADES**PLAIN_RUN)
            record.plain = PLAIN_RUN - 1
        return best.width

    def plain_rate(self, seq: Sequence, num_running: int) -> float:
        """Tokens a second of plain decoding, if all sequences were like this one."""
        return 1.0 / self.costs.lookup(1, num_running, seq.num_cached)

    def round_rate(self, seq: Sequence, num_running: int, width: int) -> float:
        """Expected tokens a second of drafting and verifying blocks of `width`, if all sequences were like this one."""
        passes = 1 if width < 2 else 2
        each = Round(width, passes, self.costs.lookup(width, num_running, seq.num_cached))
        choice = Choice(self.prior_of(seq), record_of(seq), num_running, seq.num_cached, [each])
        return self._tokens(choice)[0] / each.seconds

    def best_rate(self, seq: Sequence, num_running: int, limit: int) -> float:
        """Expected tokens a second of the width up to `limit` that promises most, if all sequences were alike."""
        return self._best(self._choice_of(seq, num_running, limit))[1]

    def _choice_of(self, seq: Sequence, num_running: int, limit: int) -> Choice:
        context = seq.num_cached
        rounds = [each for each in self._rounds_of(num_running, context) if each.width <= limit]
        return Choice(self.prior_of(seq), record_of(seq), num_running, context, rounds)

    def _rounds_of(self, num_running: int, context: int) -> list[Round]:
        """The rounds of all widths, as if all sequences took the same and had the same context."""
        key = (num_running, context // CONTEXT_STEP)
        rounds = self._rounds.get(key)
        if rounds is None:
            rounds = [self._round(width, num_running, context) for width in self.costs.widths]
            self._rounds[key] = rounds
        return rounds

    def _round(self, width: int, num_running: int, context: int) -> Round:
        """The round of one width."""
        passes = 1 if width == 1 else self.passes
        return Round(width, passes, self.costs.lookup(self._load(width), num_running, context))

    def _load(self, width: float) -> float:
        """Query tokens of a pass of blocks of this width."""
        return width

    def _tokens(self, choice: Choice, hopeful: float = 0.0) -> list[float]:
        """Expected tokens a pass, by round."""
        expected = list(accumulate(choice.prior.survival_of(choice.record, hopeful), initial=1.0))
        return [expected[min(each.width, len(expected)) - 1] / each.passes for each in choice.rounds]

    def _best(self, choice: Choice) -> tuple[Round, float]:
        """The round with the most tokens a second, and how many: each sequence's, as if all took it."""
        best, best_rate, best_promise = choice.rounds[0], 0.0, 0.0
        for each, tokens in zip(choice.rounds, self._tokens(choice), strict=True):
            rate = tokens / each.seconds
            promise = rate * STAY if each.width == choice.record.width else rate
            if promise > best_promise:
                best, best_rate, best_promise = each, rate, promise
        return best, best_rate

    def _tried(self, choice: Choice, best: Round, rate: float) -> int:
        """A wider block for this sequence alone, if its drafts may well be better than is thought; else 0."""
        _, record, running, context, rounds = choice
        tried, most = None, rate * (1.0 + WORTH)
        for each, tokens in zip(rounds, self._tokens(choice, HOPE), strict=True):
            if each.width > best.width and tokens / each.seconds > most:
                tried, most = each, tokens / each.seconds
        if tried is None or self._credit is None:
            return 0
        # Its own round may bring nothing, and the others' passes become longer by the tokens that it has more.
        usual = self.costs.lookup(self._load(best.width), running, context)
        mean = best.width + (tried.width - best.width) / running
        longer = max(0.0, self.costs.lookup(self._load(mean), running, context) - usual) * (1.0 - 1.0 / running)
        record.stake = tried.passes * tried.seconds / running * self.costs.level
        record.even = rate * tried.passes * tried.seconds
        self._credit -= record.stake + tried.passes * longer * self.costs.level
        return tried.width

    def _probed(self, choice: Choice, best: Round, rate: float) -> int:
        """A width for all sequences that may well cost less than is thought, so much less that it pays; else 0."""
        running = choice.num_running
        probed, most, loss, floor = 0, 0.0, 0.0, 0.0
        for each, tokens in zip(choice.rounds, self._tokens(choice), strict=True):
            floor = max(
                floor, each.seconds * math.exp(-DEVIATIONS * self.costs.spread(self._load(each.width), running))
            )
            gain = tokens / floor / rate - 1.0  # no pass costs less than a narrower one
            lost = PROBE_PASSES * each.seconds * max(0.0, 1.0 - tokens / each.seconds / rate)
            if each.width != best.width and gain > WORTH and gain / (lost + each.seconds) > most:
                probed, most, loss = each.width, gain / (lost + each.seconds), lost
        if probed and self._credit is not None:
            self._credit -= loss * self.costs.level
            self._probe, self._probe_passes = probed, PROBE_PASSES
        return probed

    def survival(self, seq: Sequence, block: Block) -> list[float]:
        """P(drafts 1..k are all accepted), k = 1, 2, ...: from the draft's own confidences where it is greedy.

        With noise a token of small probability may well be the noise's choice in both passes, so there the record of
        recent verifications is the better guide.
        """
        if seq.request.sampling.temperature >= GREEDY_BELOW:
            return self.prior_of(seq).survival_of(record_of(seq))[: len(block) - 1]
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


class OnePassWidthController(WidthController):
    """The same for drafts that are made in the pass which verifies those before them.

    Then a round is one pass of the anchor, width - 1 drafts and width - 1 masks. After a rejection, and only then, the
    next pass has no drafts to verify, and gives one token; it is taken to cost as much as the others.
    """

    passes = 1

    def _load(self, width: float) -> float:
        return 2 * width - 1

    def _tokens(self, choice: Choice, hopeful: float = 0.0) -> list[float]:
        survival = choice.prior.survival_of(choice.record, hopeful)
        expected = list(accumulate(survival, initial=1.0))
        tokens = []
        for each in choice.rounds:
            drafts = min(each.width - 1, len(survival))
            whole = survival[drafts - 1] if drafts else 1.0
            # Of 2 - whole passes, one verifies and 1 - whole come after a rejection.
            tokens.append((expected[drafts] + 1.0 - whole) / (2.0 - whole))
        return tokens


def record_of(seq: Sequence) -> DraftRecord:
    """The sequence's record, begun where there is none yet."""
    if seq.drafts is None:
        seq.drafts = DraftRecord()
    return seq.drafts
