"""From JSON values to request models; what pydantic finds wrong becomes one sentence that names the field."""

from __future__ import annotations

import re
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from server.api.fields import Strict, unknown_parameter
from server.http.errors import BadRequest

_SHOULD = re.compile(r"\w+ (should .+)", re.DOTALL)
"""pydantic's messages begin with the kind of value: "Input should be ...", "String should match ..."."""


_Model = TypeVar("_Model", bound=Strict)


def parse(kind: type[_Model], data: Any) -> _Model:
    """Any request out of a JSON value. Raises BadRequest that names the first field at fault."""
    try:
        return kind.model_validate(as_object(data))
    except ValidationError as exc:
        first, *others = exc.errors(include_url=False, include_input=False)
        # Of a union's branches, the one that was followed deepest is the one that was meant.
        same = [error for error in others if error["loc"][: len(first["loc"]) - 1] == first["loc"][:-1]]
        raise _to_bad_request(max([first, *same], key=lambda error: len(error["loc"])), kind) from None


def as_object(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise BadRequest("The request body must be a JSON object.", None, "invalid_type")
    return data


def _to_bad_request(error: ErrorDetails, kind: type[Strict]) -> BadRequest:
    # A union puts the name of its branch into the location; a field name or an index never looks like these.
    path = [part for part in error["loc"] if not (isinstance(part, str) and ("[" in part or part == "str"))]
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    if error["type"] == "extra_forbidden":
        parent, _, last = name.rpartition(".")
        return unknown_parameter(last, _known_fields(kind, path[:-1]), f"{parent}." if parent else "")
    if error["type"] == "missing":
        return BadRequest(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    message = error["msg"]
    if not name:  # a combination of fields: the message names them, the first being at fault
        field = message.split("'")[1] if message.count("'") > 1 else None
        return BadRequest(message[:1].upper() + message[1:] + ".", field, "invalid_value")
    wanted = _SHOULD.match(message)
    text = wanted[1] if wanted is not None else message[:1].lower() + message[1:]
    return BadRequest(f"Invalid value for '{name}': it {text}.", name, "invalid_value")


def _known_fields(kind: type[Strict], path: list[int | str]) -> list[str]:
    """The field names of the object at `path` within a request; empty where no model is known for it."""
    fields = kind.model_fields
    for part in path:
        if isinstance(part, int):
            continue
        field = fields.get(part) or next((found for found in fields.values() if found.alias == part), None)
        models = [] if field is None else models_in(field.annotation)
        if not models:
            return []
        fields = models[0].model_fields
    return [field.alias or name for name, field in fields.items()]


def models_in(annotation: Any) -> list[type[Strict]]:
    """The request models that a field's type mentions, in the order in which it does."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]
