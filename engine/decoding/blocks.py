"""Blocks of diffusion and drafting: how one is opened, and the span that refines it."""

from __future__ import annotations

from engine.batch import KVLimits, Phase, Span
from engine.models.spec import BlockStart
from engine.sequence import Block, Sequence


def open_block(seq: Sequence, length: int, start: BlockStart) -> Block:
    """Opens the sequence's next block, all masks but for an anchor, if blocks start with one.

    length: of the block, an anchor included. It is the caller's to keep within what `max_tokens` leaves.
    """
    if start == "mask":
        seq.block = Block.fresh(len(seq.token_ids), length, seq.stats.blocks)
    else:
        seq.block = Block.fresh(len(seq.token_ids) - 1, length, seq.stats.blocks, seq.token_ids[-1])
    return seq.block


def open_tail_block(seq: Sequence, start: int, end: int, index: int) -> Block:
    """A block over [start, end): first the settled tokens that reach into it, which are never masked, then masks."""
    block = Block.fresh(start, end - start, index)
    block.begin_with(seq.token_ids[start:])
    return block


def open_next_block(seq: Sequence, block: Block, length: int) -> Block:
    """Opens the block after `block` beside it, in a shared pass: its anchor is not known yet."""
    seq.next_block = Block.fresh(block.end, length, block.index + 1, awaits_anchor=True)
    return seq.next_block


def shown_ids(block: Block, mask_token_id: int) -> list[int]:
    """The block as a model reads it: masked positions carry the mask id."""
    return [mask_token_id if masked else token for token, masked in zip(block.token_ids, block.masked, strict=True)]


def block_span(seq: Sequence, block: Block, phase: Phase, mask_token_id: int) -> Span:
    """A bidirectional span over a block: every token sees all of it."""
    ids = shown_ids(block, mask_token_id)
    return Span(seq, phase, block.start, ids, KVLimits.up_to(block.end), num_logits=len(ids))


def refined_block(span: Span) -> Block | None:
    """The block that a bidirectional span refines: the open one, or the one that a shared pass refines beside it.

    None where a shared pass's verification has just rejected it.
    """
    for block in (span.seq.block, span.seq.next_block):
        if block is not None and span.start <= block.start < span.end:
            return block
    return None
