"""What a CUDA graph does, on a CPU: every operation and kernel launch of a run, with the very tensors and numbers that
it had then, done again in the same order.

A number that the host read or computed during the capture stays what it was, as in a CUDA graph: code that should
have read it from the device gives wrong results for any other pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from engine.gpu import attention as triton_paged
from engine.gpu import elementwise as triton_elementwise
from engine.gpu.graphs import Capturer


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the host reads a number from the device: that cannot be captured")
        made = func(*args, **kwargs)
        if func.__name__.startswith("empty"):
            # A graph's memory is shared with other graphs: what nobody has written yet may be anything.
            self.steps.append(lambda: _spoil(made))
            _spoil(made)
        else:
            self.steps.append(lambda: _again(func, args, kwargs, made))
        return made


def _spoil(made: torch.Tensor) -> None:
    if made.is_floating_point():
        with _disable_current_modes():
            made.fill_(torch.nan)


def _again(func: Any, args: Any, kwargs: Any, made: Any) -> None:
    for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
        if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor done in place
            old.copy_(new)


class _Kernel:
    """A Triton kernel whose launches go on the tape that is being captured."""

    def __init__(self, kernel: Any, capturer: TapeCapturer) -> None:
        self.kernel, self.capturer = kernel, capturer

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            def run() -> None:
                with _disable_current_modes():
                    self.kernel[grid](*args, **kwargs)

            if self.capturer.tape is not None:
                self.capturer.tape.steps.append(run)
            run()

        return launch


class TapeCapturer(Capturer):
    """Captures with a tape what CudaCapturer captures with a graph."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tape: _Tape | None = None
        self.replays = 0
        kernels = [(triton_paged, name) for name in ("attend_tiles", "merge_splits", "store_kv")]
        for module, name in (*kernels, (triton_elementwise, "rotate_rows"), (triton_elementwise, "silu_mul_rows")):
            monkeypatch.setattr(module, name, _Kernel(getattr(module, name), self))

    def capture(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        self.tape = tape = _Tape()
        with tape:
            result = run()
        self.tape = None

        def replay() -> None:
            self.replays += 1
            for step in tape.steps:
                step()

        return result, replay
