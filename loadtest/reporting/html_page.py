"""The report as one HTML file, without scripts and without anything that is fetched. It looks like the live page."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

from loadtest.reporting.palette import css_variables
from loadtest.reporting.report import Grid, Report, figures, notes, tables

STYLE = Path(__file__).with_name("report.css")

_KINDS = {"run": "Load test", "sweep": "Sweep", "quality": "Quality"}
_WORDS = frozenset({"value", "example"})
"""Heads of columns that hold words, not numbers."""


def to_html(report: Report, drawings: Mapping[str, bytes]) -> str:
    """The whole page. `drawings` are SVG elements by name, shown in this order."""
    title = f"{_KINDS[report.kind]}: {report.settings.get('model') or report.settings.get('server', '')}"
    parts = [f'<header><h1>{escape(title)}</h1><p class="about">{escape(_about(report))}</p></header><main>']
    parts += [f'<p class="note">{escape(note)}</p>' for note in notes(report)]
    parts += [_figures(report), _plots(drawings)]
    parts += ['<div class="tables">', *(_table(grid) for grid in tables(report)), _settings(report), "</div>"]
    parts += [_samples(report), "</main>"]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{css_variables()}{STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _about(report: Report) -> str:
    """Which server, and when."""
    day, _, clock = report.created.partition("T")
    return " · ".join(filter(None, [str(report.settings.get("server", "")), f"{day} {clock[:5]} UTC"]))


def _figures(report: Report) -> str:
    """The few numbers that one looks for first."""
    shown = [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures(report)]
    return f'<dl class="figures">{"".join(shown)}</dl>' if shown else ""


def _plots(drawings: Mapping[str, bytes]) -> str:
    shown = [f"<figure>{drawing.decode()}</figure>" for drawing in drawings.values()]
    return f'<div class="plots">{"".join(shown)}</div>' if shown else ""


def _table(grid: Grid) -> str:
    kinds = [' class="words"' if head in _WORDS else "" for head in grid.head]
    head = "".join(f"<th{kind}>{escape(cell)}</th>" for kind, cell in zip(kinds, grid.head, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in grid.rows
    )
    heads = f"<tr>{head}</tr>" if grid.head != ["", "value"] else ""
    return f'<section><h2>{escape(grid.title)}</h2><div class="scroll"><table>{heads}{rows}</table></div></section>'


def _samples(report: Report) -> str:
    """Questions with the answers that were wrong, or other than the reference's: closed, as they are many."""
    shown = [
        f"<details><summary>{escape(f'{mode.mode.label()}: {kind}')}</summary>"
        f"{''.join(map(_sample, samples))}</details>"
        for mode in report.modes
        for kind, samples in (("wrong", mode.mistakes), (f"not as {mode.reference}", mode.disagreements))
        if samples
    ]
    return f'<h2>Samples</h2><div class="samples">{"".join(shown)}</div>' if shown else ""


def _sample(sample: tuple[str, str, str]) -> str:
    parts = zip(("question", "expected", "answer"), sample, strict=True)
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in parts) + "</dl>"


def _settings(report: Report) -> str:
    rows = [[name, str(value)] for name, value in report.settings.items()]
    return _table(Grid("Settings", ["", "value"], rows)) if rows else ""
