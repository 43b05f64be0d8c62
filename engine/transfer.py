"""Small host data on its way to the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def to_device(
    values: Sequence[Any] | np.ndarray, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The values as a tensor on the device; an array's memory may be shared with it on a CPU. dtype: of lists alone.

    The host does not wait: an ordinary copy to a GPU first lets everything run that the GPU was given before, so that
    it would stand idle afterwards until the host has caught up. The memory is ordinary, hence staged before the copy
    returns: nothing need outlive it.
    """
    host = torch.from_numpy(values) if isinstance(values, np.ndarray) else torch.tensor(values, dtype=dtype)
    return host if device.type == "cpu" else host.to(device, non_blocking=True)
