"""The contract of a decoding policy, and `outcomes_of`, which carries it out for the logits of a pass.

A policy never runs the model. It says which spans a sequence needs next (`plan`), turns a step group's logits into
choices (`decide`: vectorised tensor arithmetic over the whole group, nothing leaves the device), and, once the choices
of all groups have been copied to the host in one go, says what they mean for each sequence (`conclude`).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from collections.abc import Sequence as Rows

import torch

from engine.batch import BatchPlan, Phase, Span, StepGroup
from engine.decoding.results import STEP_FAILED, Choices, HostChoices, StepOutcome, to_host
from engine.models.spec import BlockStart
from engine.sampling.divided import Logits
from engine.sampling.sampler import Sampler
from engine.sequence import Sequence

log = logging.getLogger("lightcone.engine")


class GroupStep(ABC):
    """The step that all spans of a group take: from logits to outcomes."""

    @abstractmethod
    def decide(self, group: StepGroup, logits: Logits) -> Choices:
        """Chooses for every span of the group. logits: [n, num_logits, V], free to be overwritten."""

    @abstractmethod
    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        """Reads row i of the group's choices: updates the sequence's block, says what settled and what is cached."""


class DecodingPolicy(GroupStep):
    """One way to decode. The state of a sequence is in the Sequence and its Block, never in the policy."""

    mode: str
    block_start: BlockStart = "anchor"
    """First position of this policy's blocks; see ModelSpec."""

    def __init__(self, sampler: Sampler, mask_token_id: int) -> None:
        self.sampler = sampler
        self.mask_token_id = mask_token_id

    def begin(self, seq: Sequence) -> None:
        """Prepares a fresh sequence's state, before its prefill."""

    def begin_pass(self, num_running: int) -> None:
        """Called before the sequences of a pass are planned. num_running: sequences that hold pages."""

    @abstractmethod
    def plan(self, seq: Sequence) -> list[Span]:
        """The spans of the next pass for a prefilled sequence; two only in a shared pass. Repeatable: changes nothing
        that a second call would not change to the same value."""

    def needs_anchor(self, seq: Sequence) -> bool:
        """Whether prefill has to choose the sequence's first token, from its last logit."""
        return self.block_start == "anchor" and seq.block is None and not seq.num_generated

    def cache_target(self, seq: Sequence) -> int:
        """KV positions that must be cached before `plan`.

        An open block (also one that outlived a preemption) starts where the cache must end. Otherwise the last settled
        token is the anchor and stays out. A fresh sequence has no anchor yet: its whole prompt is run, and gives one.
        """
        if seq.block is not None:
            return seq.block.start
        anchored = self.block_start == "anchor" and seq.num_generated > 0
        return len(seq.token_ids) - anchored

    def positions_wanted(self, seq: Sequence) -> int:
        """KV positions that the sequence's next block reaches at most. Pages beyond may be given back."""
        return len(seq.token_ids) - 1 + min(seq.request.decoding.block_length, seq.num_remaining + 1)


@torch.inference_mode()
def outcomes_of(
    plan: BatchPlan, logits: Rows[Logits | None], policies: Mapping[str, DecodingPolicy], prefill: GroupStep
) -> list[StepOutcome]:
    """The outcomes of a pass, prefill included, in plan order.

    `decide` for each group, one copy to the host, `conclude` for each span.

    logits: of each group [n, num_logits, V], or None if it asked for none. An exception in `decide` is the caller's to
    handle; one in `conclude` becomes the outcome of its sequence alone.
    """
    steps = [prefill if group.phase is Phase.PREFILL else policies[group.mode] for group in plan.groups]
    choices = [
        None if rows is None else step.decide(group, rows)
        for step, group, rows in zip(steps, plan.groups, logits, strict=True)
    ]
    outcomes: list[StepOutcome] = []
    for step, group, chosen in zip(steps, plan.groups, to_host(choices), strict=True):
        for i, span in enumerate(group.spans):
            try:
                outcomes.append(step.conclude(span, chosen, i))
            except Exception:
                log.exception("request %s failed", span.seq.request.request_id)
                outcomes.append(StepOutcome(span, error=STEP_FAILED))
    return outcomes
