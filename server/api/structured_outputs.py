"""`response_format` and `structured_outputs`: OpenAI's spelling and vLLM's of the grammar an answer must follow."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from engine.errors import RequestError
from engine.request import Grammar
from engine.validate import check_grammar_mode as check_mode
from server.http.errors import BadRequest, from_request_error


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("lightcone", "{message}", {"message": message})


class JsonSchemaFormat(_Strict):
    """A JSON schema with a name. The schema is always enforced, whatever `strict` says."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(_Strict):
    """OpenAI's."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise _wrong("must have 'json_schema' with type 'json_schema', and with no other type")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """None for any text."""
        if self.json_schema is not None:
            return Grammar(kind="json_schema", source=json.dumps(self.json_schema.schema_))
        return Grammar(kind="json_object") if self.type == "json_object" else None


class StructuredOutputs(_Strict):
    """vLLM's: exactly one of the fields, or none of them."""

    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    """A JSON schema, as an object or as text."""
    regex: str | None = None
    choice: list[str] | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if sum(value is not None for value in (self.json_, self.regex, self.choice, self.json_object or None)) > 1:
            raise _wrong("must have only one of 'json', 'regex', 'choice' and 'json_object'")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """None where no field is set."""
        if self.json_ is not None:
            source = self.json_ if isinstance(self.json_, str) else json.dumps(self.json_)
            return Grammar(kind="json_schema", source=source)
        if self.regex is not None:
            return Grammar(kind="regex", source=self.regex)
        if self.choice is not None:
            return Grammar(kind="choice", source=json.dumps(self.choice))
        return Grammar(kind="json_object") if self.json_object else None


def choose_grammar(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> tuple[Grammar, str] | None:
    """The grammar of a request and the field it comes from; None where any text will do. Raises BadRequest for two."""
    asked = {
        "response_format": response_format.grammar if response_format is not None else None,
        "structured_outputs": structured_outputs.grammar if structured_outputs is not None else None,
    }
    grammars = [(grammar, name) for name, grammar in asked.items() if grammar is not None]
    if len(grammars) > 1:
        raise BadRequest(
            "'response_format' and 'structured_outputs' both ask for a form: send one of them.",
            "structured_outputs",
            "invalid_value",
        )
    return grammars[0] if grammars else None


def check_grammar_mode(field: str, decoding: str, decodings: tuple[str, ...], *, infill: bool) -> None:
    """Raises BadRequest where the answer would be denoised, which no grammar can bind. field: what asks for a form."""
    try:
        check_mode("infill" if infill else decoding, decodings, field)
    except RequestError as error:
        raise from_request_error(error) from None
