"""The published unmasking rules, position by position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol


class Rule(Protocol):
    """A rule by name, and its parameters."""

    @property
    def unmasking(self) -> str: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def factor(self) -> float: ...
    @property
    def bound(self) -> float: ...


def by_rule(rule: Rule, logprobs: Mapping[int, float]) -> tuple[set[int], float]:
    """The positions that a rule unmasks, and by how much (nats) the closest comparison was made.

    logprobs: of the tokens chosen at the masked positions that take part in a step.
    """
    name, threshold, factor, bound = rule.unmasking, rule.threshold, rule.factor, rule.bound
    confidences = {j: math.exp(logprob) for j, logprob in logprobs.items()}
    order = sorted(confidences, key=lambda j: (-confidences[j], j))
    taken: set[int] = set()
    closest, product, going = math.inf, 1.0, True
    for place, j in enumerate(order):
        own = confidences[j]
        product *= own
        by_place = 1 - factor / (place + 2)
        limits = {
            "threshold": [threshold], "factor": [threshold, by_place], "bound": [threshold, bound, by_place],
            "cumulative": [threshold],
        }[name]  # fmt: skip
        value = product if name == "cumulative" else own
        closest = min([closest, *(abs(math.log(value / limit)) for limit in limits if limit and limit > 0)])
        reaches = threshold is not None and value >= threshold
        if name == "factor":
            going = going and own >= by_place and (threshold is None or reaches)
            reaches = going
        if name == "bound":
            reaches = reaches or (own >= bound and own >= by_place)
        if reaches:
            taken.add(j)
    return taken, closest
