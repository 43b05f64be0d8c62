"""Fills the decoder's weights from safetensors files, or with random numbers.

Files are memory-mapped and loaded tensor by tensor, in the decoder's order, straight into its own (fused, possibly
converted or quantized) storage: peak memory is the model as it is stored plus one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.errors import ModelLoadError
from engine.models.divided.linears import AbsentTarget
from engine.models.files import ConfigFile, is_present
from engine.models.linear.base import Target
from engine.models.quantized.matrices import QuantizedMatrix, StoredMatrices

Targets = Mapping[str, Target]
"""The tensors to fill, by the decoder's names."""

FLOATING = ("F64", "F32", "F16", "BF16")
"""Stored types that convert to any other without a scale: quantised weights would load as noise."""

NO_MATRICES = StoredMatrices({}, {})

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
    matrices: StoredMatrices = NO_MATRICES,
    on_loaded: Callable[[str], None] = lambda name: None,
) -> None:
    """Loads every tensor of `files` into its targets, converting its dtype on the way.

    wanted_by: checkpoint's name -> the decoder's names of all it holds, by rows; publish: the decoder's name -> the
    published one, for messages; matrices: the names in `files` that stand for quantized matrices; on_loaded: told
    each name once it has been loaded.
    Raises ModelLoadError for missing, unexpected, doubled, misshapen and non-floating tensors.
    """
    matched = _match(targets, files, wanted_by, publish)
    # In the decoder's order, whatever the files' is: the parts of a matrix come one after the other, and wait for the
    # last one no longer than they must.
    place = {name: index for index, name in enumerate(targets)}
    with ExitStack() as stack:
        opened = {path: stack.enter_context(_open(path)) for path in dict.fromkeys(files[name] for name in matched)}
        for name in sorted(matched, key=lambda name: place[matched[name][0]]):
            path = files[name]
            filled = [targets[target] for target in matched[name]]
            if name in matrices.by_name:
                _load_matrix(opened[path], path, matrices.by_name[name], matrices.files, filled)
            else:
                _load(opened[path], path, name, filled)
            on_loaded(name)


def holds_the_same(path: Path, name: str, target: Target) -> bool:
    """Whether loading a checkpoint's tensor into a filled target would leave every bit of it as it is.

    Compares a few rows at a time: the tensor may be one of the largest. Raises ModelLoadError for a misshapen or
    non-floating one.
    """
    loaded = target.values()
    bits = SAME_SIZE[loaded.element_size()]
    with _open(path) as file:
        part = _slice(file, path, name, target.shape)
        first = target.piece[0].start if target.piece else 0
        if loaded.is_meta:  # only shapes are looked at
            return True
        for start in range(0, len(loaded), PIECE):
            rows = loaded[start : start + PIECE]
            converted = torch.empty_like(rows).copy_(part[first + start : first + start + len(rows)])
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
    """Loads one tensor of an open file: its rows go to the targets, in order. It may be a stack of equal matrices."""
    rows = [target.shape[0] for target in targets]
    expected = (sum(rows), *targets[0].shape[1:])
    stack = tuple(file.get_slice(name).get_shape())
    if len(stack) == len(expected) + 1 and _is_stack(stack[:2], rows):
        expected = (*stack[:2], *expected[1:])
    stored = _slice(file, path, name, expected)
    if any(target.piece for target in targets):
        _load_pieces(stored, expected, targets)
        return
    tensor = file.get_tensor(name)
    for target, part in zip(targets, tensor.flatten(0, -len(targets[0].shape)).split_with_sizes(rows), strict=True):
        target.load(part)


def _load_pieces(stored: Any, shape: tuple[int, ...], targets: list[Target]) -> None:
    """As `_load`, for a rank: of a stored tensor of this shape only the targets' pieces are read."""
    at = 0
    for target in targets:
        length = target.shape[0]
        rows, *cut = target.piece or (slice(0, length),)
        if rows.stop > rows.start:
            place: tuple[slice, ...] = (slice(at + rows.start, at + rows.stop),)
            if len(shape) > len(target.shape):  # the rows of one matrix of a stack
                number, start = divmod(at, shape[1])
                place = (slice(number, number + 1), slice(start + rows.start, start + rows.stop))
            piece = stored[(*place, *cut)]
            target.load_piece(piece.squeeze(0) if len(place) == 2 else piece)
        at += length


def _is_stack(shape: tuple[int, ...], rows: list[int]) -> bool:
    """Whether so many matrices of so many rows are what targets of these rows fill, each from whole targets."""
    count, each = shape
    targets = len(rows) // count if count else 0
    return targets * count == len(rows) and all(
        sum(rows[start : start + targets]) == each for start in range(0, len(rows), targets)
    )


def _load_matrix(
    file: Any, path: Path, matrix: QuantizedMatrix, files: Mapping[str, Path], targets: list[Target]
) -> None:
    """Loads a quantized matrix, as `_load` does a plain one. Its other tensors may lie in other files than `path`."""

    def tensor_of(name: str) -> torch.Tensor:
        if files[name] == path:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor
        with _open(files[name]) as other:
            found: torch.Tensor = other.get_tensor(name)
            return found

    if all(isinstance(target, AbsentTarget) for target in targets):
        return
    rows = [target.shape[0] for target in targets]
    try:
        if len(targets[0].shape) != 2:
            raise ModelLoadError(f"{matrix.module} is no matrix, and cannot be quantized.")
        weight = matrix.read(tensor_of, (sum(rows), targets[0].shape[1]))
    except ModelLoadError as error:
        raise ModelLoadError(f"{path}: {error}") from None
    for target, part in zip(targets, weight.split(rows), strict=True):
        target.load_quantized(part)


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
