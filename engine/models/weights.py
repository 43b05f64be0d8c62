"""Filling tensors from safetensors files, or with random numbers.

A file is memory-mapped and copied tensor by tensor, straight into the decoder's own (fused, possibly converted)
storage: peak memory is the model plus one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.errors import ModelLoadError
from engine.models.files import ConfigFile

Targets = Mapping[str, torch.Tensor]
"""Decoder's names to the tensors to fill."""

FLOATING = ("F64", "F32", "F16", "BF16")
"""Stored types that convert to any other without a scale: quantised weights would load as noise."""


def find_weight_files(directory: Path, stem: str = "model") -> dict[str, Path]:
    """Checkpoint tensor name -> file, from `{stem}.safetensors.index.json` or the single `{stem}.safetensors`.

    Raises ModelLoadError for a missing or damaged file, naming it.
    """
    index_path = directory / f"{stem}.safetensors.index.json"
    single = directory / f"{stem}.safetensors"
    if not index_path.exists():
        if not single.exists():
            raise ModelLoadError(_no_weights(directory, single.name))
        return dict.fromkeys(_stored_names(single), single)
    index = ConfigFile.read(index_path)
    weight_map = index.section("weight_map")
    if weight_map is None:
        raise index.error("weight_map", "an object from tensor names to files")
    files: dict[str, Path] = {}
    for name, filename in weight_map.values.items():
        # A name with a directory in it would read files outside the checkpoint.
        if not isinstance(filename, str) or Path(filename).name != filename:
            raise weight_map.error(name, "the name of a file in the same directory")
        files[name] = directory / filename
    shards = sorted(set(files.values()))
    absent = [path.name for path in shards if not path.exists()]
    if absent:
        raise ModelLoadError(f"{index_path} names {listing(absent)}, missing from {directory}.")
    for path in shards:
        expected = {name for name, file in files.items() if file == path}
        stored = set(_stored_names(path))
        if expected != stored:
            raise ModelLoadError(f"{index_path} and {path.name} disagree about {listing(sorted(expected ^ stored))}.")
    return files


def fill_from_files(
    targets: Targets, files: Mapping[str, Path], rename: Callable[[str], str], publish: Callable[[str], str]
) -> None:
    """Copies every tensor of `files` to its target, converting its dtype on the way.

    rename: checkpoint name -> decoder's name; publish: decoder's name -> the published one, for messages.
    Raises ModelLoadError for missing, unexpected, doubled, misshapen and non-floating tensors.
    """
    sources: dict[str, str] = {}
    unexpected: list[str] = []
    for name in files:
        target = rename(name)
        if target not in targets:
            unexpected.append(name)
        elif target in sources:
            raise ModelLoadError(f"Tensors {sources[target]} and {name} are both {publish(target)}.")
        else:
            sources[target] = name
    missing = [publish(target) for target in targets if target not in sources]
    if missing or unexpected:
        parts = [f"{len(missing)} missing: {listing(missing)}"] if missing else []
        parts += [f"{len(unexpected)} unexpected: {listing(unexpected)}"] if unexpected else []
        place = next(iter(files.values())).parent if files else "The checkpoint"
        raise ModelLoadError(f"{place} does not fit the model: tensors {'; '.join(parts)}.")
    by_file: dict[Path, list[tuple[str, torch.Tensor]]] = {}
    for target, name in sources.items():
        by_file.setdefault(files[name], []).append((name, targets[target]))
    for path, wanted in by_file.items():
        with _open(path) as file:
            for name, tensor in wanted:
                _copy(file, path, name, tensor)


def fill_with_random(targets: Targets, seed: int = 0) -> None:
    """Seeded weights, generated where they lie, scaled so that activations stay near 1 at any size."""
    if not targets:
        return
    generator = torch.Generator(next(iter(targets.values())).device).manual_seed(seed)
    for name, tensor in targets.items():
        if name.endswith(".bias"):
            tensor.zero_()
        elif tensor.dim() == 1:
            tensor.fill_(1.0)
        else:
            deviation = 1.0 if name.startswith("embed_tokens") else tensor.shape[1] ** -0.5
            tensor.normal_(0.0, deviation, generator=generator)


def listing(names: Collection[str], limit: int = 6) -> str:
    """A list for one line of a message: the first names, and how many more there are."""
    shown = ", ".join(list(names)[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _open(path: Path) -> Any:  # safetensors' handle has no public type
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path} is damaged or no safetensors file: {error}") from error


def _stored_names(path: Path) -> Iterable[str]:
    with _open(path) as file:
        return list(file.keys())


def _copy(file: Any, path: Path, name: str, target: torch.Tensor) -> None:
    part = file.get_slice(name)
    shape, stored = tuple(part.get_shape()), part.get_dtype()
    if shape != tuple(target.shape):
        raise ModelLoadError(f"{path}: {name} has shape {shape}; config.json makes it {tuple(target.shape)}.")
    if stored not in FLOATING:
        raise ModelLoadError(f"{path}: {name} is stored as {stored}; supported are {', '.join(FLOATING)}.")
    target.copy_(file.get_tensor(name))


def _no_weights(directory: Path, wanted: str) -> str:
    others = sorted(path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf"))
    hint = f" It has {listing(others)}, but only safetensors files are read." if others else ""
    return f"There is neither {wanted} nor {wanted}.index.json in {directory}.{hint}"
