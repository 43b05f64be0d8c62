"""Overrides: what an operator says of a checkpoint whose files do not say it; and how the two are read together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelLoadError
from engine.models.files import ConfigFile, added_token_id


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Facts of a model by the server's options. They go before those of the model's files; None: as the files say."""

    family: str | None = None
    """A key of FAMILIES, whatever architecture config.json names."""
    block_length: int | None = None
    mask_token_id: int | None = None
    draft_adapter: Path | None = None
    """Folder of the adapter that the model drafts with; None: the checkpoint's own, if it has one."""


NO_OVERRIDES = Overrides()


def read_mask_token(
    config: ConfigFile, vocab_size: int, overrides: Overrides, texts: Iterable[str] = (), key: str = "mask_token_id"
) -> int:
    """The mask's id: the operator's, config.json's, or that of the tokenizer's token of one of these texts.

    Raises ModelLoadError where it is nowhere, naming the option that gives it.
    """
    if overrides.mask_token_id is not None:
        if not 0 <= overrides.mask_token_id < vocab_size:
            raise ModelLoadError(
                f"mask_token_id {overrides.mask_token_id} is outside the vocabulary of {vocab_size} ({config.path})."
            )
        return overrides.mask_token_id
    mask = config.token_id(key, vocab_size)
    if mask is None:
        mask = added_token_id(config.path.parent, texts)
    if mask is None:
        raise config.error(key, f"a token id{_or_option('--mask-token-id', texts)}")
    if mask >= vocab_size:
        raise ModelLoadError(f"{config.path}: the tokenizer's mask, {mask}, is outside the vocabulary of {vocab_size}.")
    return mask


def _or_option(option: str, texts: Iterable[str]) -> str:
    names = " or ".join(texts)
    return f", or the tokenizer must have {names}, or give {option}" if names else f"; {option} gives it"


def read_block_length(
    config: ConfigFile, overrides: Overrides, keys: Iterable[str], *, default: int | None = None, hint: str = ""
) -> int:
    """The model's block length: the operator's, config.json's by the first of `keys` that is there, or the default.

    hint: said where it is nowhere. Raises ModelLoadError, naming the option that gives it.
    """
    if overrides.block_length is not None:
        return overrides.block_length
    first, *others = keys
    for key in (first, *others):
        if config.values.get(key) is not None:
            return config.integer(key, minimum=2)
    if default is not None:
        return default
    raise config.error(first, f"an integer of at least 2; --block-length gives it{hint}")
