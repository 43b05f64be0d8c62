"""Devices by name. If one fails, a mistyped device ends in a traceback, or no model loads on a GPU."""

from __future__ import annotations

import os

import pytest
import torch

from engine.device.devices import default_threads, resolve_device, set_up, synchronise
from engine.errors import ModelLoadError

CPU = torch.device("cpu")


def test_device_names_are_checked() -> None:
    """A mistyped device would be a traceback."""
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ModelLoadError, match="no device 'gpu'"):
        resolve_device("gpu")
    for other in ("meta", "mps", "xpu:0"):  # torch knows them, and this engine cannot compute on them
        with pytest.raises(ModelLoadError, match=f"no device '{other}'"):
            resolve_device(other)


def test_a_gpu_is_known_by_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda.set_device, for one, takes no device without an index: no model would load on any GPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 1)
    assert resolve_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(ModelLoadError, match="no device 'cuda:2': torch sees 2 GPUs"):
        resolve_device("cuda:2")


def test_a_cpu_leaves_a_core_to_the_api_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass whose threads wait for a core is many times slower than one with a thread less."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert default_threads() == 5
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert default_threads() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert default_threads() == 1


def test_setting_up_a_cpu_takes_the_threads_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """`threads` would be an option without effect."""
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr("engine.device.devices.default_threads", lambda ranks: 7 // ranks)
    set_up(CPU, 3)
    set_up(CPU, None)
    set_up(CPU, None, 2)
    assert taken == [3, 7, 3]
    synchronise(CPU)  # has nothing to wait for, and must not ask for a GPU


def test_setting_up_a_gpu_makes_it_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels start on the current device: all but the first GPU would run into illegal addresses."""
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    set_up(torch.device("cuda", 1), 3)
    assert taken == [torch.device("cuda", 1)]
