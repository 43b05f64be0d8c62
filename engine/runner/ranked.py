"""The runner of several ranks: what rank 0 sends the others, and what these do with it.

Rank 0 has the scheduler, the policies and this runner; the others follow it. Each pass is one message, its packed
arrays, and every rank runs it on its own share.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
import torch

from engine.attention.packed_pass import MappedPages, PackedPass
from engine.batch import BatchPlan
from engine.errors import RankError
from engine.ranks.group import RankGroup
from engine.runner.device_pass import DevicePass
from engine.runner.model_runner import ModelRunner, split_logits
from engine.sampling.divided import DividedLogits, Logits, PlainChoice, best_of_part, combine
from engine.sampling.logprobs import widened
from engine.sampling.picker import Picked

_T = TypeVar("_T")

IDLE_SECONDS = 0.5
"""Shortest time between two looks at the other ranks while there is nothing to run."""


class RunPass(msgspec.Struct, tag=True, frozen=True):
    """Run a pass. The fields are those of PackedPass, arrays as their bytes."""

    inputs: bytes
    logit_rows: bytes
    span_offsets: list[int]
    span_rows: list[int]
    span_kv_ends: list[int]
    drafting: bytes | None
    only_drafts: bool
    mapped_pages: list[tuple[int, int, list[int]]]
    cleared_pages: list[int]


class Rows(NamedTuple):
    """Logit rows of the latest pass: those of a step group."""

    start: int
    spans: int
    rows: int
    """Of each span."""


class PickTokens(msgspec.Struct, tag=True, frozen=True):
    """Send rank 0 the figures of a plain choice."""

    rows: Rows
    choice: PlainChoice


class SendLogits(msgspec.Struct, tag=True, frozen=True):
    """Send rank 0 this part of the vocabulary."""

    rows: Rows


class Look(msgspec.Struct, tag=True, frozen=True):
    """Show that this rank is alive."""


class Leave(msgspec.Struct, tag=True, frozen=True):
    """No more passes will come."""


ToRank = RunPass | PickTokens | SendLogits | Look | Leave


def encode_pass(packed: PackedPass) -> RunPass:
    """A pass as a message."""
    return RunPass(
        packed.inputs.tobytes(),
        packed.logit_rows.tobytes(),
        packed.span_offsets,
        packed.span_rows,
        packed.span_kv_ends,
        None if packed.drafting is None else packed.drafting.tobytes(),
        packed.only_drafts,
        list(packed.mapped_pages),
        packed.cleared_pages,
    )


def decode_pass(message: RunPass) -> PackedPass:
    """The pass of a message, its arrays writable as torch wants them."""
    return PackedPass(
        inputs=np.frombuffer(message.inputs, dtype=np.int64).reshape(4, -1).copy(),
        logit_rows=np.frombuffer(message.logit_rows, dtype=np.int64).copy(),
        span_offsets=message.span_offsets,
        span_rows=message.span_rows,
        span_kv_ends=message.span_kv_ends,
        drafting=None if message.drafting is None else np.frombuffer(message.drafting, dtype=np.bool_).copy(),
        only_drafts=message.only_drafts,
        mapped_pages=[MappedPages(*change) for change in message.mapped_pages],
        cleared_pages=message.cleared_pages,
    )


class RankShare:
    """One rank's share of the passes: it runs them, and chooses from the logits of its part of the vocabulary."""

    def __init__(self, device_pass: DevicePass, group: RankGroup, banned_token_ids: tuple[int, ...]) -> None:
        self.device_pass = device_pass
        self.group = group
        self._banned = banned_token_ids
        self._logits: torch.Tensor | None = None

    def run(self, packed: PackedPass) -> torch.Tensor | None:
        """One pass. Returns the logits of this rank's part of the vocabulary, and keeps them until the next one."""
        self._logits = self.device_pass.run(packed)
        return self._logits

    def rows(self, rows: Rows) -> torch.Tensor:
        """This part of the logits of a step group: [n, r, v], a view."""
        if self._logits is None:
            raise RankError("logits are wanted of a pass that has none")
        start, spans, each = rows
        return self._logits[start : start + spans * each].view(spans, each, -1)

    @torch.inference_mode()
    def figures(self, rows: Rows, choice: PlainChoice, positions: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The figures of a plain choice from all ranks; on other ranks than 0 nothing. positions: rank 0 has them."""
        logits = self.rows(rows)
        if choice.sampled:
            if positions is None:
                positions = torch.empty((rows.spans, rows.rows), dtype=torch.int64, device=logits.device)
            positions = self.group.spread(positions.contiguous())
        own = best_of_part(logits, self.device_pass.decoder.first_token, self._banned, choice, positions)
        return self.group.gather(own)

    @torch.inference_mode()
    def all_logits(self, rows: Rows) -> list[torch.Tensor]:
        """All parts of the logits of a step group; on other ranks than 0 nothing."""
        return self.group.gather(self.rows(rows))


def follow(share: RankShare, receive: Callable[[], bytes | None]) -> None:
    """Does what rank 0 says until it says no more. receive: its next frame, None at the end."""
    decoder = msgspec.msgpack.Decoder(ToRank)
    while (frame := receive()) is not None:
        match decoder.decode(frame):
            case RunPass() as message:
                share.run(decode_pass(message))
            case PickTokens(rows, choice):
                share.figures(rows, choice)
            case SendLogits(rows):
                share.all_logits(rows)
            case Look():
                share.group.least(0)
            case Leave():
                return


class Followers(Protocol):
    """The other ranks, as rank 0 sees them."""

    def send(self, frame: bytes) -> None:
        """Sends a frame to each of them."""

    def error(self, cause: Exception) -> RankError:
        """The error for a failure of something that all ranks do together."""

    def close(self) -> None:
        """Ends them."""


class RankedRunner(ModelRunner):
    """Runs plans on all ranks. What fails while ranks act together is a RankError: they are no longer in step."""

    def __init__(self, share: RankShare, followers: Followers) -> None:
        super().__init__(share.device_pass)
        self._share = share
        self._followers = followers
        self._encoder = msgspec.msgpack.Encoder()
        self._looked_at = 0.0
        self.sent_bytes = 0
        """Bytes of the messages to each of the other ranks."""

    def forward(self, plan: BatchPlan) -> list[Logits | None]:
        """See ModelRunner. The logits of a group are in parts on the ranks."""
        packed = self.packer.pack(plan)
        local = self.together(encode_pass(packed), lambda: self._share.run(packed))
        groups: list[Logits | None] = []
        start = 0
        for group, rows in zip(plan.groups, split_logits(plan, local), strict=True):
            if rows is None:
                groups.append(None)
            else:
                place = Rows(start, len(group.spans), group.num_logits)
                groups.append(RankedLogits(self, self._share, place, rows))
                start += place.spans * place.rows
        return groups

    def idle(self) -> None:
        """See ModelRunner. Looks at the other ranks now and then: one that hangs or is gone would be found too late."""
        if time.monotonic() - self._looked_at >= IDLE_SECONDS:
            self.together(Look(), lambda: self._share.group.least(0))
            self._looked_at = time.monotonic()

    def close(self) -> None:
        """See ModelRunner. Ends the other ranks."""
        self._followers.close()

    def together(self, message: ToRank, act: Callable[[], _T]) -> _T:
        """Sends a message and does this rank's part of it. Raises RankError."""
        frame = self._encoder.encode(message)
        self.sent_bytes += len(frame)
        try:
            self._followers.send(frame)
            return act()
        except RankError:
            raise
        except Exception as error:
            raise self._followers.error(error) from error


class RankedLogits(DividedLogits):
    """The logits of a step group of the latest pass."""

    def __init__(self, runner: RankedRunner, share: RankShare, rows: Rows, local: torch.Tensor) -> None:
        self.device = local.device
        self._runner, self._share, self._rows = runner, share, rows
        self._dtype = widened(local[:0]).dtype
        self._whole: torch.Tensor | None = None

    def whole(self) -> torch.Tensor:
        """See DividedLogits."""
        if self._whole is None:
            rows, share = self._rows, self._share
            self._whole = torch.cat(self._runner.together(SendLogits(rows), lambda: share.all_logits(rows)), dim=-1)
        return self._whole

    def pick(self, choice: PlainChoice, positions: torch.Tensor | None) -> Picked:
        """See DividedLogits."""
        rows, share = self._rows, self._share
        parts = self._runner.together(PickTokens(rows, choice), lambda: share.figures(rows, choice, positions))
        return combine(parts, self._dtype)
