"""Structure: the form of an answer as a tree of literal text, free text and grammars in their places. No torch.

A grammar of kind "structure" holds one. It says what a JSON schema alone cannot: text up to a marker, then a call of a
tool in the model's own spelling, with arguments that follow a schema.
"""

from __future__ import annotations

import msgspec

from engine.request import Grammar


class Exact(msgspec.Struct, frozen=True, tag="exact"):
    """Exactly this text."""

    text: str


class Token(msgspec.Struct, frozen=True, tag="token"):
    """One control token, which no text spells."""

    id: int


class Free(msgspec.Struct, frozen=True, tag="free"):
    """Any text, none included."""

    without: tuple[str, ...] = ()
    """Texts that must not be in it."""
    not_first: tuple[str, ...] = ()
    """Regular expressions that its beginning must not match."""


class Until(msgspec.Struct, frozen=True, tag="until"):
    """Any text up to the first `end`, which belongs to it."""

    end: str
    without: tuple[str, ...] = ()
    """Regular expressions that must not match anywhere before."""


class Inner(msgspec.Struct, frozen=True, tag="inner"):
    """A text of another grammar, of any kind but "structure"."""

    grammar: Grammar


class Chain(msgspec.Struct, frozen=True, tag="chain"):
    """The items, one after another."""

    items: tuple[Node, ...]


class Choice(msgspec.Struct, frozen=True, tag="choice"):
    """One of the options; there is at least one."""

    options: tuple[Node, ...]


class Repeat(msgspec.Struct, frozen=True, tag="repeat"):
    """The item any number of times, none included."""

    item: Node


class Member(msgspec.Struct, frozen=True):
    """One of the members of a list."""

    node: Node
    required: bool


class Members(msgspec.Struct, frozen=True, tag="members"):
    """The members in their order, with a separator between them; those that are not required may be missing."""

    members: tuple[Member, ...]
    separator: str = ""


Node = Exact | Token | Free | Until | Inner | Chain | Choice | Repeat | Members


def structure_grammar(node: Node) -> Grammar:
    """The grammar of a structure."""
    return Grammar(kind="structure", source=msgspec.json.encode(node).decode())


def read_structure(source: str) -> Node:
    """The structure of a grammar of that kind. Raises ValueError (msgspec.ValidationError is one)."""
    node: Node = msgspec.json.decode(source, type=Node)
    return node
