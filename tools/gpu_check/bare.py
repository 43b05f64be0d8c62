"""Substitutes for packages that the check does not need, so that it runs where only torch and its dependencies are
installed: on a GPU machine without a network.

The engine's messages are msgspec structs, of which a check that stays in one process needs no more than a dataclass
gives; grammars and sockets are not checked. Nothing else may import this module.
"""

from __future__ import annotations

import json
import sys
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock


class _StructType(type):
    """Makes a dataclass of every class derived from Struct. What concerns the wire alone is ignored."""

    def __new__(
        cls, name: str, bases: tuple[type, ...], body: dict[str, Any],
        frozen: bool = False, kw_only: bool = False, **_wire: object,
    ) -> Any:  # fmt: skip
        for key, value in body.items():
            if isinstance(value, list | dict | set) and key in body.get("__annotations__", ()):
                body[key] = field(default_factory=partial(copy, value))
        made = super().__new__(cls, name, bases, body)
        return dataclass(frozen=frozen, kw_only=kw_only)(made) if bases else made

    def __init__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any], **_options: object) -> None:
        super().__init__(name, bases, body)


class _Struct(metaclass=_StructType):
    pass


def _decode(text: str | bytes, type: type) -> Any:
    return type(**json.loads(text))


def _msgspec() -> ModuleType:
    made = ModuleType("msgspec")
    made.Struct, made.MsgspecError = _Struct, ValueError  # type: ignore[attr-defined]
    made.json = ModuleType("msgspec.json")  # type: ignore[attr-defined]
    made.json.decode = _decode
    return made


def stand_in() -> list[str]:
    """Puts stand-ins where msgspec, llguidance and pyzmq are missing. Returns the names of those it replaced."""
    missing = [name for name in ("msgspec", "llguidance", "zmq") if name not in sys.modules and find_spec(name) is None]
    for name in missing:
        sys.modules[name] = _msgspec() if name == "msgspec" else MagicMock()
    return missing
