"""If these fail, the numbers people compare servers by are wrong."""

import pytest

from loadtest.records import Distribution, Record, Slo, distribution, percentile, summarise, wilson


def record(end_s: float = 1.0, **fields: object) -> Record:
    defaults = {"index": 0, "start_s": 0.0, "end_s": end_s, "first_text_s": 0.2, "prompt_tokens": 10}
    return Record(**(defaults | {"completion_tokens": 9, "finish_reason": "stop"} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 3.0), (0.9, 4.6), (1.0, 5.0)])
def test_percentiles_interpolate_between_neighbours(share: float, expected: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0, 5.0], share) == pytest.approx(expected)


def test_a_single_sample_is_every_percentile_and_an_empty_one_is_refused() -> None:
    assert percentile([7.0], 0.99) == 7.0
    with pytest.raises(ValueError, match="empty"):
        percentile([], 0.5)
    assert distribution([]) == Distribution()


def test_a_distribution_takes_values_in_any_order() -> None:
    found = distribution([3.0, 1.0, 2.0])
    assert (found.count, found.mean, found.p50, found.max) == (3, 2.0, 2.0, 3.0)


def test_tokens_and_rates_come_from_usage_of_successes_only() -> None:
    records = [record(), record(completion_tokens=3), record(error="http_500", completion_tokens=100)]
    summary = summarise(records, wall_s=2.0)
    assert (summary.requests, summary.succeeded, summary.failed) == (3, 2, 1)
    assert summary.completion_tokens == 12
    assert summary.output_tokens_per_s == pytest.approx(6.0)
    assert summary.requests_per_s == pytest.approx(1.0)
    assert summary.errors == {"http_500": 1}


def test_answers_without_usage_are_counted_not_guessed() -> None:
    summary = summarise([record(), record(completion_tokens=None)], wall_s=1.0)
    assert summary.completion_tokens == 9
    assert summary.without_usage == 1


def test_latencies_of_failures_do_not_flatter_the_percentiles() -> None:
    summary = summarise([record(end_s=2.0), record(end_s=0.001, error="connect")], wall_s=2.0)
    assert summary.end_s.count == 1
    assert summary.end_s.p50 == 2.0


def test_goodput_counts_what_met_the_whole_target_and_a_failure_as_a_miss() -> None:
    slo = Slo(first_text_s=0.5, end_s=1.5)
    records = [record(1.0), record(2.0), record(1.0, first_text_s=0.9), record(0.1, error="timeout")]
    summary = summarise(records, wall_s=2.0, slo=slo)
    assert summary.goodput_requests_per_s == pytest.approx(0.5)
    assert summary.slo_share == pytest.approx(0.25)


def test_a_target_on_first_text_fails_when_nothing_was_streamed() -> None:
    assert not Slo(first_text_s=0.5).met(record(first_text_s=None))
    assert Slo(end_s=1.0).met(record(1.0, first_text_s=None))


def test_tokens_per_pass_is_all_tokens_over_all_passes() -> None:
    records = [record(passes=3), record(passes=1, completion_tokens=7), record(completion_tokens=1000)]
    summary = summarise(records, wall_s=1.0)
    assert summary.tokens_per_pass == pytest.approx(16 / 4)
    assert summarise([record()], wall_s=1.0).tokens_per_pass is None


def test_time_per_token_leaves_out_the_first() -> None:
    summary = summarise([record(1.0, first_text_s=0.2, completion_tokens=9)], wall_s=1.0)
    assert summary.time_per_token_s.p50 == pytest.approx(0.1)


def test_cached_prompt_share_and_client_cost_are_reported() -> None:
    summary = summarise([record(cached_tokens=5)], wall_s=2.0, cpu_s=0.5)
    assert summary.cached_prompt_share == pytest.approx(0.5)
    assert summary.client_cpu_share == pytest.approx(0.25)


def test_an_empty_run_has_a_summary_too() -> None:
    summary = summarise([], wall_s=0.0, slo=Slo(end_s=1.0), abandoned=2)
    assert (summary.requests, summary.abandoned, summary.slo_share) == (0, 2, None)


def test_the_wilson_interval_holds_the_share_and_stays_within_bounds() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(10, 10)[1] == pytest.approx(1.0)
