"""Finding, starting and measuring other servers. If one fails, a comparison measures the wrong thing, or leaves servers
behind."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from bench.__main__ import main, make_parser
from bench.peers.command import Served, chosen, load_command, read_tokens
from bench.peers.servers import Load, PeerServer, find_programs, free_port, llama_command, vllm_command
from engine.errors import ConfigError, EngineError
from loadtest.command_line import build_parser

FAKE = Path(__file__).with_name("fake_peer.py")
LOAD = Load(threads=1, core=None, sequences=2, tokens=12)


def script(path: Path) -> Path:
    """An executable that is the fake peer, whatever its words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A folder in which an environment with vLLM seems to lie."""
    module = tmp_path / "env" / "lib" / "python3.11" / "site-packages" / "vllm" / "entrypoints" / "openai"
    module.mkdir(parents=True)
    (module / "api_server.py").touch()
    script(tmp_path / "env" / "bin" / "python")
    return tmp_path


def test_programs_are_found_where_they_are_installed(environment: Path) -> None:
    """A user would be told that what is there is not."""
    assert find_programs(environment) == {"vllm": environment / "env" / "bin" / "python"}
    assert find_programs(environment / "env") == {"vllm": environment / "env" / "bin" / "python"}
    for place in ("llama-server", "build/bin/llama-server", "env/lib/python3.11/site-packages/llama/bin/llama-server"):
        path = script(environment / place)
        assert find_programs(environment)["llama.cpp"] == path
        path.unlink()
    (environment / "llama-server").touch()  # no program
    assert set(find_programs(environment)) == {"vllm"}


def test_a_folder_without_peers_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["peers", str(tmp_path)]) == 1
    assert f"{tmp_path} holds no peer" in capsys.readouterr().err


def test_bad_words_are_one_line(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--only", "vllm:int3"], "--only names vllm:int3; there are lightcone:float32"),
        (["--only", "llama.cpp:f32"], "--only names llama.cpp:f32"),
        (["--tokens", "64"], "--tokens must be IN:OUT"),
        (["--tokens", "0:3"], "--tokens must be IN:OUT"),
    ):
        assert main(["peers", str(environment), *words]) == 1
        assert message in capsys.readouterr().err
    for shape in ("1,2", "64,2,96,4,3,32,512", "64,2,96,4,2,31,512", "64,2,96,4,2,32,100", "a,b,c,d,e,f,g"):
        with pytest.raises(SystemExit):
            make_parser().parse_args(["peers", ".", "--shape", shape])
        assert shape in capsys.readouterr().err
    with pytest.raises(ConfigError):
        chosen(["lightcone:f32"], {})
    assert read_tokens("64:32") == (64, 32)


def test_commands_say_what_is_compared() -> None:
    """A peer with other threads, precision or cached prompts would not be measured under the same load."""
    load = Load(threads=2, core=None, sequences=8, tokens=96)
    command, environment = vllm_command(Path("python"), Path("model"), "float32", 1234, load)
    line = " ".join(command)
    assert "--dtype float32" in line
    assert "--no-enable-prefix-caching" in line
    assert environment["OMP_NUM_THREADS"] == str(len(load.cores))
    command, _ = llama_command(Path("llama-server"), Path("f32.gguf"), 1234, load)
    line = " ".join(command)
    assert "--threads 2 --threads-batch 2 --parallel 8" in line
    assert Load(threads=1, core=1, sequences=1, tokens=1).cores == [1]


def test_loadtest_understands_its_command() -> None:
    args = make_parser().parse_args(["peers", ".", "--tokens", "8:4", "--requests", "3"])
    parse = build_parser().parse_args
    ours = parse(load_command(Served("lightcone:int8", "http://127.0.0.1:1", {"decoding": "auto"}), 8, 2, args))
    assert (ours.requests, ours.concurrency, ours.shape, ours.ignore_eos) == (24, 8, (8, 4), True)
    assert ours.decoding == ["auto"]
    theirs = parse(load_command(Served("vllm:float32", "http://127.0.0.1:1", {}), 8, 1, args))
    assert theirs.decoding == [None]
    assert theirs.seed != ours.seed


def test_a_peer_that_does_not_start_is_one_line(environment: Path) -> None:
    program = find_programs(environment)["vllm"]
    port = free_port()
    command, variables = vllm_command(program, Path("model"), "bfloat16", port, LOAD)
    with pytest.raises(EngineError, match="vllm:bfloat16 did not start: no bfloat16 here"):
        PeerServer("vllm:bfloat16", command, variables, port, LOAD).__enter__()


def test_a_peer_is_gone_afterwards(environment: Path) -> None:
    """It would go on computing beside the next measurement."""
    port = free_port()
    command, variables = vllm_command(find_programs(environment)["vllm"], Path("model"), "float32", port, LOAD)
    with PeerServer("vllm:float32", command, variables, port, LOAD) as server:
        pid = server.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_command(environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This server and a peer, from the weights to the table."""
    file = tmp_path / "report.json"
    words = ["peers", str(environment), "--only", "vllm:float32,lightcone:float32", "--shape", "64,2,96,4,2,32,512"]
    words += ["--tokens", "8:4", "--concurrency", "1,2", "--requests", "2", "--repeats", "2", "--json", str(file)]
    assert main(words) == 0
    report = json.loads(file.read_text())
    assert [(row["name"], row["concurrency"]) for row in report["servers"]] == [
        ("lightcone:float32", 1), ("lightcone:float32", 2), ("vllm:float32", 1), ("vllm:float32", 2),
    ]  # fmt: skip
    for row in report["servers"]:
        assert len(row["runs"]) == 2
        assert row["tokens_per_second"] > 0
        assert (row["same"] == 1.0) == (row["name"] == "lightcone:float32")
    assert "vllm:float32" in capsys.readouterr().out
