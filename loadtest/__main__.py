"""`lightcone loadtest`: measure any OpenAI-compatible server over HTTP."""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest.command_line import (
    COMMANDS,
    build_parser,
    load_of,
    modes_of,
    prompts_of,
    questions_of,
    slo_of,
    target_of,
    workload_name,
)
from loadtest.http_client import Client
from loadtest.modes import Mode
from loadtest.records import Record, Summary, summarise
from loadtest.reporting import plots
from loadtest.reporting.html_page import to_html
from loadtest.reporting.progress_bar import progress
from loadtest.reporting.report import Report, show, to_json
from loadtest.runner import Load, Outcome, interruptible, run_load
from loadtest.scoring import score
from loadtest.sweep import Cell, cells_of, run_sweep
from loadtest.workload import Prompt

OK, NOTHING_MEASURED, RATIO_MISSED, INTERRUPTED = 0, 1, 3, 130
"""Exit statuses; 2 is a wrong command line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's) and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in (*COMMANDS, "-h", "--help"):
        words.insert(0, "run")
    parser = build_parser()
    args = parser.parse_args(words)
    try:
        report = asyncio.run(_COMMANDS[args.command](args))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    console = Console()
    show(report, console if console.is_terminal else Console(width=160))
    try:
        write(report, args)
    except OSError as error:
        parser.error(str(error))
    return _status(report, args)


def write(report: Report, args: argparse.Namespace) -> None:
    """Write the files asked for. Raises OSError when one cannot be written."""
    pictures = plots.plots(report) if args.png else {}
    drawings = plots.plots(report, "svg") if args.html else {}
    if (args.html or args.png) and not plots.available():
        print("No plots: matplotlib is not installed (pip install 'lightcone[report]').", file=sys.stderr)
    if not getattr(args, "records", True):
        report.records = []
    if args.png:
        args.png.mkdir(parents=True, exist_ok=True)
        for name, png in pictures.items():
            (args.png / f"{name}.png").write_bytes(png)
    if args.json:
        _save(args.json, to_json(report))
    if args.html:
        _save(args.html, to_html(report, drawings).encode())


def _save(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _status(report: Report, args: argparse.Namespace) -> int:
    if report.interrupted:
        return INTERRUPTED
    summaries = [report.summary] if report.summary else [s for cell in report.cells for s in cell.repeats]
    answered = any(s.succeeded for s in summaries) or any(sum(m.errors.values()) < m.asked for m in report.modes)
    if not answered:
        print("No request succeeded.", file=sys.stderr)
        return NOTHING_MEASURED
    wanted = getattr(args, "min_ratio", None)
    if wanted is not None:
        ratio = report.cells[-1].throughput_ratio
        found = ratio.median if ratio is not None else 0.0
        print(f"{report.cells[-1].cell.label()} over {report.cells[0].cell.label()}: {found:.2f} (wanted {wanted:g})")
        return OK if found >= wanted else RATIO_MISSED
    return OK


async def _run(args: argparse.Namespace) -> Report:
    mode = modes_of(args)[0]
    load, prompts = load_of(args, args.concurrency, args.seed), prompts_of(args, args.seed)
    model = await _model(args)
    with interruptible() as stop:
        outcome = await _measure(args, mode, model, load, prompts, stop, "load")
    return Report(
        kind="run",
        settings=_settings(args, model, load) | {"mode": mode.label()},
        interrupted=outcome.interrupted,
        summary=_summary(args, outcome),
        records=[_without_text(record) for record in outcome.records],
    )


async def _sweep(args: argparse.Namespace) -> Report:
    cells = cells_of(args.concurrency, modes_of(args))
    prompts_of(args, args.seed)  # says now what is wrong with the workload
    model = await _model(args)
    with interruptible() as stop:

        async def run_cell(cell: Cell, repeat: int) -> Summary | None:
            # Other prompts in every cell and repeat: none finds its prompts in the server's prefix cache.
            seed = args.seed * 1_000_003 + repeat * len(cells) + cells.index(cell)
            load, label = load_of(args, cell.concurrency, seed), f"{repeat + 1}/{args.repeats}: {cell.label()}"
            outcome = await _measure(args, cell.mode, model, load, prompts_of(args, seed), stop, label)
            return None if outcome.interrupted else _summary(args, outcome)

        results = await run_sweep(cells, args.repeats, run_cell, stop)
    settings = _settings(args, model, load_of(args, None, args.seed)) | {"repeats": args.repeats}
    for name in ("concurrency", "requests", "warmup"):  # unless given, a cell derives them from its concurrency
        if getattr(args, name) is None or name == "concurrency":
            settings.pop(name, None)
    return Report(kind="sweep", settings=settings, interrupted=stop.is_set(), cells=results)


async def _quality(args: argparse.Namespace) -> Report:
    modes, prompts = modes_of(args), questions_of(args)
    load = Load(concurrency=args.concurrency, requests=len(prompts), seed=args.seed)
    model = await _model(args)
    answers: list[list[Record]] = []
    with interruptible() as stop:
        for mode in modes:
            if not stop.is_set():
                outcome = await _measure(args, mode, model, load, iter(prompts), stop, mode.label())
                answers.append(outcome.records)
    scores = score(modes[: len(answers)], prompts, answers, args.match)
    settings = _settings(args, model, load) | {"questions": len(prompts), "match": args.match}
    return Report(kind="quality", settings=settings, interrupted=stop.is_set(), modes=scores)


_COMMANDS = {"run": _run, "sweep": _sweep, "quality": _quality}


async def _measure(
    args: argparse.Namespace,
    mode: Mode,
    model: str | None,
    load: Load,
    prompts: Iterator[Prompt],
    stop: asyncio.Event,
    label: str,
) -> Outcome:
    async with Client(target_of(args, mode, model), load.concurrency) as client:
        with progress(label, load, enabled=not args.no_progress) as on_record:
            return await run_load(client, prompts, load, stop, on_record)


async def _model(args: argparse.Namespace) -> str | None:
    """The model to ask for, once the server is there. Raises ValueError if it is not within --wait."""
    target = target_of(args, Mode(), None)
    async with Client(target, 1) as client:
        if args.wait and not await client.wait(args.wait):
            raise ValueError(f"{target.base_url} was not ready within {args.wait:g} s")
        return target.model or await client.first_model()


def _summary(args: argparse.Namespace, outcome: Outcome) -> Summary:
    return summarise(outcome.records, outcome.wall_s, slo_of(args), cpu_s=outcome.cpu_s, abandoned=outcome.abandoned)


def _without_text(record: Record) -> Record:
    record.text = ""
    return record


def _settings(args: argparse.Namespace, model: str | None, load: Load) -> dict[str, Any]:
    target = target_of(args, Mode(), model)
    shown: dict[str, Any] = {
        "server": target.base_url,
        "model": target.model,
        "api": target.api,
        "stream": target.stream,
    }
    shown |= {"workload": workload_name(args), "max_tokens": args.max_tokens, "fields": target.fields}
    shown |= {"concurrency": load.concurrency, "rate": load.rate, "requests": load.requests}
    shown |= {"duration_s": load.duration_s, "warmup": load.warmup, "timeout_s": args.timeout, "seed": args.seed}
    return {name: value for name, value in shown.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
