"""The tool formats that are known, and the choice of the one that a model's chat template writes."""

from __future__ import annotations

from server.formats.json_calls import HermesCalls, LlamaCalls, MistralCalls
from server.formats.pythonic_calls import PythonicCalls
from server.formats.tool_format import ToolFormat
from server.formats.xml_calls import XmlCalls

FORMATS: dict[str, type[ToolFormat]] = {
    kind.name: kind for kind in (XmlCalls, HermesCalls, MistralCalls, LlamaCalls, PythonicCalls)
}
"""By the name that the option `tool_call_parser` gives them; the order in which they are tried."""


def recognise_format(example: str) -> ToolFormat | None:
    """The format of a chat in which the assistant called the function `look` with the argument `place`."""
    found = (kind.recognise(example) for kind in FORMATS.values())
    return next((form for form in found if form is not None), None)


def format_named(name: str, example: str) -> ToolFormat:
    """The format of this name, fitted to the chat if that is in it."""
    kind = FORMATS[name]
    return kind.recognise(example) or kind()
