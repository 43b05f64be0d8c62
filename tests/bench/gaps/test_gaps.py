"""`lightcone bench gaps`: what it hides and how it counts. If it fails, nobody knows whether lengths are found."""

from __future__ import annotations

import json
from pathlib import Path

from bench.__main__ import main
from bench.gaps.command import Filling, Gap, figures, gaps_of


def test_gaps_are_stretches_with_text_on_both_sides() -> None:
    texts = [([1, 2, 3], list(range(10, 40))), ([4], [20, 21, 22])]
    gaps = gaps_of(texts, 50, longest=12, longest_suffix=8)
    assert len(gaps) == 50
    assert {len(gap.hidden) for gap in gaps} >= {1, 5, 12}
    for i, gap in enumerate(gaps):
        prompt, answer = texts[i % 2]
        start = len(gap.before) - len(prompt)
        assert start >= 1 <= len(gap.behind) <= 8
        assert gap.before == [*prompt, *answer[:start]]
        assert [*gap.hidden, *gap.behind] == answer[start:][: len(gap.hidden) + len(gap.behind)]


def test_figures_count_exact_texts_and_right_lengths() -> None:
    gaps = [Gap([1], [2, 3], [4])] * 4
    fillings = [Filling([2, 3], 3, 0.5), Filling([2, 9], 5, 0.5), Filling([2], 2, 0.5), Filling([2, 3], 6, 0.5)]
    assert figures("x", gaps, fillings) == {
        "way": "x", "exact": 0.5, "length": 0.75, "passes": 4.0, "milliseconds": 500.0,
    }  # fmt: skip


def test_the_command_fills_gaps_of_given_and_of_found_length(tmp_path: Path) -> None:
    file = tmp_path / "gaps.json"
    words = ["gaps", "--device", "cpu", "--threads", "1", "--gaps", "3", "--max-tokens", "6", "--json", str(file)]
    assert main(words) == 0
    rows = json.loads(file.read_text())["runs"]
    assert [row["way"] for row in rows] == ["its own length", "exactly 6", "at most 6"]
    assert rows[2]["passes"] > rows[1]["passes"]
    assert rows[0]["length"] == 1.0
