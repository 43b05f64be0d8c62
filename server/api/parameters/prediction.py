"""OpenAI's predicted outputs: a text that the answer is thought to repeat for the most part."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from server.api.fields import Strict, invalid
from server.text.served_model import ServedModel

MAX_PARTS = 1024


class PredictedPart(Strict):
    """A part of a prediction."""

    type: Literal["text"]
    """The kind of a part."""
    text: str
    """The text of a part."""


def _check_content(value: Any) -> Any:
    """A plain check in place of a union: a string is a list of one part."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise invalid("must be a string or a list of parts")
    return value


_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}


class Prediction(Strict):
    """What the answer is thought to be."""

    type: Literal["content"]
    """The kind of a prediction."""
    content: Annotated[
        list[PredictedPart],
        Field(max_length=MAX_PARTS, fail_fast=True),
        BeforeValidator(_check_content),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "maxItems": MAX_PARTS, "items": _PART}]}),
    ]
    """Its text, or the parts of it."""

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(part.text for part in self.content)


async def encode_prediction(text: str, model: ServedModel) -> list[int] | None:
    """The tokens of a prediction, spelled control tokens included; None where it is empty. Raises BadRequest."""
    if not text:
        return None
    [prediction] = await model.encode_prompts([text], add_bos=False, param="prediction")
    return prediction
