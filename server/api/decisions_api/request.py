"""The request of POST /v1/decisions: an input, and questions about it whose possible answers are known."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from server.api.fields import Strict, invalid, take_known
from server.api.parameters.parsing import as_object, parse
from server.api.parameters.values import MAX_COUNT, OptionalText
from server.api.responses_api.items import Input
from server.generation.job import EndpointName

MAX_QUESTIONS = 400
MAX_CHOICES = 255
MAX_LEVELS = 100
MAX_ANSWER_TEXT = 256
MAX_QUESTION_TEXT = 16_384


class QuestionPart(Strict):
    """A piece of text of a question."""

    type: Literal["input_text"]
    """The kind of part."""
    text: Annotated[str, Field(max_length=MAX_QUESTION_TEXT)]
    """The text."""
    prompt_cache_breakpoint: dict[str, Any] | None = None
    """Accepted; has no effect: prefixes are cached by themselves."""


def _check_value(value: Any) -> Any:
    if not isinstance(value, str | bool):
        raise invalid("must be a string or a truth value")
    if isinstance(value, str) and not 1 <= len(value) <= MAX_ANSWER_TEXT:
        raise invalid(f"must have 1 to {MAX_ANSWER_TEXT} characters")
    return value


ChoiceValue = Annotated[
    str | bool,
    BeforeValidator(_check_value),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1, "maxLength": MAX_ANSWER_TEXT}, {"type": "boolean"}]}),
]
Description = Annotated[str | None, Field(max_length=MAX_QUESTION_TEXT)]


class QuestionChoice(Strict):
    """A possible answer."""

    value: ChoiceValue
    """The answer. A truth value and a string that spells it are two answers."""
    description: Description = None
    """What the answer means; the model reads it."""


class QuestionLevel(Strict):
    """A level of a scale."""

    label: Annotated[str, Field(min_length=1, max_length=MAX_ANSWER_TEXT)]
    """The level's name."""
    description: Description = None
    """What the level means; the model reads it."""


class Question(Strict):
    """A question about the input."""

    type: Literal["predicate", "choice", "score"]
    """predicate: how likely a statement is true. choice: one of several answers. score: a level of a scale."""
    name: Annotated[str | None, Field(max_length=256)] = None
    """Told beside the answer."""
    instructions: Annotated[
        Annotated[str, Field(max_length=MAX_QUESTION_TEXT)]
        | Annotated[list[QuestionPart], Field(min_length=1, max_length=64, fail_fast=True)],
        Field(union_mode="left_to_right"),
    ]
    """The statement, or the question."""
    choices: Annotated[list[QuestionChoice] | None, Field(min_length=2, max_length=MAX_CHOICES, fail_fast=True)] = None
    """The possible answers, for type choice."""
    levels: Annotated[list[QuestionLevel] | None, Field(min_length=2, max_length=MAX_LEVELS, fail_fast=True)] = None
    """The levels from the lowest to the highest, for type score."""

    @model_validator(mode="after")
    def _check_answers(self) -> Self:
        for name, kind, given in (("choices", "choice", self.choices), ("levels", "score", self.levels)):
            if (self.type == kind) is (given is None):
                raise invalid(f"must have '{name}' with type '{kind}', and with no other")
        answers = [(type(choice.value), choice.value) for choice in self.choices or ()]
        labels = [level.label for level in self.levels or ()]
        if len(set(answers)) < len(answers) or len(set(labels)) < len(labels):
            raise invalid("must not have two answers that are the same")
        return self

    @property
    def text(self) -> str:
        """The instructions as text."""
        if isinstance(self.instructions, str):
            return self.instructions
        return "\n".join([part.text for part in self.instructions])


class CacheOptions(Strict):
    """How prefixes are cached, which is by themselves."""

    mode: Literal["implicit"] | None = None
    """Prefixes are cached by themselves."""
    ttl: Literal["30m"] | None = None
    """Accepted; has no effect: what is cached stays until its memory is needed."""


class DecisionsRequest(Strict):
    """POST /v1/decisions"""

    endpoint: ClassVar[EndpointName] = "decisions"

    model: OptionalText = None
    """The served name, or an alias. May be left out."""
    input: Input
    """What the questions are about: a user's message, or the items of a conversation."""
    questions: Annotated[list[Question], Field(min_length=1, max_length=MAX_QUESTIONS, fail_fast=True)]
    """The questions. Each is answered for itself: none knows of the others."""
    prompt_cache_options: CacheOptions | None = None
    """How prefixes are cached."""
    priority: Annotated[int, Field(ge=-MAX_COUNT, le=MAX_COUNT)] = 0
    """Lower is served first."""
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] = ""
    """The prefix cache is shared only among requests with the same salt."""


def parse_decisions(data: Any) -> DecisionsRequest:
    """The request out of a JSON value. Raises BadRequest that names the first field at fault."""
    return parse(DecisionsRequest, take_known(as_object(data), "decisions", DecisionsRequest.model_fields))
