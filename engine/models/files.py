"""Reading a model directory's JSON, with one clear line for whatever is wrong. No torch: the API process uses it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engine.builtin
from engine.errors import ModelLoadError


def model_directory(model: str) -> Path:
    """The directory `EngineConfig.model` names: a path, or `builtin`. Raises ModelLoadError where there is none."""
    if model == "builtin":
        return Path(engine.builtin.__file__).parent
    directory = Path(model).expanduser()
    if not directory.is_dir():
        raise ModelLoadError(f"There is no model directory {directory} (give a directory, or `builtin`).")
    return directory


@dataclass(frozen=True)
class ConfigFile:
    """One JSON object on disk, with typed reads. Every read raises ModelLoadError naming the file, key and value."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, *, optional: bool = False) -> ConfigFile:
        """`optional`: a missing file reads as an empty object. A damaged one is an error all the same."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if optional:
                return cls(path, {})
            raise ModelLoadError(f"There is no {path.name} in {path.parent}.") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ModelLoadError(f"{path} cannot be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise ModelLoadError(f"{path} must hold a JSON object, not {type(values).__name__}.")
        return cls(path, values)

    def error(self, key: str, expected: str) -> ModelLoadError:
        """The error for a value of `key` that is not what was `expected`."""
        if self.values.get(key) is None:
            return ModelLoadError(f"{self.path}: {key} is missing; it must be {expected}.")
        return ModelLoadError(f"{self.path}: {key} must be {expected}, not {self.values[key]!r}.")

    def integer(self, key: str, *, minimum: int = 1, default: int | None = None) -> int:
        """An integer of at least `minimum`; a missing or null one reads as `default` where there is one."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or value < minimum:
            raise self.error(key, f"an integer of at least {minimum}")
        return value

    def number(self, key: str) -> float:
        """A positive number."""
        value = self.values.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.error(key, "a positive number")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        """An id, a list of ids, or nothing: as a tuple."""
        value = self.values.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(type(token) is not int or token < 0 for token in ids):
            raise self.error(key, "a token id or a list of token ids")
        return tuple(ids)

    def token_id(self, key: str) -> int | None:
        """One id, or None where the key is missing or null."""
        ids = self.token_ids(key)
        if len(ids) > 1:
            raise self.error(key, "one token id")
        return ids[0] if ids else None

    def section(self, key: str) -> ConfigFile | None:
        """A nested object, or None where the key is missing or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return ConfigFile(self.path / key, value)
