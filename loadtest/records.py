"""The record of one request, and statistics of many. Pure functions, no I/O."""

import math
from collections import Counter
from collections.abc import Sequence

import msgspec


class Record(msgspec.Struct, kw_only=True):
    """One request. Times are seconds; those "since the run's start" share the run's clock."""

    index: int
    category: str = ""
    start_s: float
    """Due time of the request, since the run's start. Latencies count from here: they include a client's delay."""
    lag_s: float = 0.0
    """Delay between its due time and the time it was sent."""
    first_text_s: float | None = None
    """Time to the first chunk with text. None when not streaming, or when no text came."""
    first_draft_s: float | None = None
    """Time to the first chunk with a draft (partially denoised text)."""
    gaps_s: list[float] = []
    """Between consecutive chunks with text."""
    end_s: float = 0.0
    """End-to-end latency."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """From the server's `usage`. None when the server sent none."""
    cached_tokens: int | None = None
    passes: int | None = None
    """Passes of the model, of `usage.diffusion`."""
    decoding: str = ""
    finish_reason: str = ""
    error: str = ""
    """The kind of error; empty for a success."""
    detail: str = ""
    text: str = ""


class Distribution(msgspec.Struct, frozen=True):
    """A sample's percentiles, in the sample's unit. All zero when the sample is empty."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class Slo(msgspec.Struct, frozen=True):
    """The latency target of goodput, in seconds. None: not a condition."""

    first_text_s: float | None = None
    end_s: float | None = None

    def met(self, record: Record) -> bool:
        """Whether a request succeeded and was fast enough. A target on first text fails when no text was streamed."""
        if record.error:
            return False
        if self.first_text_s is not None and (record.first_text_s is None or record.first_text_s > self.first_text_s):
            return False
        return self.end_s is None or record.end_s <= self.end_s


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Many requests. Latencies are of successful requests only, in seconds; rates are per second of `wall_s`."""

    requests: int
    succeeded: int
    failed: int
    abandoned: int = 0
    """Still in flight when the run was interrupted; in no other number."""
    errors: dict[str, int] = {}
    error_examples: dict[str, str] = {}
    finish_reasons: dict[str, int] = {}
    wall_s: float
    requests_per_s: float
    output_tokens_per_s: float
    goodput_requests_per_s: float | None = None
    """Successful requests that met the target, per second. None without a target."""
    slo_share: float | None = None
    """The share of all requests, failures included, that met the target."""
    prompt_tokens: int
    completion_tokens: int
    without_usage: int
    """Successes for which the server gave no usage: their tokens are missing from every token number."""
    cached_prompt_share: float
    passes: int
    tokens_per_pass: float | None = None
    """All tokens over all passes. None when the server reports no passes."""
    first_text_s: Distribution
    first_draft_s: Distribution
    gap_s: Distribution
    end_s: Distribution
    time_per_token_s: Distribution
    """For each request: (end to end - time to first text) / (tokens - 1)."""
    lag_s: Distribution
    client_cpu_share: float
    """CPU time the load generator used over `wall_s`: 1.0 is one core."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of an ascending sample lies, interpolated between its neighbours."""
    if not ordered:
        raise ValueError("percentile of an empty sample")
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def distribution(values: Sequence[float]) -> Distribution:
    """Percentiles of a sample in any order."""
    if not values:
        return Distribution()
    ordered = sorted(values)
    p50, p90, p95, p99 = (percentile(ordered, share) for share in (0.5, 0.9, 0.95, 0.99))
    return Distribution(len(ordered), sum(ordered) / len(ordered), p50, p90, p95, p99, ordered[-1])


def wilson(successes: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share, 95 % by default. (0, 1) when nothing was tried."""
    if total == 0:
        return 0.0, 1.0
    share = successes / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def summarise(
    records: Sequence[Record], wall_s: float, slo: Slo | None = None, *, cpu_s: float = 0.0, abandoned: int = 0
) -> Summary:
    """Reduce the records of one run that lasted `wall_s` seconds from the first request to the last answer."""
    good = [record for record in records if not record.error]
    per_second = 1.0 / wall_s if wall_s > 0 else 0.0
    met = sum(slo.met(record) for record in records) if slo is not None else 0
    prompt_tokens = sum(record.prompt_tokens or 0 for record in good)
    tokens = sum(record.completion_tokens or 0 for record in good)
    timed = [record for record in good if record.passes]
    passes = sum(record.passes or 0 for record in timed)
    examples: dict[str, str] = {}
    for record in records:
        if record.error:
            examples.setdefault(record.error, record.detail)
    return Summary(
        requests=len(records),
        succeeded=len(good),
        failed=len(records) - len(good),
        abandoned=abandoned,
        errors=dict(Counter(record.error for record in records if record.error).most_common()),
        error_examples=examples,
        finish_reasons=dict(Counter(record.finish_reason or "none" for record in good).most_common()),
        wall_s=wall_s,
        requests_per_s=len(good) * per_second,
        output_tokens_per_s=tokens * per_second,
        goodput_requests_per_s=met * per_second if slo is not None else None,
        slo_share=met / len(records) if slo is not None and records else None,
        prompt_tokens=prompt_tokens,
        completion_tokens=tokens,
        without_usage=sum(record.completion_tokens is None for record in good),
        cached_prompt_share=sum(record.cached_tokens or 0 for record in good) / max(1, prompt_tokens),
        passes=passes,
        tokens_per_pass=sum(record.completion_tokens or 0 for record in timed) / passes if passes else None,
        first_text_s=distribution([r.first_text_s for r in good if r.first_text_s is not None]),
        first_draft_s=distribution([r.first_draft_s for r in good if r.first_draft_s is not None]),
        gap_s=distribution([gap for record in good for gap in record.gaps_s]),
        end_s=distribution([record.end_s for record in good]),
        time_per_token_s=distribution([t for record in good if (t := _time_per_token(record)) is not None]),
        lag_s=distribution([record.lag_s for record in records]),
        client_cpu_share=cpu_s * per_second,
    )


def _time_per_token(record: Record) -> float | None:
    if record.first_text_s is None or record.completion_tokens is None or record.completion_tokens < 2:
        return None
    return (record.end_s - record.first_text_s) / (record.completion_tokens - 1)
