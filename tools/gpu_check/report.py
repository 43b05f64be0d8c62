"""The report of a check: rows and bars by part, as Markdown and as JSON. A bar is a limit that a figure has to meet."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, object]


@dataclass(frozen=True)
class Bar:
    """One figure that has to reach a value."""

    name: str
    value: float
    bar: float
    at_most: bool = False
    """The value must not exceed the bar; else it must not fall short of it."""

    @property
    def met(self) -> bool:
        return self.value <= self.bar if self.at_most else self.value >= self.bar


@dataclass
class Part:
    """One check: what it measured, or why it could not."""

    name: str
    rows: list[Row] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    problem: str = ""
    """Why it did not run to its end; empty if it did."""
    seconds: float = 0.0

    @classmethod
    def of(cls, written: dict[str, Any]) -> Part:
        """A part of another run's report, as `Report.as_dict` has it."""
        bars = [Bar(bar["name"], bar["value"], bar["bar"], bar["at_most"]) for bar in written["bars"]]
        return cls(written["name"], written["rows"], bars, written["problem"], written["seconds"])

    @property
    def sound(self) -> bool:
        """It ran to its end, and every bar is met."""
        return not self.problem and all(bar.met for bar in self.bars)


@dataclass
class Report:
    """The machine and all parts of one run."""

    machine: Row
    parts: list[Part] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Every part ran, and every bar is met."""
        return all(part.sound for part in self.parts)

    def as_dict(self) -> dict[str, object]:
        parts = [asdict(part) | {"bars": [asdict(bar) | {"met": bar.met} for bar in part.bars]} for part in self.parts]
        return {"schema": "lightcone-gpu-check/1", "machine": self.machine, "passed": self.passed, "parts": parts}

    def write(self, folder: Path) -> None:
        """report.json and report.md."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        (folder / "report.md").write_text(self.markdown())

    def markdown(self) -> str:
        """The report as Markdown."""
        lines = ["# GPU check", "", *_table([self.machine])]
        for part in self.parts:
            lines += ["", f"## {part.name} ({part.seconds:.0f} s)", ""]
            if part.problem:
                lines += [f"**{part.problem}**", ""]
            lines += _table(part.rows)
            for bar in part.bars:
                sign = "at most" if bar.at_most else "at least"
                lines += [
                    "",
                    f"- {'met' if bar.met else '**missed**'}: {bar.name}: {bar.value:.4g} ({sign} {bar.bar:g})",
                ]
        return "\n".join(lines) + "\n"


def _table(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for row in rows]


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
