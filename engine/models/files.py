"""Reading a model directory's JSON, with one clear line for whatever is wrong. No torch: the API process uses it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
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
    if not is_present(directory) or not directory.is_dir():
        raise ModelLoadError(f"There is no model directory {directory} (give a directory, or `builtin`).")
    return directory


def is_present(path: Path) -> bool:
    """Whether there is a file or a directory at `path`.

    Raises ModelLoadError for one that cannot be reached, and where `path` or a directory above it is a broken link:
    caches of models are made of links, and a file that got lost behind its link was not left out on purpose.
    """
    try:
        path.stat()
    except ValueError:  # no path at all, such as one with a zero byte
        return False
    except OSError as error:
        for place in (path, *path.parents):
            if os.path.islink(place) and not os.path.exists(place):
                raise ModelLoadError(_broken_link(place, error)) from None
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from None
        return False
    return True


def _broken_link(link: Path, error: OSError) -> str:
    # The text of the link is what `ls` shows; the place tells which file to bring, however many links lead there.
    return (
        f"{link} is a broken link: it points to {os.readlink(link)}, and {os.path.realpath(link)} cannot be reached "
        f"({error.strerror}). Fetch the model again, or copy it together with the files that its links point to."
    )


def added_token_id(directory: Path, texts: Iterable[str]) -> int | None:
    """The id of the first of these texts that is a token of its own in a directory's tokenizer.json.

    None where there is no such file, or none of the texts is in it. Raises ModelLoadError for a damaged file.
    """
    tokens = ConfigFile.read(directory / "tokenizer.json", optional=True).values.get("added_tokens")
    ids = {}
    for token in tokens if isinstance(tokens, list) else ():
        if isinstance(token, dict) and type(token.get("id")) is int:
            ids[token.get("content")] = token["id"]
    return next((ids[text] for text in texts if text in ids), None)


@dataclass(frozen=True)
class ConfigFile:
    """One JSON object on disk, with typed reads. Every read raises ModelLoadError naming the file, key and value."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, *, optional: bool = False) -> ConfigFile:
        """`optional`: a missing file reads as an empty object. A damaged one, or a broken link, is an error all the
        same."""
        if not is_present(path):
            if optional:
                return cls(path, {})
            raise ModelLoadError(f"There is no {path.name} in {path.parent}.")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
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

    def flag(self, key: str, *, default: bool | None = None) -> bool:
        """true or false; a missing or null one reads as `default` where there is one."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """An id, a list of ids, or nothing: as a tuple. All are below `vocab_size`."""
        value = self.values.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(type(token) is not int or token < 0 for token in ids):
            raise self.error(key, "a token id or a list of token ids")
        for token in ids:
            if token >= vocab_size:
                raise ModelLoadError(f"{self.path}: {key} {token} is outside the vocabulary of {vocab_size}.")
        return tuple(ids)

    def token_id(self, key: str, vocab_size: int) -> int | None:
        """One id below `vocab_size`, or None where the key is missing or null."""
        ids = self.token_ids(key, vocab_size)
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
