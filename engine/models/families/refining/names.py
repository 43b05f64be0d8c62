"""CanvasNames: the names of tensors in checkpoints whose encoder and decoder are one but for a factor a layer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.models.families.names import WeightNames


@dataclass(frozen=True, kw_only=True)
class CanvasNames(WeightNames):
    """WeightNames of the decoder; of the encoder only each layer's factor is stored, and only that is read."""

    encoder: str
    """The prefix of the encoder's `layers.N.layer_scalar`."""
    ignored_prefixes: tuple[str, ...] = ()
    """Parts of a checkpoint that are not served."""

    def decoder_names(self, name: str) -> tuple[str, ...]:
        """See WeightNames."""
        factor = re.fullmatch(rf"{re.escape(self.encoder)}layers\.(\d+)\.layer_scalar", name)
        return super().decoder_names(name) if factor is None else (f"layers.{factor[1]}.text_scalar",)

    def published_name(self, wanted: str) -> str:
        """See WeightNames."""
        factor = re.fullmatch(r"layers\.(\d+)\.text_scalar", wanted)
        return super().published_name(wanted) if factor is None else f"{self.encoder}layers.{factor[1]}.layer_scalar"

    def is_ignored(self, name: str) -> bool:
        """See WeightNames."""
        return super().is_ignored(name) or name.startswith(self.ignored_prefixes)
