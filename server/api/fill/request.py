"""The requests of POST /v1/fim/completions and POST /infill: a completion with a suffix, under other names."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from server.api.completions.request import CompletionRequest
from server.api.fields import Strict, invalid, not_here
from server.api.parameters.values import MAX_COUNT, OptionalText, Seed
from server.api.requests import SettledText, UntoldTokens, parse_generation, shared_values
from server.generation.job import EndpointName

MAX_EXTRAS = 1024


class FimRequest(UntoldTokens, CompletionRequest):
    """POST /v1/fim/completions"""

    endpoint: ClassVar[EndpointName] = "fim"
    finds_gap_by_default: ClassVar[bool] = True
    id_prefix: ClassVar[str] = "fim-"

    prompt: str
    """The text before the gap. Control tokens may be spelled; the mask never is one."""
    suffix: OptionalText = None
    """The text behind the gap, which is filled by diffusion. Unset: the prompt is continued."""
    find_gap_length: bool | None = None
    """The gap has at most max_tokens tokens, and as many as make the likeliest text. Takes several fillings. false: it
    has max_tokens. Unset: true where the model can (it needs a causal head) and no drafts are asked for."""
    random_seed: Seed = None
    """Another name of seed."""
    logprobs: Annotated[None, *not_here("use /v1/completions")] = None
    """Log-probabilities are told by /v1/completions."""
    echo: Literal[False] = False
    """The answer is the middle only."""

    @model_validator(mode="before")
    @classmethod
    def _rename_seed(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("random_seed") is None:
            return data
        if data.get("seed") not in (None, data["random_seed"]):
            raise invalid("'random_seed' and 'seed' differ: send one of them")
        return {**data, "seed": data["random_seed"]}


class Extra(Strict):
    """A further text."""

    text: str
    """The text."""
    filename: str | None = None
    """Where it comes from; a line in front of the text says so."""


class InfillRequest(SettledText):
    """POST /infill"""

    endpoint: ClassVar[EndpointName] = "infill"
    id_prefix: ClassVar[str] = "infill-"
    prompt_param: ClassVar[str] = "input_prefix"

    input_prefix: str
    """The text before the gap. Control tokens may be spelled; the mask never is one."""
    input_suffix: str
    """The text behind the gap, which is filled by diffusion. Empty: the text before it is continued."""
    input_extra: Annotated[list[Extra], Field(max_length=MAX_EXTRAS, fail_fast=True)] = Field(default=[])
    """Texts that stand before all others."""
    prompt: str = ""
    """What follows the prefix directly, such as the line that the cursor is in."""
    n_predict: Annotated[int, Field(ge=-1, le=MAX_COUNT)] = -1
    """Most tokens of the gap; -1: 16. 0 computes the text before the gap and generates nothing."""
    find_gap_length: bool | None = None
    """The gap has as many tokens as make the likeliest text. Takes several fillings. false: it has n_predict. Unset:
    true where the model can (it needs a causal head)."""
    n_indent: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    """The content ends before a line, not its first, that begins with less white space. Not with stream."""
    cache_prompt: bool = True
    """Accepted: prefixes are cached by themselves."""
    id_slot: int = -1
    """Accepted; has no effect: the scheduler chooses where a request runs."""
    samplers: list[str] = Field(default=[], max_length=32, fail_fast=True)
    """Accepted; has no effect: the filters of sampling have one order, and those that are not set do nothing."""
    t_max_prompt_ms: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    """Accepted; has no effect: it is advice, and a request ends when its client leaves."""
    t_max_predict_ms: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    """Accepted; has no effect: it is advice, and a request ends when its client leaves."""
    response_fields: list[str] = Field(default=[], max_length=64, fail_fast=True)
    """Accepted; has no effect: the answer has few fields, and always the same."""
    # Fields of the other endpoints, by which this one says what is asked for in another way.
    max_tokens: Annotated[None, *not_here("use 'n_predict'")] = None
    """Its name here is n_predict."""
    stream_options: Annotated[None, *not_here("use /v1/completions")] = None
    """The last event of a stream always has the counts."""

    @model_validator(mode="after")
    def _check_infill(self) -> Self:
        if self.n_indent and self.stream:
            raise invalid("'n_indent' cannot be combined with 'stream'")
        return self


class InfillCompletion(CompletionRequest):
    """The completion that an infill is."""

    finds_gap_by_default: ClassVar[bool] = True
    endpoint: ClassVar[EndpointName] = "infill"
    id_prefix: ClassVar[str] = "infill-"
    prompt_param: ClassVar[str] = "input_prefix"

    n_indent: int = 0
    """See InfillRequest."""


_OTHERWISE = {"max_tokens", "stream_options"}

NAMES = (
    (re.compile(r"'suffix'"), "'input_suffix'"),
    (re.compile(r"'max_tokens'"), "'n_predict'"),
    (re.compile(r"'prompt'"), "'input_prefix'"),
)
"""How completions call what an infill was asked for, and how infills do."""


def to_completion(fields: InfillRequest) -> InfillCompletion:
    """The completion that an infill asks for."""
    before = [
        f"{extra.filename}\n{extra.text}\n" if extra.filename else f"{extra.text}\n" for extra in fields.input_extra
    ]
    values = shared_values(fields, _OTHERWISE)
    values |= {"prompt": "".join([*before, fields.input_prefix, fields.prompt]), "n_indent": fields.n_indent}
    if fields.n_predict == 0:
        values |= {"max_tokens": 0, "echo": True}
    else:
        values["suffix"] = fields.input_suffix or None
        values["find_gap_length"] = fields.find_gap_length if fields.input_suffix else None
        values["max_tokens"] = fields.n_predict if fields.n_predict > 0 else None
    # Every value has been checked already, as a field of one of the two requests.
    return InfillCompletion.model_construct(_fields_set=set(values), **values)


def parse_infill(data: Any) -> InfillCompletion:
    """The completion that the JSON value of an infill asks for. Raises BadRequest."""
    return to_completion(parse_generation(InfillRequest, data))
