"""The engine: requests in, events out, one step at a time. Drive `step()` in process, or through engine.process."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Rows

import torch

from engine.assembly import EngineParts, load_parts
from engine.batch import BatchPlan
from engine.config import EngineConfig
from engine.decoding.contract import StepOutcome, to_host
from engine.errors import RequestError
from engine.events import GenerationEvent, StepStats
from engine.grammar.compiler import GrammarCompiler, load_vocabulary
from engine.grammar.queue import GrammarQueue
from engine.grammar.state import GrammarVocabulary
from engine.measure.roofline import PassShape
from engine.models.files import model_directory
from engine.request import Request, check_request
from engine.scheduling.outcome import finish_event
from engine.sequence import Sequence

log = logging.getLogger("lightcone.engine")

STEP_FAILED = "The engine failed while it ran this request."


class Engine:
    """One model, one KV pool, one scheduler. Not thread-safe: one thread adds, aborts and steps."""

    def __init__(self, parts: EngineParts) -> None:
        self.config = parts.config
        self.info = parts.info
        self.device = parts.device
        self.runner = parts.runner
        self.sampler = parts.sampler
        self.scheduler = parts.scheduler
        self.policies = parts.policies
        self._work = parts.work
        self._end_token_ids = frozenset(parts.info.end_token_ids)
        self._arrivals = 0
        self._compiling = GrammarQueue(GrammarCompiler(self._load_vocabulary))

    @classmethod
    def load(cls, config: EngineConfig) -> Engine:
        """Loads the model that the configuration names. Raises ModelLoadError or ConfigError, one line each."""
        return cls(load_parts(config))

    def add(self, request: Request) -> None:
        """Queues a request; it joins before the next pass it fits into. RequestError if it can never be served.

        One with a grammar queues once that has been compiled, beside the passes; if that fails it ends with an error.
        """
        check_request(request, self.info)
        self._compiling.check_id(request.request_id)
        name = "infill" if request.suffix_token_ids is not None else request.decoding.decoding
        ends = frozenset(request.stop_token_ids)
        if not request.ignore_eos:
            ends |= self._end_token_ids
        seq = Sequence(request, self.policies[name], ends, self._arrivals, received_at=time.monotonic())
        self._arrivals += 1
        seq.stats.prompt_tokens = seq.num_prompt
        seq.policy.begin(seq)
        if request.grammar is not None:
            self._compiling.add(seq, request.grammar)
        else:
            self._queue(seq)

    def _queue(self, seq: Sequence) -> None:
        try:
            self.scheduler.add(seq)
        except KeyError as error:
            raise RequestError(str(error.args[0]), "request_id") from None

    def _queue_compiled(self) -> list[GenerationEvent]:
        """Queues the sequences whose grammars are ready; says which never will be."""
        ready, events = self._compiling.take(idle=not self.scheduler.has_work)
        for seq in ready:
            try:
                self._queue(seq)
            except RequestError as error:
                events.append(finish_event(seq, "error", error=str(error)))
        return events

    def _load_vocabulary(self) -> GrammarVocabulary:
        path = model_directory(self.config.model) / "tokenizer.json"
        return load_vocabulary(path, self.info.vocab_size, self.info.end_token_ids, self.info.mask_token_id)

    def abort(self, request_id: str) -> list[GenerationEvent]:
        """Drops a request; its pages are free before the next pass. Returns its Finished event, if it was there."""
        return self._compiling.abort(request_id) or self.scheduler.abort(request_id)

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return self.scheduler.has_work or bool(self._compiling)

    def step(self) -> tuple[list[GenerationEvent], StepStats]:
        """One pass. Returns what happened to requests, and the pass's figures. Does nothing when nothing can run."""
        started = time.monotonic()
        unusable = self._queue_compiled()
        plan = self.scheduler.schedule()
        self._clear_poisoned()  # of aborted and preempted requests: their pages may have new owners already
        forward_seconds = 0.0
        outcomes: list[StepOutcome] = []
        if plan.groups:
            outcomes, forward_seconds = self._run(plan)
        events, stats = self.scheduler.commit(plan, outcomes)
        stats.bytes, stats.operations = self._work.count(PassShape.of(plan)).total
        self._clear_poisoned()
        for outcome in outcomes:
            seq = outcome.span.seq
            if outcome.exhausted and self.scheduler.abort(seq.request.request_id):
                events.append(finish_event(seq, "stop"))
        stats.duration, stats.forward_duration = time.monotonic() - started, forward_seconds
        return unusable + events, stats

    def _clear_poisoned(self) -> None:
        if self.scheduler.poisoned_pages:
            self.runner.clear(self.scheduler.poisoned_pages)
            self.scheduler.poisoned_pages = []

    def _run(self, plan: BatchPlan) -> tuple[list[StepOutcome], float]:
        """Runs a plan; if that fails, each of its sequences alone, so that an error ends only the request at fault."""
        try:
            return self._forward_and_decide(plan)
        except Exception:
            log.exception("a pass of %d tokens failed; running its sequences one by one", plan.num_tokens)
        outcomes: list[StepOutcome] = []
        seconds = 0.0
        for seq in dict.fromkeys(span.seq for span in plan.spans):
            alone = plan.only(seq)
            try:
                concluded, took = self._forward_and_decide(alone)
                outcomes += concluded
                seconds += took
            except Exception:
                log.exception("request %s failed", seq.request.request_id)
                outcomes += [StepOutcome(span, error=STEP_FAILED) for span in alone.spans]
        return outcomes, seconds

    def _forward_and_decide(self, plan: BatchPlan) -> tuple[list[StepOutcome], float]:
        started = time.monotonic()
        logits = self.runner.forward(plan)
        seconds = time.monotonic() - started
        return decode(plan, logits), seconds


@torch.inference_mode()
def decode(plan: BatchPlan, logits: Rows[torch.Tensor | None]) -> list[StepOutcome]:
    """Each group's policy on its logits, one copy to the host, then what it means for each sequence, in plan order."""
    choices = [
        None if rows is None else group.policy.decide(group, rows)
        for group, rows in zip(plan.groups, logits, strict=True)
    ]
    outcomes: list[StepOutcome] = []
    for group, chosen in zip(plan.groups, to_host(choices), strict=True):
        for i, span in enumerate(group.spans):
            try:
                outcomes.append(group.policy.conclude(span, chosen, i))
            except Exception:
                log.exception("request %s failed", span.seq.request.request_id)
                outcomes.append(StepOutcome(span, error=STEP_FAILED))
    return outcomes
