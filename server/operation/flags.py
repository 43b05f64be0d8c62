"""Command-line flags made from the configuration's own fields, with their documentation for help."""

from __future__ import annotations

import argparse
import ast
import inspect
import types
import typing
from typing import Any, NamedTuple

import msgspec

from engine.config import ranges_of
from server.operation.config import ENV_PREFIX, SECTIONS, option_types

ALIASES: dict[str, tuple[str, ...]] = {"api_keys": ("--api-key",)}
"""Other spellings of a flag, which users of other servers type."""


class OptionDoc(NamedTuple):
    """One option as help and documentation describe it."""

    name: str
    kind: Any
    default: Any
    text: str


def documented_options() -> dict[str, list[OptionDoc]]:
    """Every option by section, in the order of the configuration's fields. Text: the field's, and its upper bound."""
    options: dict[str, list[OptionDoc]] = {section: [] for section in SECTIONS}
    texts = {section: _field_docs(struct) for section, struct in SECTIONS.items()}
    for name, (section, kind, default) in option_types().items():
        text = texts[section].get(name, "")
        valid = ranges_of(SECTIONS[section]).get(name)
        if valid is not None and valid.most is not None:  # lower bounds of 0 go without saying
            text = f"{text} {str(valid).capitalize()}."
        options[section].append(OptionDoc(name, kind, default, text))
    return options


def add_options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """One flag for each option: `max_running` is `--max-running`. Values are converted with the configuration.

    Returns those that take a value, by the options' names.
    """
    valued: dict[str, argparse.Action] = {}
    for section, options in documented_options().items():
        group = parser.add_argument_group(f"{section} options", f"each also as {ENV_PREFIX}NAME or in [{section}]")
        for name, kind, default, doc in options:
            shown = "" if default in (None, ()) else f" (default: {default})"
            text = (doc + shown).strip().replace("%", "%%") or None
            flag = f"--{name.replace('_', '-')}"
            if kind is bool:
                action = argparse.BooleanOptionalAction
                group.add_argument(flag, dest=name, action=action, default=argparse.SUPPRESS, help=text)
            else:
                spelled = (flag, *ALIASES.get(name, ()))
                valued[name] = group.add_argument(
                    *spelled, dest=name, metavar=_metavar(kind), default=argparse.SUPPRESS, help=text
                )
    return valued


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {name: getattr(arguments, name) for name in option_types() if hasattr(arguments, name)}


def _metavar(kind: Any) -> str:
    options = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return "{" + ",".join(options) + "}"
    if isinstance(kind, types.UnionType):
        kind = next(option for option in options if option is not type(None))
    return {int: "N", float: "X"}.get(kind, "VALUE")


def _field_docs(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The string below each field of a class, which Python itself does not keep."""
    try:
        body = ast.parse(inspect.getsource(struct)).body[0]
    except (OSError, SyntaxError):
        return {}  # no source at hand: flags without help
    docs: dict[str, str] = {}
    name: str | None = None
    for node in body.body if isinstance(body, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name is not None:
            docs[name] = " ".join(str(node.value.value).split())
            name = None
    return docs
