"""The commands of `lightcone bench`, on a tiny random model: what they write, never how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import formats, passes
from bench.__main__ import main
from bench.speed_of_light import canvas_shape
from bench.timing.host_time import PARTS as STEP_PARTS
from bench.timing.host_time import Setting, measure_host, serve
from bench.timing.part_times import PARTS, pass_parts
from bench.timing.pass_times import PassKind, counter_of, make_plan, typical, wrapped
from engine.batch import Phase
from engine.measure import device_speed
from engine.measure.roofline import PassShape
from engine.models.decoder import Decoder
from engine.models.families.registry import describe_model
from engine.models.files import ConfigFile
from tests.conftest import MakeEngine
from tests.reference.checkpoints import write_checkpoint

QUICK = ["--device", "cpu", "--threads", "1"]


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_speed, "PROBE_SECONDS", 0.002)


def report_of(tmp_path: Path, words: list[str]) -> dict[str, Any]:
    file = tmp_path / "report.json"
    assert main([*words, *QUICK, "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert isinstance(report, dict)
    return report


def test_passes(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "SERVED", 4)
    words = ["passes", "--model", str(tiny_checkpoint), "--width", "8", "--chunk", "16", "--batch", "1,2"]
    report = report_of(tmp_path, [*words, "--context", "8", "--repeats", "2", "--cycles", "1"])
    assert report["schema"] == passes.SCHEMA
    assert {(row["phase"], row["width"]) for row in report["passes"]} == {
        ("decode", 1), ("prefill", 16), ("denoise", 8), ("draft", 8), ("verify", 8), ("commit", 8)
    }  # fmt: skip
    for row in report["passes"]:
        assert 0 < row["fastest_ms"] <= row["median_ms"]
        assert row["light_share"] == pytest.approx(row["floor_ms"] / row["median_ms"])
        assert row["bytes"] > 0 < row["operations"]
    by_phase = {row["phase"]: row for row in report["passes"] if row["batch"] == 2}
    assert by_phase["draft"]["bytes"] > by_phase["denoise"]["bytes"], "the draft adapter is read too"
    assert by_phase["commit"]["operations"] < by_phase["verify"]["operations"], "one logit row a span, not eight"
    assert {row["decoding"] for row in report["host"]} == {"ar", "diffusion", "speculative", "auto"}
    assert {"step_us", "host_us", "host_share"} | {f"{part}_us" for part in STEP_PARTS} <= set(report["host"][0])


def test_auto(tmp_path: Path) -> None:
    """Against fixed modes on an engine of their own: from their passes `auto` must learn nothing."""
    words = ["auto", "--starts", "1", "--busy", "1", "--concurrency", "2", "--easy", "2", "--hard", "2"]
    report = report_of(tmp_path, [*words, "--max-tokens", "6"])
    assert [run["traffic"] for run in report["runs"]] == ["after the start", "after hard", "mix"]
    for run in report["runs"]:
        assert run["ratio"] == pytest.approx(run["auto"] / max(run["ar"], run["speculative"]))


def test_light(tmp_path: Path, tiny_checkpoint: Path) -> None:
    words = ["light", "--model", str(tiny_checkpoint), "--width", "1,8", "--batch", "1,2", "--context", "8,100000"]
    report = report_of(tmp_path, [*words, "--repeats", "2"])
    assert len(report["passes"]) == 4, "what does not fit is left out"
    assert report["device_speed"]["bandwidth"] > 0 < report["device_speed"]["rate"]
    for row in report["passes"]:
        assert set(row["parts_ms"]) == set(PARTS)
        assert row["parts_ms"]["projections"] > 0 < row["parts_ms"]["attention"]
        assert row["floor_ms"] >= max(row["part_floors_ms"].values())
        assert row["floor_ms"] <= sum(row["part_floors_ms"].values()) * 1.000001


def test_formats(tmp_path: Path) -> None:
    """Formats would be compared on different weights, or one with itself."""
    directory = write_checkpoint(tmp_path / "model", hidden_size=64, intermediate_size=128)
    words = ["formats", "--model", str(directory), "--width", "1,4", "--context", "8", "--repeats", "2"]
    report = report_of(tmp_path, [*words, "--dtype", "float32", "--formats", "float32,int8,int4-weights"])
    assert report["schema"] == formats.SCHEMA
    rows = {(row["format"], row["width"]): row for row in report["formats"]}
    assert set(rows) == {(name, width) for name in ("float32", "int8", "int4-weights") for width in (1, 4)}
    assert rows["float32", 1]["speed"] == 1.0
    assert rows["float32", 1]["error"] == 0.0
    assert 0.0 < rows["int8", 1]["error"] < rows["int4-weights", 1]["error"] < 0.5
    assert rows["int8", 4]["megabytes"] < rows["float32", 4]["megabytes"]


def test_formats_that_there_are_not_and_the_shape_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["formats", "--formats", "int3"]) == 1
    assert "no format 'int3'" in capsys.readouterr().err
    assert main(["formats", "--write-shape", str(tmp_path / "350m")]) == 0
    read = ConfigFile.read(tmp_path / "350m" / "config.json")
    config = describe_model(read, ConfigFile(tmp_path, {})).config
    decoder = Decoder(config, dtype=torch.float32, device=torch.device("meta"), num_positions=1)
    assert 330e6 < decoder.num_parameters < 370e6


def test_light_of_a_config_alone(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """With a given speed nothing is measured: the floors are plain arithmetic."""
    (tmp_path / "config.json").write_text((tiny_checkpoint / "config.json").read_text())
    words = ["light", "--model", str(tmp_path), "--floors-only", "--speed", "1,0.001", "--width", "1", "--batch", "1"]
    report = report_of(tmp_path, [*words, "--context", "10"])
    [row] = report["passes"]
    assert row["bytes"] == 4 * (21504 + 128 * 11 + 160 + 32 + 3072)
    assert row["operations"] == 2 * (21504 + 3072) + 11 * 512
    assert row["bound"] == "memory"
    assert row["floor_ms"] == pytest.approx(row["bytes"] / 1e9 * 1e3)


def test_modes_still_run(tmp_path: Path) -> None:
    file = tmp_path / "modes.json"
    words = ["modes", "--decoding", "ar", "--limit", "2", "--repeats", "1", "--max-tokens", "4", "--concurrency", "2"]
    assert main([*words, *QUICK, "--json", str(file)]) == 0
    [row] = json.loads(file.read_text())
    assert row["decoding"] == "ar"
    assert row["tokens_per_pass"] > 0


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["passes", "--model", str(tmp_path / "nothing")]) == 1
    assert main(["light", "--core", "100000"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith("lightcone: error: ") for line in said)


@pytest.mark.parametrize("phase", list(Phase))
def test_made_up_plans(tiny_engine: MakeEngine, phase: Phase) -> None:
    engine = tiny_engine()
    kind = PassKind(phase, 8, 3, 20)
    plan = make_plan(engine, kind)
    logits = engine.runner.forward(plan)[0]
    rows = 8 if phase in (Phase.DENOISE, Phase.DRAFT, Phase.VERIFY) else 1
    assert logits is not None
    assert logits.shape == (3, rows, engine.info.vocab_size)
    shape = PassShape.of(plan)
    assert (shape.tokens, shape.cached, shape.logit_rows) == (24, 60, 3 * rows)
    if phase is Phase.DENOISE:
        assert shape == canvas_shape(8, 3, 20)
    pages = [page for span in plan.spans for page in span.seq.pages]
    assert len(set(pages)) == len(pages), "no page is shared"


def test_parts_are_put_back(tiny_engine: MakeEngine) -> None:
    engine = tiny_engine()
    plan = make_plan(engine, PassKind(Phase.VERIFY, 8, 2, 16))
    before = engine.runner.forward(plan)[0]
    whole, parts = pass_parts(engine, plan, 2)
    after = engine.runner.forward(plan)[0]
    assert whole > 0
    assert list(parts) == list(PARTS)
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)
    assert not vars(engine.runner.decoder).keys() & {"forward", "logits"}


def test_host_time_counts_full_steps_only(tiny_engine: MakeEngine) -> None:
    engine = tiny_engine()
    result = measure_host(engine, Setting(batch=3, context=16), 1)
    assert len(result.steps) == 16
    assert all(set(step) == set(STEP_PARTS) for step in result.steps)
    assert 0 < result.host < result.step
    assert not engine.has_work, "what it began it has ended"


def test_serve_leaves_nothing_behind(tiny_engine: MakeEngine) -> None:
    engine = tiny_engine()
    serve(engine, 20)
    assert not engine.has_work
    engine.scheduler.check_integrity()


def test_typical_sees_the_cycle_and_not_the_outlier() -> None:
    steps = [1.0, 1.0, 1.0, 9.0] * 3  # every fourth step is dear
    steps[0] = 1000.0  # somebody else had the processor
    assert typical(steps, 4) == 3.0
    assert typical([2.0], 16) == 2.0


def test_wrapped_methods_come_back() -> None:
    class Owner:
        def speak(self) -> str:
            return "plain"

    owner = Owner()
    with wrapped(owner, "speak", lambda method: lambda: method() + ", wrapped"):
        assert owner.speak() == "plain, wrapped"
    assert owner.speak() == "plain"


def test_counter_knows_the_adapter(tiny_engine: MakeEngine) -> None:
    engine = tiny_engine()
    shape = PassShape(tokens=8, drafting=8)
    undrafted = PassShape(tokens=8)
    counter = counter_of(engine)
    assert counter.count(shape).projections.bytes > counter.count(undrafted).projections.bytes


def test_device_speed_is_measured_over_the_working_set() -> None:
    speed = device_speed.measure_device_speed(torch.device("cpu"), torch.float32, 1000)
    assert speed.bandwidth > 0 < speed.rate
