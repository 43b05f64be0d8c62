"""The report's plots as images. matplotlib is optional: without it there are none."""

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from loadtest.modes import Mode
from loadtest.reporting.palette import MARKERS, PALETTE, SERIES, with_variables
from loadtest.reporting.report import Report
from loadtest.scoring import ModeQuality
from loadtest.sweep import CellResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes"], None]
Form = Literal["png", "svg"]

_INK, _SOFT, _LINE, _PAPER = (PALETTE[name].light for name in ("ink", "soft", "line", "paper"))
_STYLE: Any = {
    "figure.facecolor": _PAPER,
    "axes.facecolor": "none",
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": _INK,
    "legend.facecolor": _PAPER,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "none",
}


def available() -> bool:
    """Whether matplotlib can be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def plots(report: Report, form: Form = "png") -> dict[str, bytes]:
    """Images by name, in the order to show them; empty without matplotlib or when there is nothing to draw.

    An SVG is an element for an HTML page, in that page's colours and type.
    """
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
    return {name: _drawn(draw, form, name) for name, draw in drawings.items()}


def _drawn(draw: Draw, form: Form, name: str) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.6, 3.6), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        figure.savefig(buffer, format=form, transparent=form == "svg")
    return buffer.getvalue() if form == "png" else _element(buffer.getvalue().decode(), name).encode()


def _element(svg: str, name: str) -> str:
    """matplotlib's SVG file as an element: no prolog, nothing about its making, and as wide as its place."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"', r"\1\2", svg, count=1)
    svg = re.sub(r' width="[\d.]+pt"', "", svg, count=1)
    return with_variables(svg.replace("<svg", f'<svg role="img" aria-label="{name.replace("-", " ")}"', 1))


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
    for colour, (label, values) in zip(SERIES, samples.items(), strict=False):
        if values:
            ordered = sorted(1000 * value for value in values)
            shares = [(rank + 1) / len(ordered) for rank in range(len(ordered))]
            axes.step(ordered, shares, where="post", color=colour, label=label)
    axes.set(title="Latency", xlabel="milliseconds", ylabel="share of requests at or below", ylim=(0, 1.02))
    _legend(axes)


def _throughput_latency(axes: "Axes", cells: Sequence[CellResult]) -> None:
    for look, (label, group) in zip(_looks(), _by_mode(cells).items(), strict=False):
        x, y = [1000 * cell.end_p50_s for cell in group], [cell.output_tokens_per_s for cell in group]
        axes.plot(x, y, label=label, **look)
        for cell, at_x, at_y in zip(group, x, y, strict=True):
            axes.annotate(
                str(cell.cell.concurrency), (at_x, at_y), (4, 4), textcoords="offset points", fontsize=8, color=_SOFT
            )
    title = "Throughput against latency (points: concurrency)"
    axes.set(title=title, xlabel="end to end, median, milliseconds", ylabel="output tokens a second")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _legend(axes)


def _first_text(axes: "Axes", cells: Sequence[CellResult]) -> None:
    groups = _by_mode(cells)
    levels = sorted({cell.cell.concurrency for cell in cells})
    width = 0.8 / max(1, len(groups))
    for index, (look, (label, group)) in enumerate(zip(_looks(), groups.items(), strict=False)):
        at = [levels.index(cell.cell.concurrency) + (index - (len(groups) - 1) / 2) * width for cell in group]
        heights = [1000 * cell.first_text_p50_s for cell in group]
        axes.bar(at, heights, width=width * 0.92, color=look["color"], label=label)
    axes.set_xticks(range(len(levels)), [str(level) for level in levels])
    axes.set(title="Time to first text", xlabel="concurrency", ylabel="median, milliseconds")
    _legend(axes)


def _against_threshold(axes: "Axes", points: Sequence[tuple[Mode, float | None]], what: str) -> None:
    """Modes with a threshold as lines over it, the others as level lines across; of equal modes the first counts."""
    lines: dict[str, dict[float, float]] = {}
    levels: dict[str, float] = {}
    names: dict[str, None] = {}
    for mode, value in points:
        if value is None:
            continue
        name = msgspec.structs.replace(mode, threshold=None).label()
        names[name] = None
        if mode.threshold is None:
            levels.setdefault(name, value)
        else:
            lines.setdefault(name, {}).setdefault(mode.threshold, value)
    looks = _looks()
    look_of = dict(zip(names, looks, strict=False))  # as in the other plots, by the order of the modes
    if not lines:
        axes.bar(list(levels), list(levels.values()), color=[look["color"] for look in looks[: len(levels)]], width=0.6)
        axes.set(title=what.capitalize(), ylabel=what)
        return
    for label, line in lines.items():
        x = sorted(line)
        axes.plot(x, [line[threshold] for threshold in x], label=label, **look_of[label])
    for style, (label, value) in zip(("--", ":", "-.") * len(levels), levels.items(), strict=False):
        axes.axhline(value, linestyle=style, linewidth=2, color=look_of[label]["color"], label=label)
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
            lines.setdefault(name, []).append((mode.tokens_per_pass, mode.exact_share, *spread(mode)))
    for look, (name, points) in zip(_looks(), lines.items(), strict=False):
        x, y, low_errors, high_errors = zip(*sorted(points), strict=True)
        axes.errorbar(x, y, yerr=[low_errors, high_errors], capsize=3, label=name, elinewidth=0.8, **look)
    axes.set(
        title="Quality against speed (bars: 95 % interval)", xlabel="tokens a pass", ylabel="share of right answers"
    )
    axes.set_xlim(left=0)
    lowest = min((share - low for points in lines.values() for _, share, low, _ in points), default=0.0)
    axes.set_ylim(max(0.0, lowest - 0.05), 1.02)
    _legend(axes)


def spread(mode: ModeQuality) -> tuple[float, float]:
    """How far the interval of a mode's share of right answers reaches below and above it.

    Where all or none are right, the interval's end may miss the share by a rounding error.
    """
    share = mode.exact_share or 0.0
    return max(0.0, share - mode.interval[0]), max(0.0, mode.interval[1] - share)


def _looks() -> list[dict[str, Any]]:
    """Colours and markers of the modes, in the order in which they are shown."""
    return [{"color": colour, "marker": marker} for marker, colour in zip(MARKERS, SERIES, strict=True)] * 8


def _legend(axes: "Axes") -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
