"""load_model: reads a directory in a published layout into a decoder with its weights, and its traits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from engine.errors import ModelLoadError
from engine.models.adapter import MODULES, DraftAdapter
from engine.models.decoder import Decoder
from engine.models.decoder_config import DecoderConfig
from engine.models.divided.share import share_of
from engine.models.families.description import ModelDescription
from engine.models.families.overrides import NO_OVERRIDES, Overrides
from engine.models.families.registry import describe_model
from engine.models.files import ConfigFile, is_present
from engine.models.linear.choice import choose_float_storage, has_native_bfloat16
from engine.models.linear.storages import BY_WHOLE_ROWS, FLOAT_STORAGES, Storage, check_quantization
from engine.models.load_progress import ReportWeights, WeightProgress
from engine.models.quantized.kept import NOTHING_KEPT, KeptSchemes, kept_schemes, storage_that_keeps
from engine.models.quantized.matrices import StoredMatrices, find_matrices
from engine.models.quantized.registry import describe_quantization
from engine.models.refining.decoder import CanvasDecoder
from engine.models.spec import ModelSpec
from engine.models.weights import fill_from_files, fill_with_random, find_weight_files, holds_the_same
from engine.ranks.group import ALONE, RankGroup

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The types of weights, activations and KV, by the names that options and config.json give them."""

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
"""The decoder's names of the two tensors that may be one."""

BLOCK_MARGIN = 1024
"""Positions beyond the model's longest text that a batch may still name: a block may reach past the text's end."""


ADAPTER_LIMITS = (
    "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform", "modules_to_save", "lora_bias",
    "fan_in_fan_out", "layer_replication", "exclude_modules",
)  # fmt: skip
"""Keys of adapter_config.json that would change an adapter's arithmetic, or what it is applied to."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run."""

    decoder: Decoder
    spec: ModelSpec
    config: DecoderConfig
    published: str = ""
    """What a quantized checkpoint brings and how it is stored, in words; empty for plain weights."""


def load_model(
    directory: Path,
    *,
    load_format: Literal["auto", "dummy"] = "auto",
    dtype: torch.dtype | None = None,
    device: torch.device,
    runs_on: torch.device | None = None,
    max_positions: int | None = None,
    overrides: Overrides = NO_OVERRIDES,
    quantization: str = "auto",
    draft_quantization: str = "none",
    report: ReportWeights = lambda *progress: None,
    group: RankGroup = ALONE,
) -> LoadedModel:
    """Loads a checkpoint; no code of its own is ever run.

    load_format: `dummy` fills the shape of config.json with seeded random weights; nothing else need exist.
    dtype: None means the checkpoint's own on a GPU; on a CPU bfloat16 if that is the checkpoint's and the processor
    multiplies it natively, else float32: other half types are slow there. runs_on: that device, if it is another.
    quantization: how matrices are stored, a key of LINEARS; `none`: in dtype; `auto`: as a quantized checkpoint stores
    them, where a storage can hold that, else in dtype.
    draft_quantization: the same of a further copy of the layers' matrices, for passes that only draft; `none`: no copy.
    max_positions: longest text that will be run, at most and by default what config.json says; sizes the rotary table.
    overrides: what the operator says of the model; it goes before what its files say.
    report: told how far the weights are.
    group: the ranks that share the model: this one's share is loaded, and nothing else of the files is read.
    Raises ModelLoadError, one line naming the file and what is wrong with it.
    """
    config_file, generation = _read_configs(directory)
    description = describe_model(config_file, generation, overrides)
    adapter_directory = overrides.draft_adapter or _find_adapter(directory, description)
    adapter = None if adapter_directory is None else _read_adapter(adapter_directory, description)
    config, published = description.config, describe_quantization(config_file)
    positions = min(max_positions or config.max_positions, config.max_positions) + BLOCK_MARGIN
    dtype = dtype or _own_dtype(config_file, runs_on or device)
    files = {} if load_format == "dummy" else find_weight_files(directory)
    matrices = find_matrices(published, files) if published is not None and files else StoredMatrices({}, files)
    kept = kept_schemes(matrices, description.names.decoder_names, published)
    storage = choose_storage(config, dtype, device, quantization, draft_quantization, kept, group)
    with _told(device):
        decoder = (Decoder if config.canvas is None else CanvasDecoder)(
            config, dtype=dtype, device=device, num_positions=positions, adapter=adapter, storage=storage, group=group
        )
    if load_format == "dummy":
        fill_with_random({**decoder.targets(), **decoder.adapter_targets()}, device)
    else:
        _fill_decoder(decoder, matrices, description, report)
        _fill_adapter(decoder, adapter_directory, description)
    return LoadedModel(decoder, description.spec, config, _in_words(matrices, dtype, storage))


def _read_configs(directory: Path) -> tuple[ConfigFile, ConfigFile]:
    """config.json and generation_config.json, which may be missing."""
    if not is_present(directory) or not directory.is_dir():
        raise ModelLoadError(f"There is no model directory {directory}.")
    return (
        ConfigFile.read(directory / "config.json"),
        ConfigFile.read(directory / "generation_config.json", optional=True),
    )


@contextmanager
def _told(device: torch.device) -> Iterator[None]:
    """Turns what may go wrong while a decoder is allocated into ModelLoadError."""
    try:
        yield
    except ValueError as error:  # a shape that a storage does not take
        raise ModelLoadError(f"A quantization does not fit this model: {error}.") from error
    except RuntimeError as error:  # torch's out-of-memory errors, on a CPU and on a GPU
        raise ModelLoadError(f"No room for the model on {device}: {str(error).splitlines()[0]}") from error


def _in_words(matrices: StoredMatrices, dtype: torch.dtype, storage: Storage) -> str:
    """What a checkpoint brings quantized and how it is stored; empty where nothing is."""
    if not matrices.by_name:
        return ""
    if storage.layers in FLOAT_STORAGES:
        return f"{matrices} are expanded to {str(dtype).removeprefix('torch.')}"
    return f"{matrices} are stored as {storage.layers}"


def _fill_decoder(
    decoder: Decoder, matrices: StoredMatrices, description: ModelDescription, report: ReportWeights
) -> None:
    """Loads the model's own weights. Where the head is the embedding, a checkpoint may store either, or both alike."""
    names, targets = description.names, decoder.targets()
    wanted = {name: path for name, path in matrices.places().items() if not names.is_ignored(name)}
    heads: dict[str, Path] = {}
    if description.config.tied_head:
        heads = {name: path for name, path in wanted.items() if names.decoder_names(name) == (HEAD,)}
    own = {name: path for name, path in wanted.items() if name not in heads}
    stand_in = None
    if heads and not any(EMBEDDING in names.decoder_names(name) for name in own):
        # Writers that store a shared tensor once keep the name that sorts first: often the head's.
        stand_in = next(iter(heads))
        own[stand_in] = heads.pop(stand_in)

    def wanted_by(name: str) -> tuple[str, ...]:
        return (EMBEDDING,) if name == stand_in else names.decoder_names(name)

    progress = WeightProgress(matrices, report)
    fill_from_files(targets, own, wanted_by, names.published_name, matrices, progress.loaded)
    progress.finish()
    for name, path in heads.items():
        if name in matrices.by_name or not holds_the_same(path, name, targets[EMBEDDING]):
            raise ModelLoadError(
                f"{path}: {name} differs from the embedding, but config.json says that the two are one: set "
                f"{description.keys.tied_head} to false there if this is the model's own head, or remove the tensor."
            )


def _fill_adapter(decoder: Decoder, directory: Path | None, description: ModelDescription) -> None:
    """Loads the weights of the model's draft adapter, if there is one."""
    if directory is None:
        return
    names, files = description.names, find_weight_files(directory, "adapter_model")
    fill_from_files(decoder.adapter_targets(), files, names.adapter_names, names.published_name)


def choose_storage(
    config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    quantization: str,
    draft_quantization: str = "none",
    kept: KeptSchemes = NOTHING_KEPT,
    group: RankGroup = ALONE,
) -> Storage:
    """How the matrices of a model are stored. Raises ModelLoadError for what cannot run on the device.

    kept: how a quantized checkpoint stores them. group: the ranks that share the model.
    """
    if config.canvas is not None and draft_quantization != "none":
        raise ModelLoadError(f"draft_quantization {draft_quantization}: this model has no passes that only draft.")
    config = share_of(config, group)
    if config.experts is not None and device.type == "cuda":
        _check_experts_on_gpu(dtype, device, quantization, draft_quantization)
        return Storage()
    for name in (quantization, draft_quantization):
        if name not in ("auto", "none"):
            check_quantization(name, device, divided=group.size > 1)
    draft = None if draft_quantization == "none" else draft_quantization
    if quantization not in ("auto", "none"):
        return Storage.quantized(quantization, draft)
    shapes = config.layer_shapes
    layers = head = None
    if quantization == "auto":
        layers = storage_that_keeps(kept.layers, shapes, device)
        head = storage_that_keeps(kept.head, [(config.vocab_size, config.hidden_size)], device)
    if group.size > 1:
        # Each rank would measure for itself, and might choose another storage.
        layers, head = (None if name in BY_WHOLE_ROWS else name for name in (layers, head))
        return Storage(layers or "dense", head or "dense", draft)
    best = "" if layers and head else choose_float_storage(shapes, config.num_layers, dtype, device)
    return Storage(layers or best, head or best, draft)


def _check_experts_on_gpu(dtype: torch.dtype, device: torch.device, quantization: str, draft_quantization: str) -> None:
    """Raises ModelLoadError where expert layers cannot be multiplied on a GPU: the grouped product takes bfloat16."""
    for option, name in (("quantization", quantization), ("draft_quantization", draft_quantization)):
        if name not in ("auto", "none", *FLOAT_STORAGES):
            raise ModelLoadError(f"{option} {name}: expert layers are not quantized on a GPU; choose none.")
    if dtype != torch.bfloat16:
        raise ModelLoadError("Expert layers run in bfloat16 on a GPU: choose --dtype bfloat16.")
    if torch.cuda.get_device_capability(device) < (9, 0):
        raise ModelLoadError("Expert layers need a GPU of compute capability 9.0 or more.")


def _own_dtype(config: ConfigFile, device: torch.device) -> torch.dtype:
    key = "dtype" if config.values.get("dtype") is not None else "torch_dtype"
    name = config.values.get(key)
    if device.type == "cpu":
        stored = isinstance(name, str) and name.removeprefix("torch.") == "bfloat16"
        return torch.bfloat16 if stored and has_native_bfloat16() else torch.float32
    if name is None:
        return torch.bfloat16
    if not isinstance(name, str) or name.removeprefix("torch.") not in DTYPES:
        raise config.error(key, f"one of {', '.join(DTYPES)}")
    return DTYPES[name.removeprefix("torch.")]


def _find_adapter(directory: Path, description: ModelDescription) -> Path | None:
    if description.adapter_folder is None:
        return None
    adapter = directory / description.adapter_folder
    return adapter if is_present(adapter) and adapter.is_dir() else None


def _read_adapter(directory: Path, description: ModelDescription) -> DraftAdapter:
    """The shape of the adapter in a folder, from adapter_config.json in PEFT's layout.

    Raises ModelLoadError for what would change its arithmetic, and where the model never drafts.
    """
    family = description.spec.family
    if "speculative" not in description.spec.decodings:
        raise ModelLoadError(f"{directory}: the model family {family} does not speculate: it drafts with no adapter.")
    config = ConfigFile.read(directory / "adapter_config.json")
    for key in ADAPTER_LIMITS:
        if config.values.get(key):
            raise config.error(key, "unset: it is not supported")
    if config.values.get("bias", "none") != "none":
        raise config.error("bias", "'none'")
    modules = config.values.get("target_modules", ["o_proj"])
    if not isinstance(modules, list) or not modules or not set(modules) <= set(MODULES):
        raise config.error("target_modules", f"a list of some of {', '.join(MODULES)}")
    if description.config.experts is not None and set(modules) & {"gate_proj", "up_proj", "down_proj"}:
        raise config.error("target_modules", "without the matrices of an MLP, which here are those of experts")
    ordered = tuple(module for module in MODULES if module in modules)
    return DraftAdapter(rank=config.integer("r"), alpha=config.number("lora_alpha"), modules=ordered)
