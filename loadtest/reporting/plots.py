"""The report's plots as PNG bytes. matplotlib is optional: without it there are none."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from loadtest.modes import Mode
from loadtest.reporting.report import Report
from loadtest.scoring import ModeQuality
from loadtest.sweep import CellResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#2563a8", "#d1602a", "#2f8f5b", "#8a4fa3", "#b08a1e", "#5b6470", "#c0396b", "#1b9aaa")

Draw = Callable[["Axes"], None]


def available() -> bool:
    """Whether matplotlib can be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def plots(report: Report) -> dict[str, bytes]:
    """PNG images by name, in the order to show them; empty without matplotlib or when there is nothing to draw."""
    if not available():
        return {}
    drawings: dict[str, Draw] = {}
    if report.records:
        drawings["latency"] = lambda axes: _latency(axes, report)
    if report.cells:
        drawings["throughput-latency"] = lambda axes: _throughput_latency(axes, report.cells)
        drawings["first-text"] = lambda axes: _first_text(axes, report.cells)
        if any(cell.tokens_per_pass is not None for cell in report.cells):
            points = [(cell.cell.mode, cell.tokens_per_pass) for cell in report.cells]
            drawings["tokens-per-pass"] = lambda axes: _against_threshold(axes, points, "tokens a pass")
    if report.modes:
        drawings["quality"] = lambda axes: _quality(axes, report.modes)
        passes = [(mode.mode, mode.tokens_per_pass) for mode in report.modes]
        if any(value is not None for _, value in passes):
            drawings["tokens-per-pass"] = lambda axes: _against_threshold(axes, passes, "tokens a pass")
            drawings["quality-speed"] = lambda axes: _quality_speed(axes, report.modes)
    return {name: _png(draw) for name, draw in drawings.items()}


def _png(draw: Draw) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    draw(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _by_mode(cells: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    groups: dict[str, list[CellResult]] = {}
    for cell in sorted(cells, key=lambda cell: cell.cell.concurrency):
        groups.setdefault(cell.cell.mode.label(), []).append(cell)
    return groups


def _latency(axes: "Axes", report: Report) -> None:
    good = [record for record in report.records if not record.error]
    samples = {
        "first text": [record.first_text_s for record in good if record.first_text_s is not None],
        "end to end": [record.end_s for record in good],
    }
    for colour, (label, values) in zip(_COLOURS, samples.items(), strict=False):
        if values:
            ordered = sorted(1000 * value for value in values)
            shares = [(rank + 1) / len(ordered) for rank in range(len(ordered))]
            axes.step(ordered, shares, where="post", color=colour, label=label)
    axes.set(title="Latency", xlabel="milliseconds", ylabel="share of requests at or below", ylim=(0, 1.02))
    _legend(axes)


def _throughput_latency(axes: "Axes", cells: Sequence[CellResult]) -> None:
    for colour, (label, group) in zip(_repeated(), _by_mode(cells).items(), strict=False):
        x, y = [1000 * cell.end_p50_s for cell in group], [cell.output_tokens_per_s for cell in group]
        axes.plot(x, y, marker="o", color=colour, label=label)
        for cell, at_x, at_y in zip(group, x, y, strict=True):
            axes.annotate(str(cell.cell.concurrency), (at_x, at_y), (4, 4), textcoords="offset points", fontsize=8)
    title = "Throughput against latency (points: concurrency)"
    axes.set(title=title, xlabel="end to end, median, milliseconds", ylabel="output tokens a second")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _legend(axes)


def _first_text(axes: "Axes", cells: Sequence[CellResult]) -> None:
    groups = _by_mode(cells)
    levels = sorted({cell.cell.concurrency for cell in cells})
    width = 0.8 / max(1, len(groups))
    for index, (colour, (label, group)) in enumerate(zip(_repeated(), groups.items(), strict=False)):
        at = [levels.index(cell.cell.concurrency) + (index - (len(groups) - 1) / 2) * width for cell in group]
        heights = [1000 * cell.first_text_p50_s for cell in group]
        axes.bar(at, heights, width=width * 0.92, color=colour, label=label)
    axes.set_xticks(range(len(levels)), [str(level) for level in levels])
    axes.set(title="Time to first text", xlabel="concurrency", ylabel="median, milliseconds")
    _legend(axes)


def _against_threshold(axes: "Axes", points: Sequence[tuple[Mode, float | None]], what: str) -> None:
    """Modes with a threshold as lines over it, the others as level lines across; of equal modes the first counts."""
    lines: dict[str, dict[float, float]] = {}
    levels: dict[str, float] = {}
    for mode, value in points:
        if value is None:
            continue
        if mode.threshold is None:
            levels.setdefault(mode.label(), value)
        else:
            line = lines.setdefault(msgspec.structs.replace(mode, threshold=None).label(), {})
            line.setdefault(mode.threshold, value)
    colours = _repeated()
    if not lines:
        axes.bar(list(levels), list(levels.values()), color=colours[: len(levels)], width=0.6)
        axes.set(title=what.capitalize(), ylabel=what)
        return
    for label, line in lines.items():
        x = sorted(line)
        axes.plot(x, [line[threshold] for threshold in x], marker="o", color=colours.pop(0), label=label)
    for style, (label, value) in zip(("--", ":", "-.") * len(levels), levels.items(), strict=False):
        axes.axhline(value, linestyle=style, linewidth=2, color=colours.pop(0), label=label)
    axes.set(title=f"{what.capitalize()} against threshold", xlabel="confidence threshold", ylabel=what)
    axes.set_ylim(bottom=0)
    _legend(axes)


def _quality(axes: "Axes", modes: Sequence[ModeQuality]) -> None:
    _against_threshold(axes, [(mode.mode, mode.exact_share) for mode in modes], "share of right answers")
    axes.set_ylim(0, 1.02)


def _quality_speed(axes: "Axes", modes: Sequence[ModeQuality]) -> None:
    """A line for each mode and rule, through the points of its thresholds and factors."""
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    for mode in modes:
        if mode.exact_share is not None and mode.tokens_per_pass is not None:
            own = mode.mode
            name = Mode(own.decoding, None, own.block_length, own.unmasking).label()
            low, high = mode.exact_share - mode.interval[0], mode.interval[1] - mode.exact_share
            lines.setdefault(name, []).append((mode.tokens_per_pass, mode.exact_share, low, high))
    for colour, (name, points) in zip(_repeated(), lines.items(), strict=False):
        x, y, low_errors, high_errors = zip(*sorted(points), strict=True)
        axes.errorbar(x, y, yerr=[low_errors, high_errors], fmt="o-", color=colour, capsize=3, label=name, lw=1, ms=4)
    axes.set(
        title="Quality against speed (bars: 95 % interval)", xlabel="tokens a pass", ylabel="share of right answers"
    )
    axes.set_xlim(left=0)
    lowest = min((share - low for points in lines.values() for _, share, low, _ in points), default=0.0)
    axes.set_ylim(max(0.0, lowest - 0.05), 1.02)
    _legend(axes)


def _repeated() -> list[str]:
    return list(_COLOURS) * 8


def _legend(axes: "Axes") -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
