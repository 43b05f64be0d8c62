"""Completion in a real bash: what the Tab key offers after the words that have been typed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from server.__main__ import TOOLS
from server.completion import PARSERS, main
from tests.http_helpers import plain_environment

Complete = Callable[..., set[str]]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The scripts, as the command prints them."""
    pytest.importorskip("shtab", reason="shtab is not installed")
    folder = tmp_path_factory.mktemp("completion")
    code = (
        "import sys, contextlib; from server.completion import main\n"
        "for shell in ('bash', 'zsh', 'fish'):\n"
        "    with open(f'{sys.argv[1]}/{shell}', 'w') as file, contextlib.redirect_stdout(file):\n"
        "        assert not main([shell])\n"
    )
    subprocess.run([sys.executable, "-c", code, folder], check=True, env=plain_environment())
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def complete(scripts: dict[str, Path], tmp_path: Path) -> Complete:
    """What bash offers for the last of some words, in a directory with a file `file.toml` and a folder `folder`."""
    (tmp_path / "file.toml").touch()
    (tmp_path / "folder").mkdir()

    def offered(*words: str) -> set[str]:
        line = (
            'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
            'function_of() { local spec=($(complete -p lightcone)); echo "${spec[-2]}"; }; '
            '"$(function_of)" lightcone "${COMP_WORDS[COMP_CWORD]}"; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        command = ["bash", "-c", line, "bash", str(scripts["bash"]), "lightcone", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=20)
        assert done.stderr == ""
        return {text.strip() for text in done.stdout.splitlines() if text.strip()}

    return offered


def test_every_command_is_offered(complete: Complete) -> None:
    """A command that nobody knows of is not used."""
    assert complete("") >= {"serve", *TOOLS}
    assert complete("ser") == {"serve"}
    assert set(PARSERS) == set(TOOLS), "its options would not be offered"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("serve", "--max-run"), {"--max-running"}),
        (("serve", "--no-pre"), {"--no-prefix-caching"}),
        (("serve", "--print"), {"--print-config"}),
        (("serve", "--load-format", ""), {"auto", "dummy"}),
        (("serve", "--load-format", "d"), {"dummy"}),
        (("generate", "--wat"), {"--watch"}),
        (("chat", "--decoding", "spec"), {"speculative"}),
        (("chat", "--no-w"), {"--no-watch"}),
        (("doctor", "--dev"), {"--device"}),
        (("loadtest", "sw"), {"sweep"}),
        (("loadtest", "run", "--extra-b"), {"--extra-body"}),
        (("bench", "li"), {"light"}),
        (("completion", "f"), {"fish"}),
    ],
)
def test_options_and_their_values_are_offered(complete: Complete, words: tuple[str, ...], offered: set[str]) -> None:
    """There are some eighty of them, which nobody spells by heart."""
    assert complete(*words) == offered


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("serve", "--config", "f"), {"file.toml", "folder"}),
        (("serve", "--model", "f"), {"folder"}),
        (("serve", "f"), {"folder"}),
    ],
)
def test_paths_are_offered_where_they_are_meant(complete: Complete, words: tuple[str, ...], offered: set[str]) -> None:
    """A model is a folder: files among the offers would only be in the way."""
    assert {text.rstrip("/") for text in complete(*words)} == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_that_is_here_takes_its_script(scripts: dict[str, Path], shell: str) -> None:
    """An error in it would greet its user at every start."""
    text = scripts[shell].read_text()
    assert "--max-running" in text or "max-running" in text
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([program, "-n", scripts[shell]], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_the_package_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback in a shell's start-up file would be read as a fault of the shell."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["bash"]) == 1
    assert capsys.readouterr().err == "lightcone: error: completion needs the package shtab\n"
