"""Decoding modes as request fields, and the grid of modes that a sweep or a quality run visits."""

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec

_AXES = {
    "ar": (),
    "auto": ("block_length",),
    "speculative": ("block_length",),
    "diffusion": ("threshold", "block_length"),
}
"""The settings that each mode has; a server refuses the others. Modes not named here take both."""


class Mode(msgspec.Struct, frozen=True):
    """The decoding fields of a request. None: the field is not sent and the server's default holds."""

    decoding: str | None = None
    threshold: float | None = None
    block_length: int | None = None
    """Length of a block in tokens."""

    def fields(self) -> dict[str, Any]:
        """The request fields this mode sends."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}

    def label(self) -> str:
        """A short name for tables and legends."""
        parts = [self.decoding or "default"]
        if self.threshold is not None:
            parts.append(f"threshold {self.threshold:g}")
        if self.block_length is not None:
            parts.append(f"block {self.block_length}")
        return ", ".join(parts)


def grid(
    decodings: Sequence[str | None], thresholds: Sequence[float | None], block_lengths: Sequence[int | None]
) -> list[Mode]:
    """Every sensible combination, once each, in the order given: an `ar` cell is not repeated for each threshold."""
    modes: dict[Mode, None] = {}
    for decoding, threshold, block_length in itertools.product(decodings, thresholds, block_lengths):
        axes = _AXES.get(decoding or "", ("threshold", "block_length"))
        modes[
            Mode(
                decoding,
                threshold if "threshold" in axes else None,
                block_length if "block_length" in axes else None,
            )
        ] = None
    return list(modes)
