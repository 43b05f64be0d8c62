"""Fills the decoder's weights from safetensors files, or with random numbers.

A file is memory-mapped and loaded tensor by tensor, straight into the decoder's own (fused, possibly converted)
storage: peak memory is the model plus one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.errors import ModelLoadError
from engine.models.files import ConfigFile, is_present
from engine.models.linear import Target

Targets = Mapping[str, Target]
"""The tensors to fill, by the decoder's names."""

FLOATING = ("F64", "F32", "F16", "BF16")
"""Stored types that convert to any other without a scale: quantised weights would load as noise."""

SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers that show the bits of an element, by its bytes."""

PIECE = 4096
"""Rows that are compared at a time."""


def find_weight_files(directory: Path, stem: str = "model") -> dict[str, Path]:
    """Checkpoint tensor name -> file, from `{stem}.safetensors.index.json` or the single `{stem}.safetensors`.

    Raises ModelLoadError for a missing or damaged file and for a broken link, naming it.
    """
    index_path = directory / f"{stem}.safetensors.index.json"
    single = directory / f"{stem}.safetensors"
    if not is_present(index_path):
        if not is_present(single):
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
    absent = [path.name for path in shards if not is_present(path)]
    if absent:
        raise ModelLoadError(f"{index_path} names {listing(absent)}, missing from {directory}.")
    for path in shards:
        expected = {name for name, file in files.items() if file == path}
        stored = set(_stored_names(path))
        if expected != stored:
            raise ModelLoadError(f"{index_path} and {path.name} disagree about {listing(sorted(expected ^ stored))}.")
    return files


def fill_from_files(
    targets: Targets,
    files: Mapping[str, Path],
    wanted_by: Callable[[str], tuple[str, ...]],
    publish: Callable[[str], str],
) -> None:
    """Loads every tensor of `files` into its targets, converting its dtype on the way.

    wanted_by: checkpoint's name -> the decoder's names of all it holds, by rows; publish: the decoder's name -> the
    published one, for messages. Raises ModelLoadError for missing, unexpected, doubled, misshapen and non-floating
    tensors.
    """
    by_file: dict[Path, list[tuple[str, list[Target]]]] = {}
    for name, wanted in _match(targets, files, wanted_by, publish).items():
        by_file.setdefault(files[name], []).append((name, [targets[target] for target in wanted]))
    for path, tensors in by_file.items():
        with _open(path) as file:
            for name, filled in tensors:
                _load(file, path, name, filled)


def holds_the_same(path: Path, name: str, target: Target) -> bool:
    """Whether loading a checkpoint's tensor into a filled target would leave every bit of it as it is.

    Compares a few rows at a time: the tensor may be one of the largest. Raises ModelLoadError for a misshapen or
    non-floating one.
    """
    loaded = target.values()
    bits = SAME_SIZE[loaded.element_size()]
    with _open(path) as file:
        part = _slice(file, path, name, target.shape)
        if loaded.is_meta:  # only shapes are looked at
            return True
        for start in range(0, len(loaded), PIECE):
            rows = loaded[start : start + PIECE]
            converted = torch.empty_like(rows).copy_(part[start : start + len(rows)])
            if not torch.equal(converted.view(bits), rows.view(bits)):
                return False
    return True


def _match(
    targets: Targets,
    files: Mapping[str, Path],
    wanted_by: Callable[[str], tuple[str, ...]],
    publish: Callable[[str], str],
) -> dict[str, tuple[str, ...]]:
    """The targets of every checkpoint's tensor. Raises ModelLoadError unless they are all there, once each."""
    matched: dict[str, tuple[str, ...]] = {}
    sources: dict[str, str] = {}
    unexpected: list[str] = []
    for name in files:
        wanted = wanted_by(name)
        if not all(target in targets for target in wanted):
            unexpected.append(name)
            continue
        for target in wanted:
            if target in sources:
                raise ModelLoadError(f"Tensors {sources[target]} and {name} are both {publish(target)}.")
            sources[target] = name
        matched[name] = wanted
    missing = list(dict.fromkeys(publish(target) for target in targets if target not in sources))
    if missing or unexpected:
        parts = [f"{len(missing)} missing: {listing(missing)}"] if missing else []
        parts += [f"{len(unexpected)} unexpected: {listing(unexpected)}"] if unexpected else []
        place = next(iter(files.values())).parent if files else "The checkpoint"
        raise ModelLoadError(f"{place} does not fit the model: tensors {'; '.join(parts)}.")
    return matched


def fill_with_random(targets: Targets, device: torch.device, seed: int = 0) -> None:
    """Seeded weights, generated on the device, scaled so that activations stay near 1 at any size."""
    generator = torch.Generator(device).manual_seed(seed)
    for name, target in targets.items():
        if len(target.shape) == 1:
            target.fill(0.0 if name.endswith(".bias") else 1.0)
        else:
            target.fill_normal(1.0 if name.startswith("embed_tokens") else target.shape[1] ** -0.5, generator)


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


def _load(file: Any, path: Path, name: str, targets: list[Target]) -> None:
    """Loads one tensor of an open file: its rows go to the targets, in order."""
    rows = [target.shape[0] for target in targets]
    _slice(file, path, name, (sum(rows), *targets[0].shape[1:]))
    for target, tensor in zip(targets, file.get_tensor(name).split_with_sizes(rows), strict=True):
        target.load(tensor)


def _slice(file: Any, path: Path, name: str, expected: tuple[int, ...]) -> Any:
    """One tensor of an open file, not read yet. Raises ModelLoadError unless it has the shape and a floating type."""
    part = file.get_slice(name)
    shape, stored = tuple(part.get_shape()), part.get_dtype()
    if shape != expected:
        raise ModelLoadError(f"{path}: {name} has shape {shape}; config.json makes it {expected}.")
    if stored not in FLOATING:
        raise ModelLoadError(f"{path}: {name} is stored as {stored}; supported are {', '.join(FLOATING)}.")
    return part


def _no_weights(directory: Path, wanted: str) -> str:
    others = sorted(path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf"))
    hint = f" It has {listing(others)}, but only safetensors files are read." if others else ""
    return f"There is neither {wanted} nor {wanted}.index.json in {directory}.{hint}"
