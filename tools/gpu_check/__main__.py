"""`python -m tools.gpu_check`: see the package's documentation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from tools.gpu_check.check import Check
from tools.gpu_check.sizes import SIZES


def main(words: list[str] | None = None) -> int:
    """Exits 0 if every part ran and every bar is met, else 1. The report is written either way."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m tools.gpu_check", description="Check and measure on a GPU."
    )
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check"), help="default: %(default)s")
    parser.add_argument("--size", choices=sorted(SIZES), help="default: 8b on a GPU, toy without one")
    parser.add_argument("--minutes", type=float, default=7.0, help="start no part after this (default %(default)s)")
    parser.add_argument("--triton-kernels", action="store_true", help="only whether these kernels are right")
    arguments = parser.parse_args(words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = arguments.size or ("8b" if device.type == "cuda" else "toy")
    check = Check(size, device, arguments.minutes * 60, arguments.out)
    if arguments.triton_kernels:
        return 0 if check.triton_kernels().passed else 1
    report = check.run()
    print(report.markdown())
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
