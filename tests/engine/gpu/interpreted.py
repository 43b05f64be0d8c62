"""`pytest.importorskip("tests.engine.gpu.interpreted")` skips a module of tests where kernels cannot be interpreted."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

try:
    triton = version("triton")
except PackageNotFoundError:
    raise ImportError("Triton is not installed: pip install lightcone[triton]") from None
if os.environ.get("TRITON_INTERPRET") != "1":
    raise ImportError("kernels are compiled for a GPU here, and these tests interpret them")
if tuple(int(part) for part in triton.split(".")[:2]) < (3, 7):
    raise ImportError("the interpreter of Triton before 3.7 asks NumPy for what it has deprecated")
