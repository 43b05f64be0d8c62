"""The GPU check's parts at toy size. If they fail, an hour on a GPU machine is spent on finding out why."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.attention.sdpa import SdpaAttention
from engine.request import DecodingParams, Request, SamplingParams
from tests.conftest import MakeEngine
from tools.gpu_check import rates
from tools.gpu_check.__main__ import main
from tools.gpu_check.check import Check
from tools.gpu_check.idle import idle_share
from tools.gpu_check.kernels import choosing, elementwise_parity, tiles
from tools.gpu_check.parity import parity
from tools.gpu_check.rates import force, run
from tools.gpu_check.report import Bar, Part, Report
from tools.gpu_check.sizes import SIZES

TOY = SIZES["toy"]
CPU = torch.device("cpu")


def test_the_whole_check_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "toy", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"]
    assert {"device", "torch", "triton", "transformers"} <= set(report["machine"])
    names = [part["name"] for part in report["parts"]]
    for wanted in ("Parity", "Bandwidth", "equals AR", "floor", "Tokens a second", "Idle", "Memory"):
        assert any(wanted in name for name in names), wanted
    assert all(part["rows"] for part in report["parts"])
    written = (tmp_path / "report.md").read_text()
    assert written.strip() in capsys.readouterr().out
    assert "| speculative | 8 | 2 |" in written


def test_a_part_that_fails_is_told_and_stops_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    check = Check("toy", CPU, 60.0)

    def broken() -> Part:
        raise RuntimeError("out of memory")

    check.part("broken", broken)
    check.part("whole", lambda: Part("whole"))
    check.deadline = 0.0
    check.part("late", lambda: Part("late"))
    problems = [part.problem for part in check.report.parts]
    assert problems == ["RuntimeError: out of memory", "", "Left out: the time was up."]
    assert not check.report.passed


@pytest.mark.parametrize("spoil", [lambda out: out + 0.1, lambda out: out * math.nan, torch.zeros_like])
def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    forward = SdpaAttention.forward
    monkeypatch.setattr(SdpaAttention, "forward", lambda *inputs: spoil(forward(*inputs)))
    part = parity("torch", CPU, TOY.heads[:1], TOY.spans[:1], seed=1)
    assert not any(bar.met for bar in part.bars)


def test_a_wrong_kernel_beside_attention_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tests.engine.gpu.interpreted", exc_type=ImportError)
    from engine.gpu.choice import TritonChoice
    from engine.gpu.elementwise import TritonElementwise

    assert elementwise_parity(CPU, TOY.heads[0], TOY.kernels, 1).sound
    gate, pick = TritonElementwise.silu_mul, TritonChoice.pick
    monkeypatch.setattr(TritonElementwise, "silu_mul", lambda *inputs: gate(*inputs) * 1.1)
    assert not elementwise_parity(CPU, TOY.heads[0], TOY.kernels, 1).sound

    def other(*inputs: Any) -> Any:
        picked = pick(*inputs)
        return picked._replace(token_ids=picked.token_ids.index_fill(0, torch.tensor(0), 5))

    monkeypatch.setattr(TritonChoice, "pick", other)
    monkeypatch.setattr("tools.gpu_check.kernels.WAYS", {"greedy": SamplingParams(temperature=0.0)})
    assert not choosing(CPU, TOY.kernels, 1, with_kernel=True).sound


def test_kernels_that_take_their_process_down_leave_the_rest_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An illegal access spoils the GPU for the whole process, and a kernel may never end."""
    check = Check("toy", CPU, 60.0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert not check.kernels_in_a_child()
    monkeypatch.undo()
    monkeypatch.setattr("tools.gpu_check.check.KERNEL_SECONDS", 0.05)
    assert not check.kernels_in_a_child()
    assert [part.problem for part in check.report.parts] == [
        "Their process wrote no report.", "They took more than 0.05 s.",
    ]  # fmt: skip


def test_kernels_that_answer_alike_agree(builtin_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_builtin_engine", lambda *_: builtin_engine())
    part = rates.kernels_agree(CPU, 2, 0.95)
    assert [row["same"] for row in part.rows] == [1.0, 1.0]
    assert rates._same({"a": [1], "b": [2]}, {"a": [1], "b": [3]}) == 0.5


def test_shapes_of_tiles_are_ranked() -> None:
    pytest.importorskip("tests.engine.gpu.interpreted", exc_type=ImportError)
    rows = tiles(CPU, TOY.heads[0], [TOY.wide], 1e9).rows
    assert all(row["us"] for row in rows)
    assert [row["us"] for row in rows] == sorted(row["us"] for row in rows)  # type: ignore[type-var]
    assert any(row["in use"] for row in rows)


@pytest.mark.parametrize(("rate", "block"), [(5.78, 8), (3.0, 8), (1.0, 4)])
def test_forced_acceptance_gives_so_many_tokens_a_round(builtin_engine: MakeEngine, rate: float, block: int) -> None:
    engine = builtin_engine()
    force(engine, rate)
    requests = [
        Request(
            request_id=str(i), prompt_token_ids=[8, 9, 10 + i], max_tokens=60, ignore_eos=True,
            sampling=SamplingParams(temperature=0.0),
            decoding=DecodingParams(mode="speculative", block_length=block),
        )
        for i in range(4)
    ]  # fmt: skip
    answers, _, tokens = run(engine, requests, 2)
    assert tokens == 240
    assert {len(answer) for answer in answers.values()} == {60}
    policy: Any = engine.policies["speculative"]
    assert 240 / policy.rounds == pytest.approx(rate, rel=0.12)  # an answer's last round is cut short


def test_time_between_kernels_is_idle_time() -> None:
    assert idle_share([(0.0, 4.0), (6.0, 10.0), (1.0, 3.0)]) == pytest.approx(0.2)
    assert idle_share([(0.0, 4.0), (3.0, 10.0)]) == 0.0
    assert idle_share([]) == 1.0


def test_a_missed_bar_is_a_failed_check() -> None:
    low, high = Bar("rate", 1.0, 2.0), Bar("share", 0.3, 0.2, at_most=True)
    assert not low.met
    assert not high.met
    report = Report({"device": "x"}, [Part("speed", [{"rate": 1.0}], [low])])
    assert not report.passed
    assert "**missed**: rate: 1 (at least 2)" in report.markdown()


BARE = """
import sys
from importlib.machinery import PathFinder
from runpy import run_module

class Bare:
    find_distributions = PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        absent = {absent!r}
        return None if name.partition(".")[0] in absent else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
sys.argv = ["gpu_check", *{words!r}]
run_module("tools.gpu_check", run_name="__main__", alter_sys=True)
"""


def test_it_runs_where_only_torch_and_transformers_are_installed(tmp_path: Path) -> None:
    """A GPU machine often has no network: nothing could be installed there first."""
    absent = ["msgspec", "llguidance", "zmq", "fastapi", "pydantic", "pydantic_core", "uvicorn", "aiohttp", "openai"]
    script = BARE.format(absent=absent, words=["--size", "toy", "--out", str(tmp_path)])
    root = Path(__file__).parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"]
    assert report["machine"]["without"] == "msgspec, llguidance, zmq"
