"""`response_format` and `structured_outputs`: OpenAI's spelling and vLLM's of the grammar an answer must follow."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from engine.errors import RequestError
from engine.request import MAX_SCHEMA_BYTES, Grammar
from engine.validate import check_grammar_mode as check_mode
from server.api.fields import Strict, invalid
from server.generation.job import RequestedGrammar
from server.http.errors import BadRequest, from_request_error

MAX_CHOICES = MAX_SCHEMA_BYTES // 4
"""A list of more is longer than MAX_SCHEMA_BYTES, however short its strings are."""


def _as_text(schema: Any) -> str:
    """The JSON of a schema, cut off once it is longer than any that is accepted."""
    text = ""
    for piece in json.JSONEncoder().iterencode(schema):
        text += piece
        if len(text) > MAX_SCHEMA_BYTES:
            break
    return text


class JsonSchemaFormat(Strict):
    """A JSON schema with a name. The schema is always enforced, whatever `strict` says."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    """A name of the schema."""
    description: str | None = None
    """What the schema is for; it changes nothing."""
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    """A JSON schema; always enforced."""
    strict: bool | None = None
    """Accepted: a schema is always enforced."""


class ResponseFormat(Strict):
    """OpenAI's way to ask for a grammar."""

    type: Literal["text", "json_object", "json_schema"]
    """The kind of text."""
    json_schema: JsonSchemaFormat | None = None
    """The schema, for type json_schema."""

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise invalid("must have 'json_schema' with type 'json_schema', and with no other type")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """None for any text."""
        if self.json_schema is not None:
            return Grammar(kind="json_schema", source=_as_text(self.json_schema.schema_))
        return Grammar(kind="json_object") if self.type == "json_object" else None


class StructuredOutputs(Strict):
    """vLLM's way to ask for a grammar: exactly one of the fields, or none of them."""

    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    """A JSON schema, as an object or as text."""
    regex: str | None = None
    """A regular expression that the whole answer matches."""
    choice: Annotated[list[str] | None, Field(max_length=MAX_CHOICES, fail_fast=True)] = None
    """The answers to choose from."""
    json_object: bool | None = None
    """Any JSON object."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if sum(value is not None for value in (self.json_, self.regex, self.choice, self.json_object or None)) > 1:
            raise invalid("must have only one of 'json', 'regex', 'choice' and 'json_object'")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """None where no field is set."""
        if self.json_ is not None:
            source = self.json_ if isinstance(self.json_, str) else _as_text(self.json_)
            return Grammar(kind="json_schema", source=source)
        if self.regex is not None:
            return Grammar(kind="regex", source=self.regex)
        if self.choice is not None:
            return Grammar(kind="choice", source=json.dumps(self.choice))
        return Grammar(kind="json_object") if self.json_object else None


def requested_grammar(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> RequestedGrammar | None:
    """The grammar that a request asks for; None where any text will do. Raises BadRequest if it asks for two."""
    asked = {
        "response_format": response_format.grammar if response_format is not None else None,
        "structured_outputs": structured_outputs.grammar if structured_outputs is not None else None,
    }
    found = [RequestedGrammar(grammar, param) for param, grammar in asked.items() if grammar is not None]
    if len(found) > 1:
        message = "'response_format' and 'structured_outputs' both ask for a form: send one of them."
        raise BadRequest(message, "structured_outputs", "invalid_value")
    return found[0] if found else None


def check_grammar_mode(field: str, decoding: str, decodings: tuple[str, ...], *, infill: bool) -> None:
    """Raises BadRequest where the answer would be denoised, which no grammar can bind. field: what asks for a form."""
    try:
        check_mode("infill" if infill else decoding, decodings, field)
    except RequestError as error:
        raise from_request_error(error) from None
