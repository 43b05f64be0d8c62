"""Finds the length of a gap before a suffix: gaps of several lengths are filled, and the likeliest text wins.

Editors do not know how long the text is that belongs into a gap, and a model that was trained to fill all masks of a
gap fills all of them. So a request that asks for it becomes several *trials*: the same request with gaps of different
lengths, side by side in the same passes over a shared prompt. Each text is then scored by the causal head: the
log-likelihood of gap and suffix after the prompt, which compares texts of different lengths. The answer is that of the
winning length, as a request for just that length would get it.

The scheduler knows trials as requests like any others. Nothing here depends on what else is running.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from engine.events import Finished, FinishReason, GenerationEvent, GenerationStats, PromptScored, TokensSettled
from engine.request import DecodingParams, Request, SamplingParams

ROUNDS = (
    range(1, 2), range(2, 9), range(9, 17), (23, 32, 45, 64), (90, 128, 181, 256), (362, 512, 724, 1024),
)  # fmt: skip
"""Lengths of each round until one is found that nothing can beat: all of the short ones, then steps of the square root
of 2. The first is alone, so that the others find the prompt in the prefix cache."""
FINE = 4
"""Most lengths of a later round, between two that were tried."""
TRIAL_STEPS = 16
"""Most denoising steps of a trial. A long text of which the model is unsure would take as many as it has tokens; if it
wins nevertheless, it is filled once more as was asked for."""
SURE = math.log(0.5)
"""A text of more than half the probability is the likeliest of all, so that no other length has to be tried."""


@dataclass(slots=True)
class Trial:
    """A gap of one length."""

    settled: list[TokensSettled] = field(default_factory=list)
    """Its text, as it was told."""
    score: float | None = None
    """Log-likelihood of gap and suffix after the prompt; None: not known yet."""
    hurried: bool = False
    """It took fewer denoising steps than it would have taken alone."""

    @property
    def token_ids(self) -> list[int]:
        return [token for event in self.settled for token in event.token_ids]


@dataclass(slots=True)
class Search:
    """One request whose gap's length is being found."""

    request: Request
    trials: dict[int, Trial] = field(default_factory=dict)
    """By length."""
    running: dict[str, int] = field(default_factory=dict)
    """Requests that the scheduler has of it, each with the length that it belongs to."""
    final: str = ""
    """The request that fills the winning gap once more, where one does."""
    stats: GenerationStats = field(default_factory=GenerationStats)
    """Sums over the trials that have ended."""

    @property
    def scores(self) -> dict[int, float]:
        """Of the lengths whose texts were scored."""
        return {length: trial.score for length, trial in self.trials.items() if trial.score is not None}


class GapSearches:
    """The searches of one engine: turns a request into trials, and their events into the request's."""

    def __init__(self) -> None:
        self._searches: dict[str, Search] = {}
        self._owners: dict[str, Search] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._searches

    def __len__(self) -> int:
        return len(self._searches)

    def begin(self, request: Request) -> list[Request]:
        """The first trials of a request."""
        search = Search(request)
        self._searches[request.request_id] = search
        return self._next_trials(search)

    def abort(self, request_id: str) -> tuple[list[str], Finished]:
        """Forgets a search. Returns the requests that the scheduler has of it, and the last event of the search."""
        search = self._searches.pop(request_id)
        for name in search.running:
            del self._owners[name]
        return list(search.running), Finished(request_id=request_id, reason="abort", stats=search.stats)

    def follow(self, events: Iterable[GenerationEvent]) -> tuple[list[GenerationEvent], list[Request], list[str]]:
        """Takes the events of a pass in. Returns those to report, requests to add, and requests to drop."""
        told: list[GenerationEvent] = []
        added: list[Request] = []
        dropped: list[str] = []
        for event in events:
            search = self._owners.get(event.request_id)
            if search is None:
                told.append(event)
                continue
            trial = search.trials[search.running[event.request_id]]
            if isinstance(event, TokensSettled):
                trial.settled.append(event)
            elif isinstance(event, PromptScored):
                trial.score = (trial.score or 0.0) + math.fsum(entry.logprob for entry in event.logprobs)
            elif isinstance(event, Finished):
                if event.reason in ("error", "abort"):
                    others, _ = self.abort(search.request.request_id)
                    dropped += [name for name in others if name != event.request_id]
                    told.append(msgspec.structs.replace(event, request_id=search.request.request_id))
                    continue
                added += self._after_end(search, event, told)
        return told, added, dropped

    # -- inside -------------------------------------------------------------------------------------------------

    def _after_end(self, search: Search, event: Finished, told: list[GenerationEvent]) -> list[Request]:
        """A request of the search has ended. Returns what is to run next; reports the answer if that is nothing."""
        length = search.running.pop(event.request_id)
        del self._owners[event.request_id]
        add_up(search.stats, event.stats)
        trial = search.trials[length]
        if trial.score is None:
            trial.hurried = is_hurried(search.request, event.stats.denoising_steps)
            return [self._run(search, length, scoring_request(search.request, trial.token_ids))]
        if search.running:
            return []
        if not search.final:
            following = self._next_trials(search) or self._final_run(search)
            if following:
                return following
        del self._searches[search.request.request_id]
        told += answer_of(search)
        return []

    def _final_run(self, search: Search) -> list[Request]:
        """The winning gap once more, without hurry; nothing where there was none."""
        best = best_length(search.scores)
        if not search.trials[best].hurried:
            return []
        final = trial_request(search.request, best, hurried=False)
        search.trials[best].settled, search.final = [], final.request_id
        return [self._run(search, best, final)]

    def _next_trials(self, search: Search) -> list[Request]:
        request = search.request
        lengths = next_lengths(search.scores, max(1, request.sampling.min_tokens), request.max_tokens)
        for length in lengths:
            search.trials[length] = Trial()
        return [self._run(search, length, trial_request(request, length, hurried=True)) for length in lengths]

    def _run(self, search: Search, length: int, request: Request) -> Request:
        search.running[request.request_id] = length
        self._owners[request.request_id] = search
        return request


def next_lengths(scores: Mapping[int, float], least: int, most: int) -> list[int]:
    """Lengths from `least` to `most` to try next, given the scores of those that were tried; none once it is over.

    After the rounds, those around the best up to its tried neighbours on both sides, again and again.
    """
    best = best_length(scores) if scores else 0
    if scores and scores[best] > SURE:
        return []
    for lengths in ROUNDS:
        missing = [length for length in lengths if least <= length <= most and length not in scores]
        if lengths[-1] >= most and most not in scores:
            missing = sorted({*missing, most})
        if missing:
            return missing if scores else missing[:1]
        if lengths[-1] >= most:
            break
    if most not in scores:  # beyond the longest round
        return [most]
    tried = sorted(scores)
    at = tried.index(best)
    below = tried[at - 1] if at else least - 1
    above = tried[at + 1] if at + 1 < len(tried) else most + 1
    between = [*range(below + 1, best), *range(best + 1, above)]
    step = max(1, -(-len(between) // FINE))
    return between[step // 2 :: step]


def best_length(scores: Mapping[int, float]) -> int:
    """The length of the likeliest text; of equals the shortest."""
    return min(scores, key=lambda length: (-scores[length], length))


def is_hurried(request: Request, steps: int) -> bool:
    """Whether a trial that took so many denoising steps might have taken more. Without a threshold it would have."""
    asked = request.decoding.max_denoising_steps
    return steps >= TRIAL_STEPS and (asked is None or asked > TRIAL_STEPS)


def trial_request(request: Request, length: int, *, hurried: bool) -> Request:
    """The same request for a gap of exactly this length. hurried: in TRIAL_STEPS at most."""
    decoding, steps = request.decoding, request.decoding.max_denoising_steps
    if hurried and length > TRIAL_STEPS:
        steps = min(steps or length, TRIAL_STEPS)
    if steps is not None:  # never more than there are masks
        decoding = msgspec.structs.replace(decoding, max_denoising_steps=min(steps, length))
    return msgspec.structs.replace(
        request,
        request_id=f"{request.request_id}/{length}" + ("" if hurried else "/final"),
        max_tokens=length,
        decoding=decoding,
        finds_gap=False,
        include_drafts=False,
    )


def scoring_request(request: Request, filled: list[int]) -> Request:
    """The request that scores a filled gap and the suffix behind it."""
    prompt = request.prompt_token_ids
    return Request(
        request_id=f"{request.request_id}/{len(filled)}/score",
        prompt_token_ids=[*prompt, *filled, *(request.suffix_token_ids or ())],
        max_tokens=0,
        sampling=SamplingParams(temperature=0.0),
        decoding=DecodingParams(mode="ar"),
        priority=request.priority,
        cache_salt=request.cache_salt,
        prompt_logprobs=0,
        score_from=len(prompt),
    )


def add_up(total: GenerationStats, stats: GenerationStats) -> None:
    """Adds the passes and steps of one trial to those of its search."""
    if not total.prompt_tokens:  # of the first trial, which the others share the prompt with
        total.prompt_tokens, total.cached_tokens = stats.prompt_tokens, stats.cached_tokens
    for name in ("passes", "denoising_steps", "blocks", "preemptions"):
        setattr(total, name, getattr(total, name) + getattr(stats, name))
    total.queue_seconds = max(total.queue_seconds, stats.queue_seconds)


def answer_of(search: Search) -> list[GenerationEvent]:
    """The events of the winning trial, in the request's name."""
    request, stats = search.request, search.stats
    best = best_length(search.scores)
    stats.completion_tokens = best
    told = [
        msgspec.structs.replace(event, request_id=request.request_id, stats=stats)
        for event in search.trials[best].settled
    ]
    reason: FinishReason = "length" if best == request.max_tokens else "stop"
    return [*told, Finished(request_id=request.request_id, reason=reason, stats=stats)]
