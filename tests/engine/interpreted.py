"""`pytest.importorskip("tests.engine.interpreted")` skips a module of tests where kernels cannot be interpreted."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version


def _numbers(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])


try:
    triton = _numbers("triton")
except PackageNotFoundError:
    raise ImportError("Triton is not installed: pip install lightcone[triton]") from None
if os.environ.get("TRITON_INTERPRET") != "1":
    raise ImportError("kernels are compiled for a GPU here, and these tests interpret them")
if triton < (3, 7) and _numbers("numpy") >= (2, 4):
    raise ImportError("the interpreter of Triton before 3.7 needs a NumPy before 2.4")
