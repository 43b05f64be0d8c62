"""If these fail, the command line a user types does not do what its help says."""

import ast
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import loadtest
from loadtest.__main__ import main
from loadtest.questions.categories import questions
from tests.loadtest.fake import Body, FakeServer, Reply


def answered(body: Body) -> Reply:
    """Right for `ar`; wrong for `diffusion` at threshold 0.5."""
    question = body["messages"][0]["content"]
    answers = questions(0)
    found = next(q.answer for q in (next(answers) for _ in range(200)) if q.text == question)
    return Reply(pieces=("wrong",) if body.get("threshold") == 0.5 else (found[:3], found[3:]))


def run(fake: FakeServer, tmp_path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    path = tmp_path / "report.json"
    status = main([*words, "--base-url", fake.url + "/v1", "--json", str(path), "--no-progress"])
    return status, json.loads(path.read_text())


def test_run_is_the_default_and_asks_the_built_in_questions(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, report = run(fake, tmp_path, "--requests", "6", "--concurrency", "2", "--slo-e2e", "60", "--records")
    assert status == 0
    assert report["kind"] == "run"
    assert report["summary"]["succeeded"] == 6
    assert report["summary"]["completion_tokens"] == 72
    assert report["summary"]["slo_share"] == 1.0
    assert len(report["records"]) == 6
    assert report["settings"]["model"] == "fake"
    assert fake.bodies[0]["model"] == "fake"
    assert fake.bodies[0]["temperature"] == 0
    assert len(fake.bodies) == 8  # two of warm-up
    assert "output tokens a second" in capsys.readouterr().out


def test_fields_of_the_command_line_reach_the_server(fake: FakeServer, tmp_path: Path) -> None:
    words = ["--requests", "1", "--warmup", "0", "--model", "m", "--decoding", "diffusion", "--threshold", "0.7"]
    words += ["--block-length", "16", "--temperature", "0.5", "--max-tokens", "9", "--ignore-eos"]
    run(fake, tmp_path, *words, "--extra-body", '{"seed": 3, "stream_options": null}', "--api-key", "k")
    body = fake.bodies[0]
    assert body.pop("messages")
    assert body == {
        "model": "m",
        "decoding": "diffusion",
        "threshold": 0.7,
        "block_length": 16,
        "temperature": 0.5,
        "max_tokens": 9,
        "ignore_eos": True,
        "seed": 3,
        "stream": True,
    }
    assert fake.headers[0]["authorization"] == "Bearer k"


def test_a_shape_goes_to_completions_with_its_own_lengths(fake: FakeServer, tmp_path: Path) -> None:
    run(fake, tmp_path, "--shape", "7:3", "--token-ids", "--token-id-range", "20:40", "--requests", "2")
    assert set(fake.paths) == {"/v1/completions"}
    assert all(len(body["prompt"]) == 7 and body["max_tokens"] == 3 for body in fake.bodies)


def test_built_in_questions_wear_the_chat_format_on_completions(fake: FakeServer, tmp_path: Path) -> None:
    run(fake, tmp_path, "--api", "completions", "--requests", "1", "--warmup", "0", "--categories", "fact")
    assert fake.bodies[0]["prompt"].startswith("<|user|>W")
    assert fake.bodies[0]["prompt"].endswith("?<|assistant|>")


def test_the_report_never_holds_the_key_nor_records_unless_asked(fake: FakeServer, tmp_path: Path) -> None:
    html = tmp_path / "deep" / "report.html"
    words = ["--requests", "2", "--api-key", "sesame", "--html", str(html), "--png", str(tmp_path / "png")]
    _, report = run(fake, tmp_path, *words)
    assert report["records"] == []
    assert "sesame" not in (tmp_path / "report.json").read_text() + html.read_text()
    assert '<svg role="img" aria-label="latency"' in html.read_text()
    assert (tmp_path / "png" / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_no_success_is_a_failure_of_the_command(fake: FakeServer, tmp_path: Path) -> None:
    fake.reply = lambda body: Reply(status=503, error="loading")
    status, report = run(fake, tmp_path, "--requests", "3", "--warmup", "0")
    assert status == 1
    assert report["summary"]["errors"] == {"http_503": 3}
    assert report["summary"]["error_examples"] == {"http_503": "loading"}


def test_one_command_checks_that_concurrency_pays(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.reply = lambda body: Reply(delay_s=0.1)
    words = ["sweep", "--concurrency", "1,4", "--requests", "4", "--repeats", "2", "--warmup", "0", "--no-stream"]
    status, report = run(fake, tmp_path, *words, "--min-ratio", "1.3")
    assert status == 0
    assert {name: report["settings"].get(name) for name in ("concurrency", "requests", "warmup")} == {
        "concurrency": None,
        "requests": 4,
        "warmup": 0,
    }
    assert [cell["cell"]["concurrency"] for cell in report["cells"]] == [1, 4]
    assert report["cells"][1]["throughput_ratio"]["median"] > 1.3
    assert len(report["cells"][1]["repeats"]) == 2
    assert "wanted 1.3" in capsys.readouterr().out
    assert run(fake, tmp_path, *words, "--min-ratio", "1000")[0] == 3


def test_a_sweep_asks_new_questions_in_every_cell(fake: FakeServer, tmp_path: Path) -> None:
    words = ["--requests", "4", "--warmup", "0", "--repeats", "2", "--categories", "add"]
    status, _ = run(fake, tmp_path, "sweep", "--concurrency", "1", "--decoding", "ar,diffusion", *words)
    assert status == 0
    asked = [body["messages"][0]["content"] for body in fake.bodies]
    assert len(asked) == len(set(asked)) == 16
    assert [body["decoding"] for body in fake.bodies[::4]] == ["ar", "diffusion"] * 2


def test_a_sweep_claims_no_setting_that_differs_between_its_cells(fake: FakeServer, tmp_path: Path) -> None:
    """Whoever ran it again with the first cell's number of requests would measure something else."""
    words = ["--duration", "0.2", "--repeats", "1", "--categories", "add"]
    status, report = run(fake, tmp_path, "sweep", "--concurrency", "1,2", *words)
    assert status == 0
    assert not {"concurrency", "requests", "warmup"} & set(report["settings"])


def test_quality_scores_each_mode_on_the_same_questions(fake: FakeServer, tmp_path: Path) -> None:
    fake.reply = answered
    words = ["--decoding", "ar,diffusion", "--threshold", "0.5,0.9", "--questions", "20"]
    status, report = run(fake, tmp_path, "quality", *words)
    assert status == 0
    shares = {(m["mode"]["decoding"], m["mode"]["threshold"]): m["exact_share"] for m in report["modes"]}
    assert shares == {("ar", None): 1.0, ("diffusion", 0.5): 0.0, ("diffusion", 0.9): 1.0}
    assert [m["agreement"] for m in report["modes"]] == [1.0, 0.0, 1.0]
    assert report["modes"][0]["tokens_per_pass"] == 3.0
    assert len(report["modes"][1]["mistakes"]) == 5


def test_quality_reads_a_file_of_questions(fake: FakeServer, tmp_path: Path) -> None:
    fake.reply = lambda body: Reply(pieces=("The answer is 4.",))
    path = tmp_path / "q.jsonl"
    path.write_text('{"prompt": "2+2", "answer": "4"}\n{"prompt": "2+3", "answer": "5"}\n')
    status, report = run(
        fake, tmp_path, "quality", "--prompts", str(path), "--match", "number", "--decoding", "default"
    )
    assert status == 0
    assert report["modes"][0]["exact_share"] == 0.5
    assert "decoding" not in fake.bodies[0]


def test_control_c_prints_what_was_measured(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(body: Body) -> Reply:
        if len(fake.bodies) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return Reply(delay_s=30.0 if len(fake.bodies) >= 4 else 0.0)

    fake.reply = reply
    status, report = run(fake, tmp_path, "--requests", "50", "--warmup", "0")
    assert status == 130
    assert report["interrupted"]
    assert report["summary"]["succeeded"] == 3
    assert "Interrupted" in capsys.readouterr().out


def test_it_waits_for_a_server_that_is_still_loading(fake: FakeServer, tmp_path: Path) -> None:
    """A script that starts both would otherwise measure refusals."""
    fake.refusals = 2
    status, report = run(fake, tmp_path, "--requests", "1", "--warmup", "0", "--wait", "10")
    assert (status, report["summary"]["succeeded"], fake.refusals) == (0, 1, 0)


def test_a_server_that_never_comes_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--base-url", "http://127.0.0.1:1", "--wait", "0.3", "--requests", "1"])
    assert "was not ready within 0.3 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--decoding", "ar,diffusion"], "use sweep"),
        (["--token-ids", "--api", "chat"], "token-ids"),
        (["--categories", "poetry"], "poetry"),
        (["--prompts", "missing.jsonl"], "missing.jsonl"),
        (["--prompts", "x", "--shape", "1:1"], "exclude"),
        (["--shape", "5"], "two numbers"),
        (["--rate", "0"], "greater than 0"),
        (["--concurrency", "0"], "at least 1"),
        (["--extra-body", "[1]"], "JSON object"),
        (["sweep", "--concurrency", "1,x"], "invalid"),
        (["sweep", "--categories", "poetry"], "poetry"),
        (["quality", "--threshold", "high"], "list of float"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--base-url", "http://127.0.0.1:1"])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_load_generator_speaks_http_only() -> None:
    folder = Path(loadtest.__file__).parent
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in ("server", "engine", "torch")], path.name
