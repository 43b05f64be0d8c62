"""Every Triton kernel compiled for NVIDIA GPUs, without one: what a compiler refuses, or turns into memory traffic,
would otherwise be found by the first person who has a GPU."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install lightcone[triton]")
if platform.system() != "Linux":
    pytest.skip("Triton brings its compiler for NVIDIA GPUs on Linux alone", allow_module_level=True)

ROOT = Path(__file__).parents[3]
SPILLED = 32
"""Bytes of a thread's registers that may lie in memory: a few are compilers' noise from version to version, hundreds
are a tile too large for its warps."""
SHARED = 100_000
"""Bytes of shared memory by program, of the 228 KB that a processor of Hopper or Blackwell has."""


@pytest.fixture(scope="module")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """What each kernel takes on compute capability 9.0."""
    environment = os.environ | {
        "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tools.compiled_kernels", "90"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_registers_hold_every_tile(hopper: dict[str, dict[str, int]]) -> None:
    assert len(hopper) > 20
    assert {name: use["stack"] for name, use in hopper.items() if use["stack"] > SPILLED} == {}
    assert {name: use["shared"] for name, use in hopper.items() if use["shared"] > SHARED} == {}


def test_half_precision_attention_multiplies_on_tensor_cores(hopper: dict[str, dict[str, int]]) -> None:
    tiles = {name: use["products"] for name, use in hopper.items() if "attend_tiles bf16" in name}
    assert tiles
    assert all(tiles.values())


def test_keys_and_values_arrive_16_bytes_at_a_time_while_others_are_multiplied(
    hopper: dict[str, dict[str, int]],
) -> None:
    """Narrower or waited for, they come at a fraction of the memory's bandwidth, which is all that decoding needs."""
    assert {name for name, use in hopper.items() if "attend_tiles" in name and use["copies"] < 4} == set()
