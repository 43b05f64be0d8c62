"""Sends small data from the host to the device without waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

MOST_STAGED = 1 << 16
"""Bytes that CUDA copies from ordinary memory without waiting (CUDA's documentation, API synchronization behavior)."""


def to_device(
    values: Sequence[Any] | np.ndarray, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The values as a tensor on the device; an array's memory may be shared with it on a CPU. dtype: of lists alone.

    The host does not wait: an ordinary copy to a GPU first lets everything run that the GPU was given before, so that
    it would stand idle afterwards until the host has caught up. Few bytes of ordinary memory are staged before the
    copy returns, so nothing need outlive it; more of them would be waited for, and go through pinned memory, which
    torch keeps until the copy has been made.
    """
    host = torch.from_numpy(values) if isinstance(values, np.ndarray) else torch.tensor(values, dtype=dtype)
    if device.type == "cpu":
        return host
    if host.nbytes > MOST_STAGED:
        host = host.pin_memory()
    return host.to(device, non_blocking=True)
