"""Engine: takes requests, returns events, one step at a time. Called in process or through engine.process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from engine.assembly import EngineParts, load_parts
from engine.batch import BatchPlan, Phase
from engine.config import EngineConfig
from engine.decoding.contract import outcomes_of
from engine.decoding.results import STEP_FAILED, StepOutcome
from engine.errors import RankError, RequestError
from engine.events import GenerationEvent, StepStats
from engine.grammar.compiler import GrammarCompiler, load_vocabulary
from engine.grammar.queue import GrammarQueue
from engine.grammar.state import GrammarState, GrammarVocabulary
from engine.measure.clock import clock_for
from engine.measure.roofline import PassShape
from engine.models.files import model_directory
from engine.models.load_progress import ReportWeights
from engine.request import Request
from engine.scheduling.gap_search import GapSearches
from engine.scheduling.outcome import finish_event
from engine.sequence import Sequence
from engine.validate import check_request

log = logging.getLogger("lightcone.engine")


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
        self.prefill = parts.prefill
        self._work = parts.work
        self._widths = parts.widths
        self._now = clock_for(parts.device).now
        self._end_token_ids = frozenset(parts.info.end_token_ids)
        self._arrivals = 0
        self._failed = False
        """The latest pass failed as a whole."""
        self._searches = GapSearches()
        self._compiling: GrammarQueue[Sequence] = GrammarQueue(GrammarCompiler(self._load_vocabulary))

    @classmethod
    def load(
        cls,
        config: EngineConfig,
        report: ReportWeights = lambda *progress: None,
        directory: Path | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> Engine:
        """Loads the model that the configuration names; see `load_parts`. Raises EngineError, one line."""
        return cls(load_parts(config, report, directory, on_lost))

    def close(self) -> None:
        """Ends the processes that run the model beside this one, where there are any."""
        self.runner.close()

    def add(self, request: Request) -> None:
        """Queues a request; it joins before the next pass it fits into. RequestError if it can never be served.

        One with a grammar queues once that has been compiled, beside the passes; if that fails it ends with an error.
        """
        check_request(request, self.info)
        if any(request.request_id in each for each in (self._compiling, self.scheduler, self._searches)):
            raise RequestError(f"request id {request.request_id!r} is in use", "request_id")
        if request.finds_gap:
            self._queue_all(self._searches.begin(request))
        else:
            self._queue(request)

    def _queue_all(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self._queue(request)

    def _queue(self, request: Request) -> None:
        ends, model_ends = frozenset(request.stop_token_ids), self._end_token_ids
        if request.passes_ends:
            model_ends = frozenset()
        barred = model_ends - ends if request.ignore_eos else frozenset()
        ends |= model_ends - barred
        barred |= {banned[0] for banned in request.sampling.banned_sequences if len(banned) == 1}
        seq = Sequence(request, ends, self._arrivals, barred_token_ids=barred, received_at=time.monotonic())
        self._arrivals += 1
        seq.stats.prompt_tokens = seq.num_prompt
        self.policies[seq.mode].begin(seq)
        if request.grammar is None:
            self.scheduler.add(seq)
        else:
            self._compiling.add(request.request_id, seq, request.grammar)

    def _enqueue_compiled(self) -> list[GenerationEvent]:
        """Queues the sequences whose grammars are ready. Returns the Finished events of those that never will be."""
        events: list[GenerationEvent] = []
        for done in self._compiling.take(idle=not self.scheduler.has_work):
            seq = done.item
            if done.grammar is None:
                events.append(finish_event(seq, "error", error=done.error))
            else:
                seq.grammar = GrammarState(done.grammar, seq.end_token_ids, seq.num_prompt)
                self.scheduler.add(seq)
        return events

    def _load_vocabulary(self) -> GrammarVocabulary:
        path = model_directory(self.config.model) / "tokenizer.json"
        return load_vocabulary(path, self.info.vocab_size, self.info.end_token_ids, self.info.mask_token_id)

    def abort(self, request_id: str) -> list[GenerationEvent]:
        """Drops a request; its pages are free before the next pass. Returns its Finished event, if it was there."""
        if request_id in self._searches:
            trials, finished = self._searches.abort(request_id)
            for trial in trials:
                self.scheduler.abort(trial)
            return [finished]
        seq = self._compiling.remove(request_id)
        return self.scheduler.abort(request_id) if seq is None else [finish_event(seq, "abort")]

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return self.scheduler.has_work or bool(self._compiling)

    def step(self) -> tuple[list[GenerationEvent], StepStats]:
        """Runs one pass. Returns the events of requests and the pass's figures. Without work it only returns those."""
        started, began = time.monotonic(), self._now()
        refused = self._enqueue_compiled()
        plan = self.scheduler.schedule()
        outcomes, forward_seconds = self._run(plan)
        events, stats = self.scheduler.apply(plan, outcomes)
        shape = PassShape.of(plan, self._work.window)
        stats.bytes, stats.operations = self._work.count(shape).total
        stats.duration, stats.forward_duration = time.monotonic() - started, forward_seconds
        if plan.groups:
            # A prompt's tokens cost something else than those of decoding, and a failed pass was run several times.
            telling = Phase.PREFILL not in stats.phases and not self._failed
            seconds = self._now() - began if telling else None
            self._widths.observe_pass(shape.tokens, stats.sequences, shape.cached, seconds)
        return self._without_trials(refused + events), stats

    def _without_trials(self, events: list[GenerationEvent]) -> list[GenerationEvent]:
        """The events that clients see; those of trials lead to further ones."""
        if not self._searches:
            return events
        told, added, dropped = self._searches.follow(events)
        for trial in dropped:
            self.scheduler.abort(trial)
        self._queue_all(added)
        return told

    def _run(self, plan: BatchPlan) -> tuple[list[StepOutcome], float]:
        """The outcomes of a plan and the seconds its forward took.

        If the pass fails, each of its sequences is run alone, so that an error ends only the request at fault. Where
        several ranks run passes and are no longer in step, nothing more can be run: RankError.
        """
        self._failed = False
        if not plan.groups:
            self.runner.idle()
            return [], 0.0
        try:
            return self._forward_and_decode(plan)
        except RankError:
            raise
        except Exception:
            log.exception("a pass of %d tokens failed; running its sequences one by one", plan.num_tokens)
        self._failed = True
        return self._run_alone(plan)

    def _run_alone(self, plan: BatchPlan) -> tuple[list[StepOutcome], float]:
        outcomes: list[StepOutcome] = []
        seconds = 0.0
        for seq in dict.fromkeys(span.seq for span in plan.spans):
            alone = plan.only(seq)
            try:
                decoded, took = self._forward_and_decode(alone)
                outcomes += decoded
                seconds += took
            except RankError:
                raise
            except Exception:
                log.exception("request %s failed", seq.request.request_id)
                outcomes += [StepOutcome(span, error=STEP_FAILED) for span in alone.spans]
        return outcomes, seconds

    def _forward_and_decode(self, plan: BatchPlan) -> tuple[list[StepOutcome], float]:
        started = time.monotonic()
        logits = self.runner.forward(plan)
        seconds = time.monotonic() - started
        return outcomes_of(plan, logits, self.policies, self.prefill), seconds
