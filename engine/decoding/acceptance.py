"""How far drafts are accepted: a prior shared by all requests, and each request's own record."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from engine.sequence import DraftRecord

FORGETTING = 0.1
"""How fast what is known of a place fades while drafts do not reach it, next to how fast it changes when they do."""

PRIOR_TRIES = 6.0
"""Drafts of a request that weigh as much as the prior does."""
OVERALL_TRIES = 4.0
"""Drafts of a request at one place that weigh as much as its drafts at all places together do."""
ROUND_FADES, TOKEN_FADES = 0.95, 0.995
"""What stays of a request's record with a verification, and with a token decoded plainly: texts change."""
EARLY_ROUNDS = 4.0
"""Verifications of a request by which its say in the prior is halved: a long answer is not many requests."""


class AcceptanceEstimate:
    """How far drafts are accepted lately, by how far into the block: P(draft k is accepted, those before it were).

    Places that drafts have not reached, or not for long, are thought to be like the others: without that, a server that
    began with narrow blocks would never learn that wide ones pay.
    """

    def __init__(self, max_width: int, decay: float = 0.95, prior: float = 0.85) -> None:
        self._begun_with = (max_width, decay, prior)
        self._decay = decay
        self._overall = prior
        self._rates: list[float | None] = [None] * (max_width - 1)
        self._survival: list[float] | None = None
        self._tokens: list[float] = []

    def fresh(self) -> AcceptanceEstimate:
        """One that has seen nothing yet."""
        return AcceptanceEstimate(*self._begun_with)

    def observe(self, drafted: int, accepted: int, weight: float = 1.0) -> None:
        """Takes in one verification of `drafted` tokens. Of what follows a rejection nothing is known."""
        new, drafted = (1.0 - self._decay) * weight, min(drafted, len(self._rates))
        for k in range(min(accepted + 1, drafted)):
            hit = 1.0 if k < accepted else 0.0
            rate = self._rates[k]
            rate = self._overall if rate is None else rate
            self._rates[k] = rate + new * (hit - rate)
            self._overall += new * (hit - self._overall)
        for k in range(drafted, len(self._rates)):
            rate = self._rates[k]
            if rate is not None:
                self._rates[k] = rate + new * FORGETTING * (self._overall - rate)
        self._survival = None

    def observe_for(self, record: DraftRecord, drafted: int, accepted: int) -> None:
        """Takes in one verification for its request, and for those to come."""
        self.observe(drafted, accepted, EARLY_ROUNDS / (EARLY_ROUNDS + record.rounds))
        record.rounds += 1
        fade(record, ROUND_FADES)
        tried = min(accepted + 1, drafted, len(self._rates))
        missing = tried - len(record.tries)
        record.tries += [0.0] * missing
        record.hits += [0.0] * missing
        for k in range(tried):
            record.tries[k] += 1.0
            record.hits[k] += k < accepted
        record.all_tries += tried
        record.all_hits += min(accepted, tried)

    @property
    def rates(self) -> list[float]:
        """P(draft k is accepted, those before it were) of a request of which nothing is known, k = 1, 2, ..."""
        return [self._overall if rate is None else rate for rate in self._rates]

    @property
    def survival(self) -> list[float]:
        """P(drafts 1..k are all accepted) of such a request, k = 1, 2, ..."""
        if self._survival is None:
            self._survival = _products(self.rates)
            self._tokens = list(accumulate(self._survival, initial=1.0))
        return self._survival

    def tokens_per_round(self, width: int) -> float:
        """Expected tokens a round of such a request emits: the accepted drafts and the bonus token."""
        longest = len(self.survival) + 1
        return self._tokens[min(width, longest) - 1]

    def survival_of(self, record: DraftRecord, hopeful: float = 0.0) -> list[float]:
        """P(drafts 1..k are all accepted) of a request with this record, k = 1, 2, ...

        The mean of Beta distributions: the prior at a place counts as some tries, then the request's tries at all
        places, then those at the place itself. hopeful: accepted drafts to add, for a bound that it may well reach.
        """
        if not record.rounds and not hopeful:
            return self.survival
        tries = PRIOR_TRIES + hopeful + record.all_tries
        hits = hopeful + record.all_hits
        rates = [(PRIOR_TRIES * rate + hits) / tries for rate in self.rates]
        for k, (tried, hit) in enumerate(zip(record.tries, record.hits, strict=True)):
            rates[k] = (OVERALL_TRIES * rates[k] + hit) / (OVERALL_TRIES + tried)
        return _products(rates)


def fade(record: DraftRecord, share: float) -> None:
    """Forgets all but a share of a record."""
    record.tries = [share * value for value in record.tries]
    record.hits = [share * value for value in record.hits]
    record.all_tries *= share
    record.all_hits *= share


def _products(rates: Iterable[float]) -> list[float]:
    return list(accumulate(rates, lambda a, b: a * b))
