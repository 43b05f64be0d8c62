"""The figures of a comparison: speeds and ratios of contenders, as JSON and as tables."""

from __future__ import annotations

import statistics

from bench import options
from bench.compare.contenders import Contender

RATIOS = (
    ("engine 1", "plain 1"),
    ("engine N", "plain 1"),
    ("engine N", "plain padded N"),
    ("server 1", "plain 1"),
    ("server N", "plain 1"),
    ("server N", "plain padded N"),
    ("server N", "engine N"),
)
"""(contender, base of the ratio). `plain 1` is also the speed of N requests that the loop answers one after another."""

AROUND = {"same": "same answers", "API": "API us/token", "client": "client us/token"}
"""Columns of the table of speeds; the times are CPU times."""


def mode_figures(mode: str, contenders: list[Contender]) -> dict[str, object]:
    """One mode's speeds and ratios: medians, and the runs they come from."""
    by_name = {contender.name: contender for contender in contenders if contender.decoding == mode}
    ratios = {}
    for name, base in RATIOS:
        if name in by_name and base in by_name:
            ratios[f"{name} / {base}"] = ratio(by_name[name], by_name[base])
    firsts = {name: one.first for name, one in by_name.items() if one.first is not None}
    reference = firsts["engine 1" if "engine 1" in firsts else "engine N"].answers or []
    same = {
        name: sum(a == b for a, b in zip(first.answers, reference, strict=True))
        for name, first in firsts.items()
        if first.answers is not None
    }
    speeds = {name: {"median": statistics.median(c.speeds()), "runs": c.speeds()} for name, c in by_name.items()}
    around = {name: cpu_a_token(contender) for name, contender in by_name.items() if contender.runs[0].around}
    return {
        "decoding": mode,
        "tokens_per_second": speeds,
        "ratios": ratios,
        "tokens": {name: first.tokens for name, first in firsts.items()},
        "same_answers": same,
        "cpu_microseconds_a_token": around,
    }


def cpu_a_token(contender: Contender) -> dict[str, float]:
    """CPU time around the engine, in microseconds a streamed token: medians over the runs."""
    names = contender.runs[0].around or {}
    return {
        name: statistics.median((run.around or {})[name] / run.tokens * 1e6 for run in contender.runs) for name in names
    }


def ratio(contender: Contender, base: Contender) -> dict[str, object]:
    """The ratio of two contenders' speeds within each repeat, by the wall clock.

    Also the ratio of their fastest runs and, where both ran in this process, the ratio by CPU time. Where the three
    differ much, the machine was busy with something else.
    """
    mine_s, theirs_s = contender.speeds(), base.speeds()
    pairs = [a / b for a, b in zip(mine_s, theirs_s, strict=True)]
    result: dict[str, object] = {
        "median": statistics.median(pairs),
        "runs": pairs,
        "fastest": max(mine_s) / max(theirs_s),
    }
    mine, theirs = contender.cpu_speeds(), base.cpu_speeds()
    if mine and theirs:
        result["by_cpu_time"] = statistics.median([a / b for a, b in zip(mine, theirs, strict=True)])
    return result


def show_figures(figures: list[dict[str, object]], concurrency: int, prompts: int, repeats: int) -> None:
    """Prints a table of speeds and one of ratios. figures: of each mode, as `mode_figures` returns them."""
    speed_rows: list[dict[str, object]] = []
    ratio_rows: list[dict[str, object]] = []
    for mode in figures:
        speeds, ratios, same = mode["tokens_per_second"], mode["ratios"], mode["same_answers"]
        assert isinstance(speeds, dict)
        assert isinstance(ratios, dict)
        assert isinstance(same, dict)
        for name, found in speeds.items():
            row = {"decoding": mode["decoding"], "name": name.replace("N", str(concurrency))}
            row |= {"median": found["median"], "low": min(found["runs"]), "high": max(found["runs"])}
            around = mode["cpu_microseconds_a_token"]
            assert isinstance(around, dict)
            speed_rows.append(row | {"same": same.get(name)} | around.get(name, {}))
        for name, found in ratios.items():
            row = {"decoding": mode["decoding"], "name": name.replace("N", str(concurrency))}
            row |= {"median": found["median"], "low": min(found["runs"]), "high": max(found["runs"])}
            ratio_rows.append(row | {"fastest": found["fastest"], "cpu": found.get("by_cpu_time")})
    columns = {"decoding": "decoding", "name": "", "median": "tok/s", "low": "lowest", "high": "highest"}
    title = f"{prompts} prompts; medians of {repeats} interleaved runs"
    options.show(title, columns | AROUND, speed_rows)
    columns |= {"median": "ratio", "fastest": "of fastest runs", "cpu": "by CPU time"}
    options.show("Ratios within a repeat; medians", columns, ratio_rows)
