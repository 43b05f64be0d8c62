"""The request of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from server.api.fields import invalid
from server.api.parameters.prediction import Prediction
from server.api.parameters.values import MAX_COUNT, MAX_LOGPROBS, OptionalText
from server.api.requests import SCORES, GenerationRequest, TruncatedPrompt
from server.generation.job import EndpointName


def _is_ids(value: list[Any]) -> bool:
    return set(map(type, value)) == {int}


def _check_prompt(value: Any) -> Any:
    """A plain check in place of a union: one clear message, and no list is read once for each of four types."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if not value:
            raise invalid("must not be an empty list")
        kinds = set(map(type, value))
        if kinds in ({str}, {int}) or (kinds == {list} and all(map(_is_ids, value))):
            return value
    raise invalid("must be a string, a list of strings, a list of token ids or a list of lists of token ids")


_TEXT = {"type": "string"}
_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
Prompt = Annotated[
    str | list[str] | list[int] | list[list[int]],
    PlainValidator(_check_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                _TEXT,
                {"type": "array", "minItems": 1, "items": _TEXT},
                _IDS,
                {"type": "array", "minItems": 1, "items": _IDS},
            ]
        }
    ),
]


DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for completions."""


class CompletionRequest(TruncatedPrompt, GenerationRequest):
    """POST /v1/completions"""

    endpoint: ClassVar[EndpointName] = "completions"
    id_prefix: ClassVar[str] = "cmpl-"
    prompt_param: ClassVar[str] = "prompt"

    prompt: Prompt
    """Text, token ids, or a list of either. Control tokens may be spelled; the mask never is one."""
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = None
    """How many of the likeliest tokens to list beside each token of the answer, the token itself not counted."""
    echo: bool = False
    """Put the prompt in front of the answer; with logprobs, its log-probabilities before the answer's."""
    add_special_tokens: bool = True
    """false: no BOS is put in front of a prompt that is text."""
    suffix: OptionalText = None
    """Fill the gap of max_tokens tokens between prompt and suffix, by diffusion."""
    find_gap_length: bool | None = None
    """Before a suffix: the gap has at most max_tokens tokens, and as many as make the likeliest text. Takes several
    fillings. Unset: false here, true where editors ask and the model can."""
    prediction: Annotated[Prediction | None, SCORES] = None
    """A text that the answer repeats for the most part, such as the file to be edited: what of it is right is taken
    many tokens a pass, and the answer is the same. Counted in usage.completion_tokens_details."""
    max_tokens: Annotated[int | None, Field(ge=0, le=MAX_COUNT)] = None
    """Most tokens to generate (16). 0 only with echo or prompt_logprobs: the prompt alone."""

    finds_gap_by_default: ClassVar[bool] = False

    @property
    def infills(self) -> bool:
        return self.suffix is not None

    def finds_gap(self, *, possible: bool) -> bool:
        """The length of the gap before the suffix is to be found. possible: the model can."""
        if self.find_gap_length is not None:
            return self.find_gap_length
        return possible and self.finds_gap_by_default and self.infills and not self._shows_drafts

    @property
    def _shows_drafts(self) -> bool:
        return self.diffusing or self.wants_drafts

    @property
    def predicted_text(self) -> str:
        return "" if self.prediction is None else self.prediction.text

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompt as a list of prompts."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt[0], int):
            return [prompt]
        return prompt

    @model_validator(mode="after")
    def _check_completion(self) -> Self:
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise invalid("'max_tokens' must be at least 1, or 0 with 'echo' or 'prompt_logprobs'")
        if self.echo and self.suffix is not None:
            raise invalid("'echo' and 'suffix' cannot be combined: the answer to a suffix is the middle only")
        if self.echo and self.truncates:
            raise invalid(
                "'truncate_prompt_tokens' cannot be combined with 'echo', which repeats the prompt as it was sent"
            )
        if self.find_gap_length and self.suffix is None:
            raise invalid("'find_gap_length' requires a 'suffix', before which there is a gap")
        if self.find_gap_length and self._shows_drafts:
            raise invalid("'find_gap_length' has no draft to show: leave out 'diffusing' and 'include_drafts'")
        if self.diffusing and self.logprobs is not None:
            raise invalid("'logprobs' cannot be combined with 'diffusing', whose chunks replace each other")
        return self
