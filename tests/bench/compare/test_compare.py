"""The comparison's bookkeeping: interleaving, ratios within a repeat, the report, and the commands it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import server.__main__
from bench.__main__ import main
from bench.compare import command, over_http
from bench.compare.contenders import Contender, Run, compete
from bench.compare.figures import mode_figures, ratio
from engine.errors import EngineError
from loadtest.command_line import build_parser
from loadtest.workload import load_prompts


def contender(name: str, seconds: list[float], cpu: float | None = None, decoding: str = "ar") -> Contender:
    """Gives 100 tokens in so many seconds, run after run; the first is the uncounted one."""
    return Contender(decoding, name, lambda repeat: Run(seconds[repeat + 1], 100, cpu, [[1, 2], [3]]))


def test_contenders_take_turns() -> None:
    order: list[tuple[str, int]] = []

    def make(name: str) -> Contender:
        def answer(repeat: int) -> Run:
            order.append((name, repeat))
            return Run(1.0, 1)

        return Contender("ar", name, answer)

    compete([make("a"), make("b")], 2)
    assert order == [("a", -1), ("b", -1), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_ratios_are_taken_within_a_repeat() -> None:
    """Both get slower together, once tenfold: the ratio of every repeat is two all the same."""
    quick, slow = contender("engine 1", [9, 1, 10, 2], cpu=1.0), contender("plain 1", [9, 2, 20, 4], cpu=3.0)
    compete([quick, slow], 3)
    found = ratio(quick, slow)
    assert found["runs"] == [2.0, 2.0, 2.0]
    assert found["median"] == 2.0
    assert found["by_cpu_time"] == 3.0


def test_figures_of_a_mode() -> None:
    contenders = [contender("plain 1", [1, 4, 4]), contender("engine 1", [1, 2, 1]), contender("engine N", [1, 1, 1])]
    other = contender("engine 1", [1, 1, 1], decoding="diffusion")
    compete([*contenders, other], 2)
    figures: dict[str, Any] = mode_figures("ar", [*contenders, other])
    assert set(figures["ratios"]) == {"engine 1 / plain 1", "engine N / plain 1"}
    assert figures["ratios"]["engine 1 / plain 1"]["median"] == 3.0
    assert figures["tokens_per_second"]["plain 1"] == {"median": 25.0, "runs": [25.0, 25.0]}
    assert figures["same_answers"] == {"plain 1": 2, "engine 1": 2, "engine N": 2}


def test_the_command_in_process(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    words = ["compare", "--no-server", "--limit", "3", "--max-tokens", "6", "--concurrency", "2", "--repeats", "1"]
    words.append("--no-shared-commit")  # the schedule of the plain loop
    assert main([*words, "--device", "cpu", "--threads", "1", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["schema"] == command.SCHEMA
    assert [mode["decoding"] for mode in report["modes"]] == list(command.MODES)
    for mode in report["modes"]:
        names = {"plain 1", "plain padded N", "engine 1", "engine N"}
        assert set(mode["tokens_per_second"]) == names
        assert mode["same_answers"] == dict.fromkeys(names, 3)
        assert len(set(mode["tokens"].values())) == 1
        assert all(found["median"] > 0 < found["by_cpu_time"] for found in mode["ratios"].values())


def test_the_server_understands_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "builtin", "--device", "cpu", "--dtype", "auto", "--load-format", "auto", "--threads", "1"]
    flags.append("--no-shared-commit")
    assert server.__main__.main(["serve", *over_http.serve_options(flags), "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert 'log_level = "error"' in printed
    assert "shared_commit = false" in printed


def test_loadtest_understands_its_command(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    over_http.write_prompts(file, ['say "hi"', "two\nlines"])
    fields = {"decoding": "diffusion", "threshold": 0.9, "cache_salt": "1"}
    args = build_parser().parse_args(over_http.load_command("http://127.0.0.1:1", file, 2, 16, fields, 64))
    assert (args.requests, args.concurrency, args.warmup, args.max_tokens) == (2, 16, 0, 64)
    assert args.extra_body == fields
    assert [prompt.text for prompt in load_prompts(args.prompts)] == ['say "hi"', "two\nlines"]


def test_a_server_that_does_not_start_is_one_line() -> None:
    with pytest.raises(EngineError, match="did not start"), over_http.ServerUnderTest(["--no-such-flag"], None):
        pass
