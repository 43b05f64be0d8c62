"""The openai npm package, unmodified. Needs Node; the package is installed into a directory of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import KEY
from tests.http_helpers import plain_environment

HERE = Path(__file__).parent
SCRIPT = HERE / "client.mjs"
CHECKS = re.findall(r"^  async (\w+)\(\)", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)


OFFLINE = re.compile("ECONNREFUSED|ECONNRESET|ENOTFOUND|ETIMEDOUT|EAI_AGAIN|ENOTCACHED|E40[134]|E50[0-9]|UNABLE_TO_")
"""How npm says that its registry cannot be reached, or does not give the package to us."""


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script, beside the package it imports."""
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        pytest.skip("Node and npm are not installed")
    directory = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", SCRIPT.name):
        shutil.copy(HERE / name, directory)
    try:
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True, timeout=90)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
        said = str(exc.stderr or exc).strip()
        if isinstance(exc, subprocess.CalledProcessError) and not OFFLINE.search(said):
            pytest.fail(f"npm cannot install the openai package: {said}")
        pytest.skip(f"npm cannot reach the openai package here: {said.partition(chr(10))[0]}")
    return directory / SCRIPT.name


@pytest.mark.parametrize("check", CHECKS)
def test_the_npm_package(script: Path, url: str, check: str) -> None:
    environment = {**plain_environment(), "BASE_URL": f"{url}/v1", "API_KEY": KEY}
    command = ["node", script.name, check]
    done = subprocess.run(command, cwd=script.parent, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_lockfile_pins_one_version_and_no_host() -> None:
    """A host in it would be asked for the package wherever the tests run, whatever registry is configured there."""
    lock = json.loads((HERE / "package-lock.json").read_text(encoding="utf-8"))
    wanted = json.loads((HERE / "package.json").read_text(encoding="utf-8"))["dependencies"]["openai"]
    package = lock["packages"]["node_modules/openai"]
    assert package["version"] == wanted
    assert package["integrity"].startswith("sha512-")
    assert not any("resolved" in entry for entry in lock["packages"].values())
