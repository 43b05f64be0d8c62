"""Typed reads that the quantization configs share. Every one raises ModelLoadError naming file, key and value."""

from __future__ import annotations

from typing import TypeVar

from engine.models.files import ConfigFile
from engine.models.quantized.scheme import ModuleNames, bad_pattern

Value = TypeVar("Value", bound=str | int)


def choice(config: ConfigFile, key: str, known: tuple[Value, ...], default: Value | None = None) -> Value:
    """One of the values that can be read."""
    value = config.values.get(key)
    if value is None and default is not None:
        return default
    found = next((entry for entry in known if type(value) is type(entry) and value == entry), None)
    if found is not None:
        return found
    raise config.error(key, " or ".join(map(repr, known)))


def names(config: ConfigFile, *keys: str) -> ModuleNames:
    """A list of modules, under the first of the keys that is there; empty without any."""
    for key in keys:
        found = config.values.get(key)
        if found is not None:
            if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
                raise config.error(key, "a list of names of modules")
            broken = bad_pattern(found)
            if broken is not None:
                raise config.error(key, f"names or regular expressions ({broken!r} is none)")
            return ModuleNames(tuple(found))
    return ModuleNames(())


def refuse(config: ConfigFile, *keys: str, reason: str = "it is not supported") -> None:
    """Raises for a key that is set to anything but null, false or an empty object."""
    for key in keys:
        if config.values.get(key):
            raise config.error(key, f"null: {reason}")


def columns(config: ConfigFile, key: str = "group_size", default: int | None = None) -> int | None:
    """A group size in inputs; None for -1, which is how configs say "all of them"."""
    if config.values.get(key) == -1:
        return None
    return config.integer(key, default=default)
