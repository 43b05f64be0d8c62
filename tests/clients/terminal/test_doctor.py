"""`lightcone doctor`: what an operator is told before anything is loaded, and the exit status that scripts read."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.terminal.doctor import free_memory, main


def lines(capfd: pytest.CaptureFixture[str]) -> dict[str, list[tuple[str, str]]]:
    """Subject -> (mark, text) of each line."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in capfd.readouterr().out.splitlines():
        mark, subject, text = line.split(maxsplit=2)
        found.setdefault(subject, []).append((mark, text))
    return found


def test_the_built_in_model_can_be_served_here(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu"]) == 0
    found = lines(capfd)
    assert {"lightcone", "machine", "torch", "kernels", "model", "decoding", "memory", "tokenizer", "chat"} <= set(
        found
    )
    assert "!!" not in {mark for told in found.values() for mark, _ in told}
    assert "3.0 million parameters" in found["model"][0][1]
    assert "float32" in found["dtype"][0][1]


def test_a_model_without_a_tokenizer_is_found_out(tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The weights are sound, and yet the server could not start."""
    assert main([str(tiny_checkpoint), "--device", "cpu"]) == 1
    found = lines(capfd)
    assert found["files"][0][0] == "ok"
    [(mark, text)] = found["tokenizer"]
    assert mark == "!!"
    assert "tokenizer.json" in text


def test_what_is_not_here_is_said_and_not_fetched(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["org/name"]) == 1
    [(mark, text)] = lines(capfd)["model"]
    assert mark == "!!"
    assert "org/name is the name of a repository" in text


def test_free_memory_is_a_sensible_number() -> None:
    memory = free_memory()
    assert memory is None or 2**20 < memory < 2**50
