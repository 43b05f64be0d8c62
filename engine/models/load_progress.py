"""How much of a checkpoint's weights has been loaded, in the bytes that are stored."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.models.quantized.matrices import StoredMatrices

ReportWeights = Callable[[int, int, int, int], None]
"""Is told the bytes loaded, those of the whole checkpoint, and the same of its files."""

REPORT_SECONDS = 0.2
"""Least time between two reports; the last one always comes."""
LENGTH_BYTES = 8
"""Of the number that begins a safetensors file: the length of the JSON behind it."""


class WeightProgress:
    """Counts the tensors of a checkpoint as they are loaded."""

    def __init__(self, matrices: StoredMatrices, report: ReportWeights) -> None:
        """matrices: names the file of every tensor; a quantized matrix is loaded as one."""
        self._report = report
        self._places = matrices.places()
        self._sizes = _sizes_by_name(matrices)
        self._left = Counter(self._places.values())
        self._num_files = len(self._left)
        self._total = sum(self._sizes.values())
        self._done = 0
        self._next_report = 0.0

    def loaded(self, name: str) -> None:
        """One more tensor, or quantized matrix, is where it belongs."""
        self._done += self._sizes[name]
        self._left[self._places[name]] -= 1
        now = time.monotonic()
        if now >= self._next_report:
            self._next_report = now + REPORT_SECONDS
            self._tell(self._done, self._num_files - sum(left > 0 for left in self._left.values()))

    def finish(self) -> None:
        """All that is needed has been loaded. A head that is the embedding is stored and not loaded."""
        self._tell(self._total, self._num_files)

    def _tell(self, num_bytes: int, num_files: int) -> None:
        self._report(num_bytes, self._total, num_files, self._num_files)


def _sizes_by_name(matrices: StoredMatrices) -> dict[str, int]:
    """Bytes of every tensor, and of every quantized matrix with all that belongs to it."""
    stored: dict[str, int] = {}
    for path in dict.fromkeys(matrices.files.values()):
        stored |= stored_sizes(path)
    wholes = {name: matrix.stored_names for name, matrix in matrices.by_name.items()}
    return {name: sum(stored.get(part, 0) for part in wholes.get(name, (name,))) for name in matrices.places()}


def stored_sizes(path: Path) -> Mapping[str, int]:
    """Bytes of each tensor of a safetensors file, from its beginning, which has been found to be good."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(LENGTH_BYTES), "little")))
    return {
        name: entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }
