"""The report: one structure for all commands, as JSON and as tables in the terminal."""

from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadtest.records import Distribution, Record, Summary
from loadtest.scoring import ModeQuality
from loadtest.sweep import CellResult, Ratio

SCHEMA = "lightcone-loadtest/1"
"""Changes when a field is renamed, removed or changes its unit."""


class Report(msgspec.Struct, kw_only=True):
    """The measurements of one command. Fields that the command does not use are empty. All times are seconds."""

    kind: Literal["run", "sweep", "quality"]
    settings: dict[str, Any]
    """Server, model, workload and load: enough to run it again. Never the API key."""
    schema: str = SCHEMA
    created: str = msgspec.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    interrupted: bool = False
    summary: Summary | None = None
    cells: list[CellResult] = []
    modes: list[ModeQuality] = []
    records: list[Record] = []


class Grid(NamedTuple):
    """One table: a title, column heads and rows of text. The first column is text, the others are numbers."""

    title: str
    head: list[str]
    rows: list[list[str]]


def to_json(report: Report) -> bytes:
    """The report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def tables(report: Report) -> list[Grid]:
    """The report's tables, for the terminal and for HTML alike."""
    found: list[Grid] = []
    if report.summary is not None:
        found += [_totals(report.summary), _latencies(report.summary)]
        if report.summary.errors:
            found.append(_errors(report.summary))
    if report.cells:
        found.append(_cells(report.cells))
        failures = [[cell.cell.label(), *row] for cell in report.cells for s in cell.repeats for row in _errors(s).rows]
        if failures:
            found.append(Grid("Errors", ["cell", "kind", "count", "example"], failures))
    if report.modes:
        found += [_modes(report.modes), _categories(report.modes)]
    return [grid for grid in found if grid.rows]


def figures(report: Report) -> list[tuple[str, str]]:
    """The few numbers that one looks for first, each with its name."""
    if report.summary is not None:
        s = report.summary
        found = [
            ("tokens a second", f"{s.output_tokens_per_s:,.0f}"),
            ("requests a second", f"{s.requests_per_s:.1f}"),
            ("tokens a pass", _number(s.tokens_per_pass, ".1f")),
            ("to first text, median", f"{1000 * s.first_text_s.p50:.0f} ms" if s.first_text_s.count else "-"),
            ("end to end, median", f"{1000 * s.end_s.p50:.0f} ms" if s.end_s.count else "-"),
            ("failed", f"{s.failed} of {s.requests}"),
        ]
        return [(name, value) for name, value in found if value != "-"]
    if report.cells:
        best = max(report.cells, key=lambda cell: cell.output_tokens_per_s)
        soonest = min(report.cells, key=lambda cell: cell.end_p50_s)
        return [
            (f"tokens a second at most: {best.cell.label()}", f"{best.output_tokens_per_s:,.0f}"),
            (f"end to end at least, median: {soonest.cell.label()}", f"{1000 * soonest.end_p50_s:.0f} ms"),
        ]
    return [
        (f"right answers of {mode.asked}: {mode.mode.label()}", _number(mode.exact_share, ".2f"))
        for mode in report.modes[:6]
    ]


def show(report: Report, console: Console) -> None:
    """Print the tables and the notes."""
    for grid in tables(report):
        table = Table(title=grid.title, title_justify="left", title_style="bold")
        for column, head in enumerate(grid.head):
            table.add_column(head, justify="right" if column else "left", overflow="fold")
        for row in grid.rows:
            table.add_row(*(Text(value) for value in row))  # Text: a server's words are never markup
        console.print(table)
    for note in notes(report):
        console.print(Text(note))


def notes(report: Report) -> list[str]:
    """Warnings about the numbers."""
    found = ["Interrupted: these are the numbers up to then."] if report.interrupted else []
    summaries = [report.summary] if report.summary else [s for cell in report.cells for s in cell.repeats]
    if any(s.without_usage for s in summaries):
        lost = sum(s.without_usage for s in summaries)
        found.append(f"{lost} answers came without usage: their tokens are missing from every token number.")
    if any(s.client_cpu_share > 0.8 for s in summaries):
        found.append("The load generator used most of a core: latencies may be its own.")
    if any(s.lag_s.p99 > 0.05 for s in summaries):
        found.append("Some requests left more than 50 ms late (counted as latency); see lag_s.")
    if any(s.cached_prompt_share > 0.05 for s in summaries):
        share = max(s.cached_prompt_share for s in summaries)
        found.append(f"Up to {share:.0%} of prompt tokens came from the server's prefix cache.")
    return found


def _totals(s: Summary) -> Grid:
    rows = [
        ["requests", f"{s.succeeded} ok, {s.failed} failed" + (f", {s.abandoned} abandoned" if s.abandoned else "")],
        ["duration", f"{s.wall_s:.2f} s"],
        ["output tokens a second", f"{s.output_tokens_per_s:.1f}"],
        ["requests a second", f"{s.requests_per_s:.2f}"],
        ["tokens", f"{s.prompt_tokens} in ({s.cached_prompt_share:.0%} cached), {s.completion_tokens} out"],
        ["finish reasons", ", ".join(f"{n} {reason}" for reason, n in s.finish_reasons.items()) or "-"],
        ["client CPU", f"{s.client_cpu_share:.2f} cores"],
    ]
    if s.tokens_per_pass is not None:
        rows.insert(4, ["tokens a pass", f"{s.tokens_per_pass:.2f}"])
    if s.goodput_requests_per_s is not None and s.slo_share is not None:
        rows.insert(4, ["goodput", f"{s.goodput_requests_per_s:.2f} requests a second, {s.slo_share:.0%} in target"])
    return Grid("Load", ["", "value"], rows)


def _latencies(s: Summary) -> Grid:
    rows = [
        ["time to first text", *_milliseconds(s.first_text_s)],
        ["time to first draft", *_milliseconds(s.first_draft_s)],
        ["between chunks", *_milliseconds(s.gap_s)],
        ["time per token", *_milliseconds(s.time_per_token_s)],
        ["end to end", *_milliseconds(s.end_s)],
    ]
    head = ["milliseconds", "count", "mean", "p50", "p90", "p95", "p99", "max"]
    return Grid("Latency", head, [row for row in rows if row[1] != "0"])


def _milliseconds(d: Distribution) -> list[str]:
    return [str(d.count), *(f"{1000 * value:.1f}" for value in (d.mean, d.p50, d.p90, d.p95, d.p99, d.max))]


def _errors(s: Summary) -> Grid:
    rows = [[kind, str(count), s.error_examples.get(kind, "")] for kind, count in s.errors.items()]
    return Grid("Errors", ["kind", "count", "example"], rows)


def _cells(cells: list[CellResult]) -> Grid:
    repeats = max(len(cell.repeats) for cell in cells)
    head = ["mode", "concurrency", "tokens/s", "ratio", "requests/s", "tokens/pass", "first text p50", "end p50"]
    rows = [
        [
            cell.cell.mode.label(),
            str(cell.cell.concurrency),
            f"{cell.output_tokens_per_s:.1f}",
            _ratio(cell.throughput_ratio),
            f"{cell.requests_per_s:.2f}",
            _number(cell.tokens_per_pass, ".2f"),
            f"{1000 * cell.first_text_p50_s:.0f} ms",
            f"{1000 * cell.end_p50_s:.0f} ms",
            f"{1000 * cell.end_p95_s:.0f} ms",
            _ratio(cell.latency_ratio),
            str(cell.failed),
        ]
        for cell in cells
    ]
    title = f"Medians of {repeats} interleaved repeats; ratios to the first row, within each repeat (lowest to highest)"
    return Grid(title, [*head, "end p95", "end p50 ratio", "failed"], rows)


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio.median:.2f}" + ("" if ratio.low == ratio.high else f" ({ratio.low:.2f} to {ratio.high:.2f})")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _modes(modes: list[ModeQuality]) -> Grid:
    head = ["mode", "right", "share", "95 % interval", f"same text as {modes[0].reference}", "tokens/pass", "errors"]
    rows = [
        [
            mode.mode.label(),
            f"{mode.correct} of {mode.asked}",
            _number(mode.exact_share, ".2f"),
            f"{mode.interval[0]:.2f} to {mode.interval[1]:.2f}" if mode.asked else "-",
            _number(mode.agreement, ".2f"),
            _number(mode.tokens_per_pass, ".2f"),
            ", ".join(f"{count} {kind}" for kind, count in mode.errors.items()) or "0",
        ]
        for mode in modes
    ]
    return Grid("Quality by mode", head, rows)


def _categories(modes: list[ModeQuality]) -> Grid:
    names = sorted({name for mode in modes for name in mode.categories if name})
    rows = [[name, *(_category(mode, name) for mode in modes)] for name in names]
    return Grid("Right answers by category", ["category", *(mode.mode.label() for mode in modes)], rows)


def _category(mode: ModeQuality, name: str) -> str:
    found = mode.categories.get(name)
    return "-" if found is None else f"{found.correct} of {found.asked}"
