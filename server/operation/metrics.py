"""The metrics that Prometheus scrapes. One registry an application, every name with the `lightcone_` prefix."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from engine.config import EngineInfo
from engine.events import GenerationStats, StepStats

_LATENCY = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
"""Seconds, from a GPU's pass to a CPU's long answer."""
_COUNTS = tuple(2.0**exponent for exponent in range(18))
_MEMORY = 0.99
"""Weight of earlier passes against the latest one in `speed_of_light_ratio`."""
_PER_PASS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)

disable_created_metrics()  # type: ignore[no-untyped-call]  # series that nobody reads

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """All of the server's metrics, fed from engine steps and from finished requests."""

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        # prometheus_client takes the histogram prompt_tokens and the counter prompt_tokens_total for one name.
        self._histogram_registry = CollectorRegistry()
        self._model = model
        self._gauges()
        self._counters()
        self._histograms()
        self._speed: tuple[float, float] | None = None  # bytes and operations a second
        self._possible = self._taken = 0.0  # seconds of lately run passes

    def _gauge(self, name: str, text: str) -> Gauge:
        gauge = Gauge(f"lightcone_{name}", text, ["model"], registry=self._registry)
        return gauge.labels(self._model)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        counter = Counter(f"lightcone_{name}", text, ["model", *labels], registry=self._registry)
        return counter if labels else counter.labels(self._model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        histogram = Histogram(
            f"lightcone_{name}", text, ["model", *labels], registry=self._histogram_registry, buckets=buckets
        )
        return histogram if labels else histogram.labels(self._model)

    def _gauges(self) -> None:
        self.running = self._gauge("requests_running", "Choices being decoded or prefilled")
        self.waiting = self._gauge("requests_waiting", "Choices that wait to run")
        self.kv_usage = self._gauge("kv_cache_usage_ratio", "Share of KV pages held by running choices")
        self.step_sequences = self._gauge("step_batch_sequences", "Sequences of the latest pass")
        self.step_tokens = self._gauge("step_batch_tokens", "Query tokens of the latest pass")
        self.engine_up = self._gauge("engine_up", "1 while the engine is loaded and alive")
        self._ranks = self._gauge("tensor_parallel_size", "Ranks that run the model together")
        self._cache_info = Gauge(
            "lightcone_cache_config_info", "Shape of the KV pool", ["model", "page_size", "num_pages"],
            registry=self._registry,
        )  # fmt: skip
        self._speed_of_light = self._gauge(
            "speed_of_light_ratio", "Least possible time of lately run passes over the time they took; 0: not measured"
        )

    def _counters(self) -> None:
        self.prompt_tokens_total = self._counter(
            "prompt_tokens", "Prompt tokens of ended choices, counted for each choice"
        )
        self.prompt_cached_total = self._counter("prompt_tokens_cached", "Prompt tokens found in the prefix cache")
        self.generation_tokens_total = self._counter("generation_tokens", "Tokens generated, as they settle")
        self.passes_total = self._counter("passes", "Sequences passed through the model, by phase", ("phase",))
        self.denoising_steps_total = self._counter("denoising_steps", "Denoising and drafting passes")
        self.draft_tokens_total = self._counter("draft_tokens", "Tokens drafted for verification")
        self.accepted_total = self._counter("accepted_draft_tokens", "Drafted tokens that were accepted")
        self.edited_total = self._counter("edited_tokens", "Unmasked tokens that were replaced before they settled")
        self.preemptions_total = self._counter("preemptions", "Sequences preempted for lack of KV pages")
        self.requests_total = self._counter(
            "requests", "HTTP generation requests", ("endpoint", "status", "finish_reason", "decoding")
        )
        self.rejected_total = self._counter("requests_rejected", "Requests refused before any work", ("reason",))
        self.restarts_total = self._counter("engine_restarts", "Restarts of the engine process")
        self.nan_logits_total = self._counter("nan_logits", "Rows of logits that were not finite")

    def _histograms(self) -> None:
        histogram = self._histogram
        self.first_text = histogram("time_to_first_token_seconds", "Admission to first settled text", _LATENCY)
        self.first_draft = histogram("time_to_first_draft_seconds", "Admission to first draft", _LATENCY)
        self.inter_chunk = histogram("inter_chunk_seconds", "Between two chunks of a stream", _LATENCY)
        self.per_token = histogram(
            "request_time_per_output_token_seconds", "Seconds a token after the first text, by request", _LATENCY
        )
        self.latency = histogram("e2e_request_latency_seconds", "Admission to end of the answer", _LATENCY)
        self.queue_time = histogram("queue_time_seconds", "Wait before the first pass", _LATENCY)
        self.step_duration = histogram("step_duration_seconds", "Passes, by the phase that leads", _LATENCY, ("phase",))
        self.tokens_per_pass = histogram("tokens_per_pass", "Tokens a pass, by choice", _PER_PASS)
        self.block_steps = histogram("denoising_steps_per_block", "Denoising steps a block took", _COUNTS[:8])
        self.accepted_length = histogram("accepted_draft_length", "Draft tokens accepted a round", (0.0, *_COUNTS[:8]))
        self.prompt_tokens = histogram("prompt_tokens", "Prompt tokens of a choice", _COUNTS)
        self.generation_tokens = histogram("generation_tokens", "Tokens of a choice", _COUNTS)

    def set_engine(self, info: EngineInfo) -> None:
        """Records that the engine is loaded, or loaded again."""
        self.engine_up.set(1)
        known = info.device_bandwidth > 0 and info.device_rate > 0
        self._speed = (info.device_bandwidth, info.device_rate) if known else None
        self._ranks.set(info.tensor_parallel_size)
        self._cache_info.clear()
        self._cache_info.labels(self._model, str(info.page_size), str(info.num_pages)).set(1)

    def engine_lost(self) -> None:
        """Records that the engine is gone, and with it everything that ran or waited."""
        for gauge in (
            self.engine_up, self.running, self.waiting, self.kv_usage, self.step_sequences, self.step_tokens,
        ):  # fmt: skip
            gauge.set(0)

    def record_step(self, stats: StepStats) -> None:
        """Records the statistics of one engine step."""
        self.running.set(stats.running)
        self.waiting.set(stats.waiting)
        self.kv_usage.set(1 - stats.free_pages / stats.num_pages if stats.num_pages else 0)
        self.step_sequences.set(stats.sequences)
        self.step_tokens.set(stats.tokens)
        for phase, count in stats.phases.items():
            self.passes_total.labels(self._model, phase).inc(count)
        if stats.phases:
            leading = max(stats.phases, key=lambda phase: stats.phases[phase])
            self.step_duration.labels(self._model, leading).observe(stats.duration)
            self._compare_with_light(stats)
        self.denoising_steps_total.inc(stats.phases.get("denoise", 0) + stats.phases.get("draft", 0))
        self.draft_tokens_total.inc(stats.draft_tokens)
        self.accepted_total.inc(sum(stats.accepted_draft_lengths))
        self.edited_total.inc(stats.edited_tokens)
        self.preemptions_total.inc(stats.preemptions)
        self.nan_logits_total.inc(stats.nan_logits)
        for steps in stats.denoising_steps_per_block:
            self.block_steps.observe(steps)
        for length in stats.accepted_draft_lengths:
            self.accepted_length.observe(length)

    def _compare_with_light(self, stats: StepStats) -> None:
        """Sets the roofline's share of the time over about the last 100 passes (see engine.measure.roofline)."""
        if self._speed is None:
            return
        bandwidth, rate = self._speed
        possible = max(stats.bytes / bandwidth, stats.operations / rate)
        self._possible = _MEMORY * self._possible + possible
        self._taken = _MEMORY * self._taken + stats.duration
        self._speed_of_light.set(self._possible / max(self._taken, 1e-9))

    def record_tokens(self, count: int) -> None:
        """Records tokens of answers as they settle."""
        self.generation_tokens_total.inc(count)

    def record_choice(self, stats: GenerationStats, prompt_tokens: int) -> None:
        """Records one choice that has ended in any way."""
        self.prompt_tokens_total.inc(prompt_tokens)
        self.prompt_cached_total.inc(stats.cached_tokens)
        self.prompt_tokens.observe(prompt_tokens)
        self.generation_tokens.observe(stats.completion_tokens)
        self.queue_time.observe(stats.queue_seconds)
        if stats.passes:
            self.tokens_per_pass.observe(stats.completion_tokens / stats.passes)

    def record_request(self, endpoint: str, status: int, finish_reason: str, decoding: str) -> None:
        """Records one HTTP generation request that was admitted."""
        self.requests_total.labels(self._model, endpoint, str(status), finish_reason, decoding).inc()

    def record_times(
        self, total: float, first_text: float | None, first_draft: float | None, completion_tokens: int
    ) -> None:
        """Records the times of one HTTP generation request, in seconds from its admission, when its prompt is ready."""
        self.latency.observe(total)
        if first_text is not None:
            self.first_text.observe(first_text)
            if completion_tokens > 1:
                self.per_token.observe((total - first_text) / (completion_tokens - 1))
        if first_draft is not None:
            self.first_draft.observe(first_draft)

    def record_rejection(self, reason: str) -> None:
        """Records one request that was refused before any work was done for it."""
        self.rejected_total.labels(self._model, reason).inc()

    def render(self) -> bytes:
        """All metrics in Prometheus's exposition format."""
        return generate_latest(self._registry) + generate_latest(self._histogram_registry)
