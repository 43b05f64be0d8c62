"""From a structure to rules in the grammar library's own language."""

from __future__ import annotations

import json
from collections.abc import Callable

from engine.grammar.structure import Chain, Choice, Exact, Free, Inner, Member, Members, Node, Repeat, Token, Until
from engine.request import Grammar

ANY = "/(?s:.*)/"


def structure_rules(root: Node, write_inner: Callable[[Grammar], str]) -> str:
    """The body of the grammar's start rule, and the other rules below it.

    write_inner: the library's form of a grammar within the structure, which may raise RequestError.
    """
    writer = _RuleWriter(write_inner)
    start = writer.write(root)
    return "\n".join([start, *writer.rules])


class _RuleWriter:
    """Writes each node once, as a rule of its own, however often it stands in the tree."""

    def __init__(self, write_inner: Callable[[Grammar], str]) -> None:
        self.rules: list[str] = []
        self._write_inner = write_inner
        self._names: dict[Node, str] = {}

    def write(self, node: Node) -> str:
        """The name of the node's rule."""
        if node not in self._names:
            self._names[node] = self._write(node)
        return self._names[node]

    def _write(self, node: Node) -> str:
        match node:
            case Exact():
                return self._rule(json.dumps(node.text, ensure_ascii=False))
            case Token():
                return self._rule(f"<[{node.id}]>")
            case Free():
                barred = [f"(?s:.*){_escaped(text)}(?s:.*)" for text in node.without]
                barred += [f"({expression})(?s:.*)" for expression in node.not_first]
                return self._rule(f"{self._terminal(ANY, barred)}?")
            case Until():
                barred = [f"(?s:.*)({expression})(?s:.*)" for expression in node.without]
                whole = f"/(?s:.*){_escaped(node.end)}/"
                return self._rule(self._terminal(whole, barred), "[lazy]")
            case Inner():
                return self._rule(self._write_inner(node.grammar))
            case Chain():
                return self._rule(" ".join(map(self.write, node.items)) or '""')
            case Choice():
                return self._rule(" | ".join(map(self.write, node.options)))
            case Repeat():
                return self._rule(f"{self.write(node.item)}*")
            case Members():
                return self._members(node.members, node.separator)

    def _rule(self, body: str, kind: str = "") -> str:
        name = f"r{len(self.rules)}"
        self.rules.append(f"{name}{kind}: {body}")
        return name

    def _terminal(self, whole: str, barred: list[str]) -> str:
        """The name of a terminal: what `whole` matches and none of the barred expressions does."""
        name = f"T{len(self.rules)}"
        self.rules.append(f"{name}: " + " & ".join([whole, *(f"~/{_slashed(text)}/" for text in barred)]))
        return name

    def _members(self, members: tuple[Member, ...], separator: str) -> str:
        """Two rules for each member: with no member before it, and with one."""
        between = json.dumps(separator, ensure_ascii=False) if separator else ""
        first = rest = self._rule('""')
        for member in reversed(members):
            item = self.write(member.node)
            alone, further = f"{item} {rest}", f"{between} {item} {rest}"
            first = self._rule(alone if member.required else f"{alone} | {first}")
            rest = self._rule(further if member.required else f"{further} | {rest}")
        return first


def _escaped(text: str) -> str:
    """An expression that matches exactly this text."""
    return "".join(char if char.isalnum() or char in " _" else f"\\x{{{ord(char):X}}}" for char in text)


def _slashed(expression: str) -> str:
    """An expression as it may stand between slashes. It has no slash with a backslash before it."""
    return expression.replace("/", "\\/")
