"""`response_format` and `structured_outputs`: OpenAI's spelling and vLLM's of the grammar an answer must follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from engine.errors import RequestError
from engine.request import MAX_SCHEMA_BYTES, Grammar
from engine.validate import check_grammar_mode
from server.api.fields import Strict, invalid
from server.generation.job import RequestedGrammar
from server.http.errors import BadRequest, from_request_error
from server.http.json_codec import encode_exactly
from server.text.tokenizer import Tokenizer

MAX_CHOICES = MAX_SCHEMA_BYTES // 4
"""A list of more is longer than MAX_SCHEMA_BYTES, however short its strings are."""


class JsonSchemaFormat(Strict):
    """A JSON schema with a name. The schema is always enforced, whatever `strict` says."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    """A name of the schema."""
    description: str | None = None
    """What the schema is for; it changes nothing."""
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    """A JSON schema; always enforced. An object with `properties` has no others unless `additionalProperties` or
    `unevaluatedProperties` allows them."""
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
            return Grammar(kind="json_schema", source=encode_exactly(self.json_schema.schema_))
        return Grammar(kind="json_object") if self.type == "json_object" else None


UNSUPPORTED_MEMBERS = ("structural_tag", "whitespace_pattern", "_backend")
"""vLLM's members of `structured_outputs` that nothing here can fulfil. Its client sends them as null."""


class StructuredOutputs(Strict):
    """vLLM's way to ask for a grammar: exactly one of json, regex, choice, grammar and json_object, or none of them."""

    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    """A JSON schema, as an object or as text. An object with `properties` has no others unless `additionalProperties`
    or `unevaluatedProperties` allows them."""
    regex: str | None = None
    """A regular expression that the whole answer matches."""
    choice: Annotated[list[str] | None, Field(max_length=MAX_CHOICES, fail_fast=True)] = None
    """The answers to choose from."""
    grammar_: Annotated[str | None, Field(alias="grammar")] = None
    """Rules in Lark's form, the first of them named start, or in GBNF, the first named root."""
    json_object: bool | None = None
    """Any JSON object."""
    disable_any_whitespace: bool = False
    """JSON without any white space. Otherwise there is at most one space between two tokens."""
    disable_additional_properties: bool = False
    """Accepted: objects with `properties` have no others unless the schema says so."""
    disable_fallback: bool = False
    """Accepted: there is one grammar library."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if refused := next((name for name in UNSUPPORTED_MEMBERS if data.get(name) is not None), None):
            raise invalid(f"must not have '{refused}', which is not supported")
        return {name: value for name, value in data.items() if name not in UNSUPPORTED_MEMBERS}

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        asked = (self.json_, self.regex, self.choice, self.grammar_, self.json_object or None)
        if sum(value is not None for value in asked) > 1:
            raise invalid("must have only one of 'json', 'regex', 'choice', 'grammar' and 'json_object'")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """None where no field is set."""
        compact = self.disable_any_whitespace
        if self.json_ is not None:
            source = self.json_ if isinstance(self.json_, str) else encode_exactly(self.json_)
            return Grammar(kind="json_schema", source=source, compact=compact)
        if self.regex is not None:
            return Grammar(kind="regex", source=self.regex)
        if self.choice is not None:
            return Grammar(kind="choice", source=encode_exactly(self.choice))
        if self.grammar_ is not None:
            return Grammar(kind="lark", source=self.grammar_)
        return Grammar(kind="json_object", compact=compact) if self.json_object else None


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


def refuse_infilled_grammar(field: str) -> None:
    """Raises BadRequest for an answer that fills a gap of a given length. field: what asks for a form."""
    try:
        check_grammar_mode("infill", field)
    except RequestError as error:
        raise from_request_error(error) from None


def check_stop_tokens(grammar: RequestedGrammar, stop_token_ids: Sequence[int], tokenizer: Tokenizer) -> None:
    """Raises BadRequest for a stop token that is text of the answer's form: the answer could then never be whole."""
    for token in stop_token_ids:
        text = tokenizer.decode([token]) if 0 <= token < tokenizer.vocab_size else ""
        if text and _may_hold(grammar.grammar, text):
            raise BadRequest(
                f"'stop_token_ids' names token {token}, {text!r}, which an answer in the form of '{grammar.param}' may "
                "need: the form says where the answer ends.",
                "stop_token_ids",
                "invalid_value",
            )


def _may_hold(grammar: Grammar, text: str) -> bool:
    """Whether a token may be a part of an answer, as far as the kind of grammar tells."""
    if grammar.kind in ("json_schema", "json_object"):
        return all(char >= " " for char in text)  # control characters are escaped in JSON strings
    return True
