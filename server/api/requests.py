"""The request models' common part: strict types, finite numbers, and bounds on everything that costs.

A field's type, range, meaning and OpenAPI description stand here once; the endpoints' own fields stand beside them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema, model_validator
from pydantic_core import ErrorDetails

from engine.request import MAX_FACTOR, MAX_REPETITION_PENALTY, MIN_REPETITION_PENALTY, Remasking, Unmasking
from server.api.fields import FieldFacts, Strict, invalid, take_known, unknown_parameter
from server.api.structured_outputs import ResponseFormat, StructuredOutputs
from server.generation.job import EndpointName
from server.http.errors import BadRequest

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKENS = 128
MAX_COUNT = 2**31
"""Bound of numbers that count tokens or candidates; each has a tighter limit of its own elsewhere."""
MIN_SENT_SEED, MAX_SENT_SEED = -(2**63), 2**64 - 1
"""Seeds that clients may send: what 64 bits hold, signed or not."""

SPECULATES = FieldFacts(modes=("auto", "speculative", "diffusion"))
DENOISES = FieldFacts(modes=("diffusion",))


def _check_stop(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(type(stop) is str for stop in stops):
        raise invalid("must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise invalid(f"must have at most {MAX_STOPS} strings, not {len(stops)}")
    for stop in stops:
        if not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise invalid(f"must hold strings of 1 to {MAX_STOP_LENGTH} characters")
    return stops


_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
Stops = Annotated[
    list[str],
    BeforeValidator(_check_stop),
    WithJsonSchema({"anyOf": [_STOP, {"type": "array", "maxItems": MAX_STOPS, "items": _STOP}]}),
]


def _check_logit_bias(value: Any) -> Any:
    if not isinstance(value, dict):
        raise invalid("must be an object from token ids to numbers")
    if len(value) > MAX_LOGIT_BIAS:
        raise invalid(f"must have at most {MAX_LOGIT_BIAS} entries, not {len(value)}")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10):
            raise invalid(f"must have token ids, written as whole numbers, for keys, not {key[:32]!r}")
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise invalid(f"must have numbers from -100 to 100 for values; that of key {key!r} is not one")
        biases[int(key)] = float(bias)
    return biases


LogitBias = Annotated[
    dict[int, float],
    BeforeValidator(_check_logit_bias),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MAX_LOGIT_BIAS,
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        }
    ),
]


def _check_top_k(value: Any) -> Any:
    if type(value) is int and value < -1:
        raise invalid("must be at least 1, or 0 or -1 for no limit")
    return 0 if type(value) is int and value == -1 else value


TopK = Annotated[
    int,
    BeforeValidator(_check_top_k),
    Field(ge=0, le=MAX_COUNT),
    WithJsonSchema({"type": "integer", "minimum": -1, "maximum": MAX_COUNT}),
]


def _check_seed(value: Any) -> Any:
    return None if type(value) is int and value == -1 else value


Seed = Annotated[Annotated[int, Field(ge=MIN_SENT_SEED, le=MAX_SENT_SEED)] | None, BeforeValidator(_check_seed)]


def _empty_is_unset(value: Any) -> Any:
    return None if value == "" else value


OptionalText = Annotated[str | None, BeforeValidator(_empty_is_unset)]
"""A string that may be left out; an empty one is as good as none."""


class StreamOptions(Strict):
    """What a stream carries besides text."""

    include_usage: bool = False
    """A last chunk with the usage of the whole request."""
    continuous_usage_stats: bool = False
    """The usage so far in every chunk."""
    include_drafts: bool = False
    """What is not settled yet, beside each delta."""
    include_obfuscation: Literal[False] = False
    """OpenAI's padding of chunks, which this server does not add."""


class GenerationRequest(Strict):
    """The fields that every endpoint which generates has in common."""

    endpoint: ClassVar[EndpointName]
    id_prefix: ClassVar[str]
    """What the ids of its answers begin with."""
    prompt_param: ClassVar[str]
    """The field that holds the prompt."""

    model: OptionalText = None
    """The served name, or an alias that also chooses the decoding mode. May be left out."""
    max_tokens: Annotated[int | None, Field(ge=1, le=MAX_COUNT)] = None
    """Most tokens to generate. Unset: the rest of the context."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the likeliest tokens that together have this probability."""
    top_k: TopK = 0
    """Sample among this many likeliest tokens; 0 or -1: no limit."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Sample among tokens at least this likely, relative to the likeliest."""
    seed: Seed = None
    """The same request with the same seed gives the same text in ar, speculative and auto. Drawn if unset or -1."""
    n: Annotated[int, Field(ge=1, le=1024)] = 1
    """Answers to give for each prompt."""
    stop: Stops = Field(default=[])
    """Strings that end the answer; the text ends before them. They count once there are min_tokens tokens."""
    include_stop_str_in_output: bool = False
    """The text ends with the stop string, not before it."""
    stop_token_ids: list[int] = Field(default=[], max_length=MAX_STOP_TOKENS, fail_fast=True)
    """Tokens that end the answer."""
    ignore_eos: bool = False
    """The model's own end tokens are never generated: the answer runs on to max_tokens. A grammar still ends it."""
    min_tokens: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    """End tokens are banned, and stop strings ignored, until so many tokens have been generated."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Lowers the logits of tokens that the answer already holds."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Lowers the logits of tokens by how often the answer holds them."""
    repetition_penalty: Annotated[float, Field(ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)] = 1.0
    """Divides the logits of tokens that prompt or answer already hold; 1: off."""
    logit_bias: LogitBias = Field(default={})
    """Token ids and what is added to their logits."""
    stream: bool = False
    """Answer with server-sent events as the text settles."""
    stream_options: StreamOptions | None = None
    """What a stream carries besides text."""
    priority: Annotated[int, Field(ge=-MAX_COUNT, le=MAX_COUNT)] = 0
    """Lower is served first."""
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] = ""
    """The prefix cache is shared only among requests with the same salt."""
    decoding: Literal["auto", "ar", "speculative", "diffusion"] | None = None
    """How to decode. Unset: the model's best exact mode."""
    # The three below have their range in the engine's validation: its upper end depends on the model.
    block_length: Annotated[int | None, SPECULATES, WithJsonSchema({"type": "integer", "minimum": 2})] = None
    """Tokens refined together (auto, speculative, diffusion). Unset: the model's own."""
    threshold: Annotated[
        float | None,
        FieldFacts(modes=("diffusion",), null_has_meaning=True),
        WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
    ] = None
    """Diffusion: unmask at this confidence or above. Unset: the model's own. null: an even schedule."""
    max_denoising_steps: Annotated[int | None, DENOISES, WithJsonSchema({"type": "integer", "minimum": 1})] = None
    """Diffusion: most passes a block may take. Unset: the block's length."""
    remasking: Annotated[Remasking | None, DENOISES] = None
    """Diffusion: which masks a step unmasks first; GET /v1/models lists the values. Unset: the first; with a threshold,
    the first that goes by confidence."""
    unmasking: Annotated[Unmasking, DENOISES] = "threshold"
    """Diffusion: the rule for a confidence (docs/OPERATIONS.md#unmasking). threshold: it reaches the threshold."""
    factor: Annotated[float, DENOISES, Field(gt=0, le=MAX_FACTOR)] = 2.0
    """Of unmasking `factor` and `bound`: the k-th most confident position reaches 1 - factor / (k + 1), too."""
    bound: Annotated[float, DENOISES, Field(gt=0, le=1)] = 0.45
    """Of unmasking `bound`: the least confidence where the factor is enough."""
    diffusing: bool = False
    """A stream in Mercury's form: each chunk holds the whole text so far, masks included."""
    response_format: ResponseFormat | None = None
    """Text, JSON, or JSON of a schema. Not with a suffix."""
    structured_outputs: StructuredOutputs | None = None
    """A regular expression, a choice, or a JSON schema. Not with a suffix."""

    @property
    def infills(self) -> bool:
        """The answer fills a gap between two given texts."""
        return False

    @property
    def wanted_logprobs(self) -> int | None:
        """Likeliest tokens to list beside each token of the answer; None: no log-probabilities."""
        raise NotImplementedError

    @property
    def options(self) -> StreamOptions:
        """`stream_options`, or its defaults."""
        return self.stream_options or StreamOptions()

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise invalid("'stream_options' is only allowed when 'stream' is enabled")
        if self.diffusing and not self.stream:
            raise invalid("'diffusing' requires 'stream': true")
        if self.diffusing and self.options.include_drafts:
            raise invalid("'diffusing' and 'stream_options.include_drafts' are two forms of one thing: choose one")
        return self


_SHOULD = re.compile(r"\w+ (should .+)", re.DOTALL)
"""pydantic's messages begin with the kind of value: "Input should be ...", "String should match ..."."""

_Generation = TypeVar("_Generation", bound=GenerationRequest)
_Model = TypeVar("_Model", bound=Strict)


def parse_generation(kind: type[_Generation], data: Any) -> _Generation:
    """A generation request out of a JSON value. Raises BadRequest that names the first field at fault."""
    return parse(kind, take_known(_as_object(data), kind.endpoint, kind.model_fields))


def parse(kind: type[_Model], data: Any) -> _Model:
    """Any request out of a JSON value. Raises BadRequest that names the first field at fault."""
    try:
        return kind.model_validate(_as_object(data))
    except ValidationError as exc:
        first, *others = exc.errors(include_url=False, include_input=False)
        # Of a union's branches, the one that was followed deepest is the one that was meant.
        same = [error for error in others if error["loc"][: len(first["loc"]) - 1] == first["loc"][:-1]]
        raise _to_bad_request(max([first, *same], key=lambda error: len(error["loc"])), kind) from None


def _as_object(data: Any) -> dict[str, Any]:
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
