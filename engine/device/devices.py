"""The device that runs the model: finding it by name, waiting for it, and the threads torch uses on a CPU."""

from __future__ import annotations

import os

import torch

from engine.errors import ConfigError, ModelLoadError


def resolve_device(name: str) -> torch.device:
    """The device `EngineConfig.device` names; `auto` is the GPU where there is one. Raises ModelLoadError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ModelLoadError(f"There is no device {name!r}: give auto, cpu, cuda or cuda:N.")
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise ModelLoadError(f"There is no device {name!r}: torch sees {count} GPUs.")
    # With its index: not everything in torch takes a device without one.
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def rank_device(device: torch.device, rank: int, size: int) -> torch.device:
    """The device of a rank: GPUs in order, from the first rank's on; all ranks on a CPU share it.

    Raises ConfigError where there are fewer GPUs than ranks.
    """
    if device.type == "cpu" or size == 1:
        return device
    first, count = device.index or 0, torch.cuda.device_count()
    if first + size > count:
        raise ConfigError(
            f"tensor_parallel_size {size} needs GPUs {first} to {first + size - 1}: torch sees {count} GPUs."
        )
    return torch.device("cuda", first + rank)


def set_up(device: torch.device, threads: int | None, ranks: int = 1) -> None:
    """Prepares this process to run on the device. threads: torch's on a CPU; None: `default_threads(ranks)`."""
    if device.type == "cpu":
        torch.set_num_threads(threads or default_threads(ranks))
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton's kernels start on the current device


def default_threads(ranks: int = 1) -> int:
    """torch threads on a CPU: all cores but one, which the API process needs, divided among the ranks.

    A pass whose threads wait for a core that another process holds is many times slower than one with a thread less.
    Where the system does not tell which cores this process may use, it is 1.
    """
    return max(1, (len(os.sched_getaffinity(0)) - 1) // ranks) if hasattr(os, "sched_getaffinity") else 1


def synchronise(device: torch.device) -> None:
    """Waits until the device has done what it was given. On a CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
