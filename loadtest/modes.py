"""Decoding modes as request fields, and the grid of modes that a sweep or a quality run visits."""

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec

_AXES = {
    "ar": (),
    "auto": ("block_length",),
    "speculative": ("block_length",),
    "diffusion": ("threshold", "block_length", "unmasking", "factor"),
}
"""The settings that each mode has; a server refuses the others. Modes not named here take the first two."""
_WITH_FACTOR = ("factor", "bound")
"""The unmasking rules that have a factor."""


class Mode(msgspec.Struct, frozen=True):
    """The decoding fields of a request. None: the field is not sent and the server's default holds."""

    decoding: str | None = None
    threshold: float | None = None
    block_length: int | None = None
    """Length of a block in tokens."""
    unmasking: str | None = None
    """The rule by which confidence unmasks."""
    factor: float | None = None
    """Of that rule."""

    def fields(self) -> dict[str, Any]:
        """The request fields this mode sends."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}

    def label(self) -> str:
        """A short name for tables and legends."""
        parts = [self.decoding or "default"]
        if self.unmasking is not None:
            parts.append(self.unmasking)
        if self.factor is not None:
            parts.append(f"factor {self.factor:g}")
        if self.threshold is not None:
            parts.append(f"threshold {self.threshold:g}")
        if self.block_length is not None:
            parts.append(f"block {self.block_length}")
        return ", ".join(parts)


def grid(
    decodings: Sequence[str | None],
    thresholds: Sequence[float | None],
    block_lengths: Sequence[int | None],
    unmaskings: Sequence[str | None] = (None,),
    factors: Sequence[float | None] = (None,),
) -> list[Mode]:
    """Every sensible combination, once each, in the order given: an `ar` cell is not repeated for each threshold."""
    modes: dict[Mode, None] = {}
    for decoding, unmasking, factor, threshold, block_length in itertools.product(
        decodings, unmaskings, factors, thresholds, block_lengths
    ):
        axes = _AXES.get(decoding or "", ("threshold", "block_length"))
        modes[
            Mode(
                decoding,
                threshold if "threshold" in axes else None,
                block_length if "block_length" in axes else None,
                unmasking if "unmasking" in axes else None,
                factor if "factor" in axes and unmasking in _WITH_FACTOR else None,
            )
        ] = None
    return list(modes)
