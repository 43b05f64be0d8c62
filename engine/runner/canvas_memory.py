"""CanvasMemory: what the last denoising step of each running sequence's canvas tells the next one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.attention.packed_pass import CanvasInput, PackedCanvases
from engine.device.transfer import to_device
from engine.models.refining.decoder import CanvasDecoder


class CanvasMemory:
    """Expected embeddings on the device, [slots, canvas length, hidden_size]. What slots mean is their users' affair.

    Never the logits they come from: those take a hundred times the memory.
    """

    def __init__(self, decoder: CanvasDecoder, num_slots: int) -> None:
        length, hidden = decoder.traits.length, decoder.config.hidden_size
        self._decoder = decoder
        self._device = decoder.device
        # Place 0 is all zeros: of canvases that have had no step.
        with torch.inference_mode(False):
            self._places = torch.zeros((1 + num_slots * length, hidden), dtype=decoder.dtype, device=decoder.device)
        self._slots = self._places[1:].view(num_slots, length, hidden)

    @property
    def vocab_size(self) -> int:
        """The tokens that a canvas may hold."""
        return self._decoder.config.vocab_size

    def remember(self, slots: Sequence[int], logits: torch.Tensor) -> None:
        """Keeps what logits [n, canvas length, V] expect, for n canvases."""
        self._slots[to_device(list(slots), self._device)] = self._decoder.expected_embeddings(logits)

    def recall(self, packed: PackedCanvases) -> CanvasInput | None:
        """What the canvases of a pass are told; None if it has none."""
        if not len(packed.rows):
            return None
        soft = self._places.index_select(0, to_device(packed.places, self._device))
        return CanvasInput(to_device(packed.rows, self._device), soft)
