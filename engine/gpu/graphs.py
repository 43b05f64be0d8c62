"""Captured passes: the decoder's forward as one CUDA graph a shape, replayed with other data.

A pass of a small batch starts hundreds of kernels, each of which takes the host longer to start than the GPU to run; a
graph starts them all at once. It is captured for a *bucket*, a padded number of query tokens and of tiles, and reads
everything else from the device: ids, positions, kv limits, slots, tiles, splits. So one graph serves any mix of phases
that fits. What fits none runs operation by operation, and nothing is captured once requests are served.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from engine.attention.base import CapturableAttention, TileCounts
from engine.attention.packed_pass import ForwardBatch, PackedPass
from engine.device.devices import synchronise
from engine.kv_cache.pool import KVCachePool
from engine.models.decoder import Decoder
from engine.models.elementwise import Elementwise

log = logging.getLogger("lightcone.engine")

TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Query tokens of the buckets. In a larger pass the GPU works longer than the host takes to start the kernels."""
WARM_UP_SECONDS = 30.0
"""Capturing starts no further bucket after this."""


class Bucket(NamedTuple):
    """The shape of a captured pass."""

    num_tokens: int
    num_tiles: int
    block_rows: int
    """Rows of the attention's tiles; see Tiles."""
    drafting: bool
    """Whether some tokens draft with the model's adapter."""


class Capturer(ABC):
    """Captures the operations of a run on the device, so that they can be repeated."""

    @abstractmethod
    def capture(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        """Returns the tensor that `run` returned, and a replay that computes it again, in place, from what the tensors
        that `run` reads hold by then."""


class CudaCapturer(Capturer):
    """CUDA graphs. They share one pool of memory: a replay may overwrite what another one returned."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # One for all: the matrix library keeps a workspace of its own for every stream it has seen.
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def capture(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        """See Capturer. Runs once beforehand: kernels are compiled and libraries set up then, neither of which can be
        captured."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            run()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            result = run()
        return result, graph.replay


@dataclass(slots=True, eq=False)
class _Graph:
    bucket: Bucket
    inputs: torch.Tensor
    """[4, num_tokens] int64; see PackedPass."""
    layout: torch.Tensor
    """The attention's layout of the pass; see CapturableAttention."""
    draft_tokens: torch.Tensor | None
    """[num_tokens, 1]"""
    hidden: torch.Tensor
    """[num_tokens, hidden_size]: the result of the last replay."""
    replay: Callable[[], None]


class PassGraphs:
    """The captured passes of one model. Padding tokens write their K and V to the pool's padding page."""

    def __init__(
        self,
        decoder: Decoder,
        attention: CapturableAttention,
        elementwise: Elementwise,
        pool: KVCachePool,
        capturer: Capturer,
    ) -> None:
        self._decoder = decoder
        self._attention = attention
        self._elementwise = elementwise
        self._pool = pool
        self._capturer = capturer
        self._graphs: list[_Graph] = []

    @property
    def buckets(self) -> list[Bucket]:
        """The buckets captured, smallest first."""
        return [graph.bucket for graph in self._graphs]

    @torch.inference_mode()
    def warm_up(self, max_tokens: int, seconds: float = WARM_UP_SECONDS) -> None:
        """Captures the buckets up to `max_tokens` query tokens, likelier ones first, until the seconds are over. If one
        fails, for example for lack of memory, the others are left out."""
        started = time.monotonic()
        wanted = self._wanted(max_tokens)
        for number, bucket in enumerate(wanted):
            if time.monotonic() - started >= seconds:
                log.warning("%d of %d passes captured in %.0f s; others run eagerly", number, len(wanted), seconds)
                break
            try:
                self.capture(bucket)
            except RuntimeError as error:  # torch's own and the driver's
                reason = str(error).partition("\n")[0]
                log.warning("%d of %d passes captured; others run eagerly: %s", number, len(wanted), reason)
                synchronise(self._pool.device)  # raises what the device has not recovered from
                break
        log.info("captured %d passes in %.1f s", len(self._graphs), time.monotonic() - started)

    @torch.inference_mode()
    def capture(self, bucket: Bucket) -> None:
        """Captures one bucket. Writes to the padding page only."""
        device = self._pool.device
        inputs = torch.zeros((4, bucket.num_tokens), dtype=torch.int64, device=device)
        inputs[3] = self._pool.padding_slot
        draft_tokens = torch.zeros_like(inputs[0][:, None], dtype=self._pool.dtype) if bucket.drafting else None
        token_ids, positions, kv_limits, slots = inputs.unbind(0)
        batch = ForwardBatch(
            token_ids=token_ids, positions=positions, kv_limits=kv_limits, slots=slots, span_offsets=[], span_rows=[],
            span_kv_ends=[], host_kv_limits=np.empty(0, dtype=np.int64), draft_tokens=draft_tokens,
        )  # fmt: skip
        layout = self._attention.prepare_capture(batch, TileCounts(bucket.num_tiles, bucket.block_rows))
        hidden, replay = self._capturer.capture(
            lambda: self._decoder.forward(batch, self._attention, self._elementwise)
        )
        self._graphs.append(_Graph(bucket, inputs, layout, draft_tokens, hidden, replay))
        self._graphs.sort(key=lambda graph: graph.bucket)

    def forward(self, packed: PackedPass) -> torch.Tensor | None:
        """The pass's final hidden states [T, hidden_size], valid until the next pass; None where no graph fits."""
        num_tokens = packed.inputs.shape[1]
        if not self._graphs or num_tokens > self._graphs[-1].bucket.num_tokens:
            return None
        tiles = self._attention.tiles(packed)
        graph = self._find(num_tokens, len(tiles.rows), tiles.block_rows, packed.drafting is not None)
        if graph is None:
            return None
        inputs = np.zeros(graph.inputs.shape, dtype=np.int64)
        inputs[:, :num_tokens] = packed.inputs
        inputs[3, num_tokens:] = self._pool.padding_slot
        layout = self._attention.layout(tiles, graph.bucket.num_tiles)
        # Ordinary memory, few bytes: staged before such a copy returns, so nothing need outlive it; see to_device.
        graph.inputs.copy_(torch.from_numpy(inputs), non_blocking=True)
        graph.layout.copy_(torch.from_numpy(layout), non_blocking=True)
        if graph.draft_tokens is not None and packed.drafting is not None:
            graph.draft_tokens[:num_tokens, 0].copy_(torch.from_numpy(packed.drafting), non_blocking=True)
        graph.replay()
        return graph.hidden[:num_tokens]

    def _find(self, num_tokens: int, num_tiles: int, block_rows: int, drafting: bool) -> _Graph | None:
        """The smallest graph that holds the pass."""
        for graph in self._graphs:
            bucket = graph.bucket
            if (
                bucket.num_tokens >= num_tokens
                and bucket.num_tiles >= num_tiles
                and bucket.block_rows == block_rows
                and bucket.drafting == drafting
            ):
                return graph
        return None

    def _wanted(self, max_tokens: int) -> list[Bucket]:
        """Passes of spans of one width first, then those of any mix of widths."""
        modes = [False, True] if self._decoder.adapter is not None else [False]
        alike: list[Bucket] = []
        mixed: list[Bucket] = []
        for size in (size for size in TOKENS if size <= max_tokens):
            for buckets, counts in zip((alike, mixed), self._attention.capture_counts(size), strict=True):
                buckets += [Bucket(size, *tiles, drafting) for tiles in counts for drafting in modes]
        return alike + mixed
