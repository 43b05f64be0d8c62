"""Commands side by side, from any directory and with any environment a user may have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.http_helpers import plain_environment

SCRIPT = Path(sys.executable).parent / "lightcone"


def test_help_names_every_command() -> None:
    text = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    for command in ("serve", "generate", "loadtest", "bench"):
        assert f"    {command}" in text
    text = subprocess.run([SCRIPT, "generate", "--help"], capture_output=True, text=True, check=True).stdout
    for flag in ("--watch", "--decoding", "--url", "--suffix", "--delay"):
        assert flag in text


@pytest.mark.parametrize("name", ["LIGHTCONE_URL", "LIGHTCONE_API_KEY"])
def test_what_is_set_for_generate_does_not_stop_serve(name: str) -> None:
    """Both commands are used from one shell."""
    environment = {**plain_environment(), name: "http://localhost:8000"}
    done = subprocess.run(
        [SCRIPT, "serve", "--print-config"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "[server]" in done.stdout


def test_serve_does_not_run_what_lies_in_the_current_directory(tmp_path: Path) -> None:
    """A directory of a user's own may hold a package called `engine`; it is neither Lightcone's nor to be trusted."""
    (tmp_path / "engine").mkdir()
    ran = tmp_path / "ran"
    (tmp_path / "engine" / "__init__.py").write_text(f"open({str(ran)!r}, 'w').close()")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")  # ends the attempt before anything is loaded
    command = [SCRIPT, "serve", "--port", "0", "--model", str(tmp_path / "model")]
    subprocess.run(command, cwd=tmp_path, env=plain_environment(), capture_output=True, timeout=60, check=False)
    assert not ran.exists(), "the engine process imported the wrong package"


def test_output_that_nobody_reads_to_its_end_is_no_error() -> None:
    """`lightcone completion bash | head -3` would end with a traceback."""
    with subprocess.Popen(
        [SCRIPT, "completion", "bash"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=plain_environment()
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()  # before the command has begun to write
        assert running.stderr.read() == b""
        assert running.wait(60) == 141
