"""If these fail, a report cannot be read by a script, or by a person without a network."""

import re
from xml.etree import ElementTree

import msgspec
import pytest
from rich.console import Console

from loadtest.modes import Mode
from loadtest.records import Record, Slo, summarise
from loadtest.reporting import plots
from loadtest.reporting.html_page import to_html
from loadtest.reporting.palette import PALETTE
from loadtest.reporting.report import SCHEMA, Report, figures, notes, show, tables, to_json
from loadtest.scoring import score
from loadtest.sweep import cells_of, compare
from loadtest.workload import Prompt
from tests.http_helpers import ROOT


def records(**fields: object) -> list[Record]:
    common = {"start_s": 0.0, "completion_tokens": 8, "prompt_tokens": 5, "passes": 2, "gaps_s": [0.01, 0.02]} | fields
    made = [
        Record(index=i, first_text_s=0.1 + i / 100, end_s=0.5 + i / 10, **common)  # type: ignore[arg-type]
        for i in range(5)
    ]
    return [*made, Record(index=5, start_s=0.0, error="http_500", detail="<b>[red]no</b>", end_s=0.1)]


def run_report() -> Report:
    settings = {"server": "http://host", "model": "<m>"}
    return Report(kind="run", settings=settings, summary=summarise(records(), 1.0, Slo(0.12, None)), records=records())


def sweep_report() -> Report:
    cells = cells_of([1, 16], [Mode("ar"), Mode("diffusion", 0.7), Mode("diffusion", 0.9)])
    measured = [[summarise(records(completion_tokens=8 * (i + 1)), 1.0)] * 2 for i in range(len(cells))]
    return Report(kind="sweep", settings={"model": "m"}, cells=compare(cells, measured))


def quality_report() -> Report:
    prompts = [Prompt(text=f"<i>{i}", answers=("x",), category="c") for i in range(3)]
    modes = [Mode("ar"), Mode("diffusion", 0.7), Mode("diffusion", 0.9)]
    answers = [
        [Record(index=i, start_s=0.0, text="x" if i <= m else "y", passes=1, completion_tokens=4) for i in range(3)]
        for m in range(3)
    ]
    return Report(kind="quality", settings={"model": "m"}, modes=score(modes, prompts, answers))


REPORTS = {"run": run_report, "sweep": sweep_report, "quality": quality_report}
PLOTS = {
    "run": ["latency"],
    "sweep": ["throughput-latency", "first-text", "tokens-per-pass"],
    "quality": ["quality", "tokens-per-pass", "quality-speed"],
}


@pytest.mark.parametrize("kind", list(REPORTS))
def test_the_html_is_one_file_that_fetches_nothing(kind: str) -> None:
    report = REPORTS[kind]()
    drawings = plots.plots(report, "svg")
    assert list(drawings) == PLOTS[kind]
    page = to_html(report, drawings)
    assert page.count("<svg ") == len(drawings)
    sources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'>)\s]+)""", page)
    assert sources
    assert all(source.startswith("#") for source in sources), "what a drawing uses is in the drawing"
    for fetches in ("<script", "@import", "<link", "<img", "<iframe", "<!DOCTYPE svg", "<?xml"):
        assert fetches not in page
    for drawing in drawings.values():
        ElementTree.fromstring(drawing)


@pytest.mark.parametrize("kind", list(REPORTS))
def test_pictures_are_files_that_every_program_shows(kind: str) -> None:
    pictures = plots.plots(REPORTS[kind]())
    assert list(pictures) == PLOTS[kind]
    assert all(png.startswith(b"\x89PNG") for png in pictures.values())


@pytest.mark.parametrize("kind", list(REPORTS))
def test_drawings_have_no_colour_of_their_own(kind: str) -> None:
    """On dark paper, dark lines and letters could not be seen."""
    for drawing in plots.plots(REPORTS[kind](), "svg").values():
        text = drawing.decode()
        assert re.findall(r"#[0-9a-f]{6}", text) == []
        used = set(re.findall(r"var\(--([\w-]+)\)", text))
        assert {"soft", "series-0"} <= used <= PALETTE.keys()
        assert f"width={chr(34)}" not in text.partition(">")[0], "it is as wide as its place"


def test_the_colours_are_the_pages() -> None:
    """A report and the live page would look like two projects."""
    style = (ROOT / "server" / "page" / "static" / "style.css").read_text(encoding="utf-8")
    for name in ("paper", "raised", "ink", "soft", "line"):
        for colour in PALETTE[name]:
            assert f"--{name}: {colour};" in style
    colours = [colour for pair in PALETTE.values() for colour in pair]
    assert len(set(colours)) == len(colours), "each is replaced by its name wherever it stands"


def test_the_first_numbers_are_those_of_the_tables() -> None:
    shown = dict(figures(run_report()))
    assert shown["failed"] == "1 of 6"
    assert shown["to first text, median"] == "120 ms"
    assert shown["tokens a second"] == "40"
    page = to_html(run_report(), {})
    assert all(f"<dd>{value}</dd>" in page for value in shown.values())
    assert figures(sweep_report())[0][1] == "240"
    assert [value for _, value in figures(quality_report())] == ["0.33", "0.67", "1.00"]


def test_what_a_server_or_a_model_wrote_is_text_not_markup() -> None:
    page = to_html(run_report(), {})
    assert "&lt;b&gt;[red]no&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "&lt;m&gt;" in page
    assert "<i>" not in to_html(quality_report(), {})
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(run_report(), console)
    assert "[red]no" in console.export_text()
    console.file.close()


@pytest.mark.parametrize("kind", list(REPORTS))
def test_the_json_reads_back_as_the_same_report(kind: str) -> None:
    report = REPORTS[kind]()
    assert msgspec.json.decode(to_json(report), type=Report) == report
    assert msgspec.json.decode(to_json(report))["schema"] == SCHEMA


def test_the_json_keeps_the_fields_that_scripts_read() -> None:
    read = msgspec.json.decode(to_json(run_report()))
    assert sorted(read) == sorted(
        ["kind", "settings", "schema", "created", "interrupted", "summary", "cells", "modes", "records"]
    )
    assert sorted(read["summary"]) == sorted(
        [
            *["requests", "succeeded", "failed", "abandoned", "errors", "error_examples", "finish_reasons", "wall_s"],
            *["requests_per_s", "output_tokens_per_s", "goodput_requests_per_s", "slo_share", "prompt_tokens"],
            *["completion_tokens", "without_usage", "cached_prompt_share", "passes", "tokens_per_pass"],
            *["first_text_s", "first_draft_s", "gap_s", "end_s", "time_per_token_s", "lag_s", "client_cpu_share"],
        ]
    )
    assert sorted(read["summary"]["end_s"]) == ["count", "max", "mean", "p50", "p90", "p95", "p99"]
    cell = msgspec.json.decode(to_json(sweep_report()))["cells"][1]
    assert {"cell", "repeats", "output_tokens_per_s", "throughput_ratio", "latency_ratio", "tokens_per_pass"} <= set(
        cell
    )
    unset = dict.fromkeys(("threshold", "block_length", "unmasking", "factor"))
    assert cell["cell"] == {"concurrency": 16, "mode": {"decoding": "ar", **unset}}
    mode = msgspec.json.decode(to_json(quality_report()))["modes"][1]
    assert {"mode", "exact_share", "interval", "agreement", "tokens_per_pass", "categories", "mistakes"} <= set(mode)


def test_tables_show_what_was_measured_and_nothing_that_was_not() -> None:
    titles = [grid.title for grid in tables(run_report())]
    assert titles == ["Load", "Latency", "Errors"]
    latency = tables(run_report())[1]
    assert [row[0] for row in latency.rows] == ["time to first text", "between chunks", "time per token", "end to end"]
    sweep = tables(sweep_report())[0]
    assert [row[3] for row in sweep.rows][:2] == ["1.00", "2.00"]
    assert all(len(row) == len(grid.head) for kind in REPORTS for grid in tables(REPORTS[kind]()) for row in grid.rows)


def test_doubtful_numbers_are_called_doubtful() -> None:
    doubtful = summarise(
        records(completion_tokens=None, cached_tokens=4, lag_s=0.2), wall_s=1.0, cpu_s=0.9, abandoned=1
    )
    found = notes(Report(kind="run", settings={}, summary=doubtful, interrupted=True))
    for word in ("Interrupted", "without usage", "load generator", "late", "prefix cache"):
        assert any(word in note for note in found)
    assert notes(run_report()) == []


def test_without_matplotlib_there_are_tables_and_no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)
    assert plots.plots(sweep_report()) == {}
    assert "<table>" in to_html(sweep_report(), {})
    assert "<svg" not in to_html(sweep_report(), {})


@pytest.mark.parametrize("asked", range(1, 130, 3))
def test_answers_that_are_all_right_or_all_wrong_can_be_drawn(asked: int) -> None:
    """The best result of all would end without a report: its interval may miss it by a rounding error."""
    prompts = [Prompt(text=str(i), answers=("x",), category="c") for i in range(asked)]
    answers = [[Record(index=i, start_s=0.0, text=text, passes=1, completion_tokens=4) for i in range(asked)]
               for text in ("x", "y")]  # fmt: skip
    report = Report(kind="quality", settings={}, modes=score([Mode("ar"), Mode("auto")], prompts, answers))
    low, high = plots.spread(report.modes[0]), plots.spread(report.modes[1])
    assert all(value >= 0 for value in (*low, *high))


def test_a_report_of_nothing_can_be_drawn() -> None:
    for kind in ("run", "sweep", "quality"):
        report = Report(kind=kind, settings={}, summary=summarise([], 0.0) if kind == "run" else None)
        assert plots.plots(report) == {}
        assert "<body>" in to_html(report, {})
