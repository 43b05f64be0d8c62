"""load_model: a directory in a published layout -> a decoder with its weights, and its traits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from engine.errors import ModelLoadError
from engine.models.decoder import Decoder, DecoderConfig, DraftAdapter
from engine.models.families.description import ModelDescription, WeightNames
from engine.models.families.registry import describe_model
from engine.models.files import ConfigFile
from engine.models.spec import ModelSpec
from engine.models.weights import fill_from_files, fill_with_random, find_weight_files

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

CANVAS_MARGIN = 1024
"""Positions beyond the model's longest text that a batch may still name: a canvas may reach past the text's end."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run."""

    decoder: Decoder
    spec: ModelSpec
    config: DecoderConfig


def load_model(
    directory: Path,
    *,
    load_format: Literal["auto", "dummy"] = "auto",
    dtype: torch.dtype | None = None,
    device: torch.device,
    max_positions: int | None = None,
) -> LoadedModel:
    """Loads a checkpoint; no code of its own is ever run.

    load_format: `dummy` fills the shape of config.json with seeded random weights; nothing else need exist.
    dtype: None means the checkpoint's own, but float32 on a CPU, where half types are many times slower.
    max_positions: longest text that will be run, at most and by default what config.json says; sizes the rotary table.
    Raises ModelLoadError, one line naming the file and what is wrong with it.
    """
    if not directory.is_dir():
        raise ModelLoadError(f"There is no model directory {directory}.")
    config_file = ConfigFile.read(directory / "config.json")
    generation = ConfigFile.read(directory / "generation_config.json", optional=True)
    description = describe_model(config_file, generation)
    adapter_directory = _find_adapter(directory, description)
    adapter = None if adapter_directory is None else _read_adapter(adapter_directory)
    config = description.config
    positions = min(max_positions or config.max_positions, config.max_positions) + CANVAS_MARGIN
    dtype = dtype or _own_dtype(config_file, device)
    files = {} if load_format == "dummy" else find_weight_files(directory)
    try:
        decoder = Decoder(config, dtype=dtype, device=device, num_positions=positions, adapter=adapter)
    except RuntimeError as error:  # torch's out-of-memory errors, on a CPU and on a GPU
        raise ModelLoadError(f"No room for the model on {device}: {str(error).splitlines()[0]}") from error
    if load_format == "dummy":
        fill_with_random({**decoder.tensors(), **decoder.adapter_tensors()})
    else:
        names = description.names
        wanted = {name: path for name, path in files.items() if not names.is_ignored(name)}
        fill_from_files(decoder.tensors(), wanted, names.decoder_name, names.published_name)
        if adapter_directory is not None:
            adapter_files = find_weight_files(adapter_directory, "adapter_model")
            rename = partial(_adapter_name, names=names)
            fill_from_files(decoder.adapter_tensors(), adapter_files, rename, names.published_name)
    return LoadedModel(decoder, description.spec, config)


def resolve_device(name: str) -> torch.device:
    """The device `EngineConfig.device` names; `auto` is the GPU where there is one. Raises ModelLoadError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ModelLoadError(f"There is no device {name!r}: give auto, cpu, cuda or cuda:N.")
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise ModelLoadError(f"There is no device {name!r}: torch sees {count} GPUs.")
    # With its index: not everything in torch takes a device without one.
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def _own_dtype(config: ConfigFile, device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    key = "dtype" if config.values.get("dtype") is not None else "torch_dtype"
    name = config.values.get(key)
    if name is None:
        return torch.bfloat16
    if not isinstance(name, str) or name.removeprefix("torch.") not in DTYPES:
        raise config.error(key, f"one of {', '.join(DTYPES)}")
    return DTYPES[name.removeprefix("torch.")]


def _find_adapter(directory: Path, description: ModelDescription) -> Path | None:
    if description.adapter_folder is None:
        return None
    adapter = directory / description.adapter_folder
    return adapter if adapter.is_dir() else None


def _read_adapter(directory: Path) -> DraftAdapter:
    """adapter_config.json in PEFT's layout. What would change the adapter's arithmetic is refused, not ignored."""
    config = ConfigFile.read(directory / "adapter_config.json")
    for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern"):
        if config.values.get(key):
            raise config.error(key, "unset: it is not supported")
    if config.values.get("bias", "none") != "none":
        raise config.error("bias", "'none'")
    return DraftAdapter(rank=config.integer("r"), alpha=config.number("lora_alpha"))


def _adapter_name(name: str, names: WeightNames) -> str:
    """The decoder's name for an adapter's tensor: PEFT's wrapper and adapter name off, then the prefix."""
    name = re.sub(r"\.lora_([AB])\.\w+\.weight$", r".lora_\1.weight", name)
    return names.decoder_name(name.removeprefix("base_model.model."))
