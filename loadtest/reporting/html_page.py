"""The report as one HTML file, without scripts and without anything that is fetched."""

import base64
from collections.abc import Mapping
from html import escape

from loadtest.reporting.report import Grid, Report, notes, tables

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2530; max-width: 1040px; margin: 2.5rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #e3e6ea; text-align: right }
th { color: #5b6470; font-weight: 600 }
th:first-child, td:first-child { text-align: left } .note { background: #fff6e0; padding: .5rem .8rem }
img { max-width: 100%; height: auto }
td.text { text-align: left; white-space: pre-wrap; font-family: ui-monospace, monospace }
"""

_KINDS = {"run": "Load test", "sweep": "Sweep", "quality": "Quality"}


def to_html(report: Report, images: Mapping[str, bytes]) -> str:
    """The whole page. `images` are PNG bytes by name, embedded in this order."""
    title = f"{_KINDS[report.kind]}: {report.settings.get('model') or report.settings.get('server', '')}"
    parts = [f"<h1>{escape(title)}</h1><p>{escape(report.created)}</p>"]
    parts += [f'<p class="note">{escape(note)}</p>' for note in notes(report)]
    parts += [_table(grid) for grid in tables(report)]
    parts += [_image(name, png) for name, png in images.items()]
    parts += [_samples(report), _settings(report)]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _table(grid: Grid) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in grid.head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in grid.rows)
    return f'<h2>{escape(grid.title)}</h2><div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _image(name: str, png: bytes) -> str:
    source = base64.b64encode(png).decode("ascii")
    return f'<p><img alt="{escape(name)}" src="data:image/png;base64,{source}"></p>'


def _samples(report: Report) -> str:
    rows = [
        [mode.mode.label(), kind, *sample]
        for mode in report.modes
        for kind, samples in (("wrong", mode.mistakes), (f"not as {mode.reference}", mode.disagreements))
        for sample in samples
    ]
    if not rows:
        return ""
    head = "".join(f"<th>{cell}</th>" for cell in ("mode", "", "question", "expected", "answer"))
    body = "".join("<tr>" + "".join(f'<td class="text">{escape(cell)}</td>' for cell in row) + "</tr>" for row in rows)
    return f'<h2>Samples</h2><div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _settings(report: Report) -> str:
    rows = [[name, str(value)] for name, value in report.settings.items()]
    return _table(Grid("Settings", ["", "value"], rows))
