"""Chat messages to prompt tokens through the model's own chat template, which runs in a sandbox.

Message content never becomes a control token. Where content spells one (or could complete one together with its
surroundings), an unguessable marker is put inside the spelling before the template runs. After rendering, a spelling
with no marker in it was written by the template and counts; the markers are then removed. Content that spells no
control token reaches the template untouched, so templates that look into content behave as published.
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import ModelLoadError
from server.http.errors import BadRequest
from server.text.tokenizer import Tokenizer


class _TemplateRefusal(Exception):
    """The template called `raise_exception`: the messages are not what this model takes."""


def _raise_exception(message: object) -> NoReturn:
    raise _TemplateRefusal(str(message))


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    """Templates are written for JSON as a model reads it, not escaped for HTML as Jinja's own filter does."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


class ChatTemplate:
    """A model's chat template, compiled once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.chat_template is None:
            raise ModelLoadError("the model has no chat template")
        self._tokenizer = tokenizer
        self._spellings = _ControlSpellings(tokenizer.control_tokens)
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(tokenizer.chat_template)
        except TemplateError as exc:
            raise ModelLoadError(f"the model's chat template does not compile: {exc}") from None

    def encode(self, messages: list[dict[str, Any]]) -> list[int]:
        """Prompt tokens up to where the assistant speaks. Raises BadRequest when the template refuses the messages."""
        marker = str(secrets.randbelow(10**39) + 10**39)  # digits survive any filter of a template
        guarded = [
            {
                key: self._spellings.mark(value, marker) if key != "role" and isinstance(value, str) else value
                for key, value in message.items()
            }
            for message in messages
        ]
        try:
            text = self._template.render(messages=guarded, add_generation_prompt=True, **self._tokenizer.special_texts)
        except _TemplateRefusal as exc:
            line = " ".join(str(exc).replace(marker, "").split())[:300]
            raise BadRequest(f"The model's chat template refuses these messages: {line}", "messages") from None
        except Exception:
            # Anything a template trips over is about these messages: it rendered others, and it runs sandboxed.
            raise BadRequest("The model's chat template cannot render these messages.", "messages") from None
        return self._tokenizer.encode_rendered(text, marker)


class _ControlSpellings:
    """Finds where text spells a control token, or holds the beginning or the end of one at its edges."""

    def __init__(self, spellings: Iterable[str]) -> None:
        self._spellings = list(spellings)
        self._any = re.compile("|".join(map(re.escape, self._spellings))) if self._spellings else None
        self._heads = {text[:length] for text in self._spellings for length in range(1, len(text))}
        self._tails = {text[length:] for text in self._spellings for length in range(1, len(text))}
        self._longest = max(map(len, self._spellings), default=0)

    def mark(self, text: str, marker: str) -> str:
        """The text with the marker inside every spelling, and at an edge that others could complete to one."""
        cuts: set[int] = set()
        if self._any is not None and self._any.search(text):
            for spelling in self._spellings:
                found = text.find(spelling)
                while found >= 0:
                    cuts.add(found + 1)
                    found = text.find(spelling, found + 1)
        for length in range(1, min(self._longest, len(text) + 1)):
            if text[-length:] in self._heads:
                cuts.add(len(text))
            if text[:length] in self._tails:
                cuts.add(0)
        if not cuts:
            return text
        edges = [0, *sorted(cuts), len(text)]
        return marker.join(text[start:end] for start, end in pairwise(edges))
