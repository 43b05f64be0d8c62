"""Requests as clients send them: strict types, finite numbers, bounds on everything that costs.

Only fields that do something are here; the tables in `parameters` hold the rest.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from engine.request import MAX_SEED
from server.api.fields import Endpoint, take_known, unknown_parameter
from server.api.structured_outputs import JsonSchemaFormat, ResponseFormat, StructuredOutputs
from server.http.errors import BadRequest

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKENS = 128
MAX_MESSAGES = 4096

Prompt = str | list[str] | list[int] | list[list[int]]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("lightcone", "{message}", {"message": message})


def _is_ids(value: list[Any]) -> bool:
    return all(type(item) is int for item in value)


def _check_prompt(value: Any) -> Any:
    """A plain check instead of a union: one clear message, and no list is walked four times."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if not value:
            raise _wrong("must not be an empty list")
        if all(type(item) is str for item in value) or _is_ids(value):
            return value
        if all(type(item) is list and item and _is_ids(item) for item in value):
            return value
    raise _wrong("must be a string, a list of strings, a list of token ids or a list of lists of token ids")


def _check_stop(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(type(stop) is str for stop in stops):
        raise _wrong("must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise _wrong(f"must have at most {MAX_STOPS} strings, not {len(stops)}")
    for stop in stops:
        if not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise _wrong(f"must hold strings of 1 to {MAX_STOP_LENGTH} characters")
    return stops


def _check_logit_bias(value: Any) -> Any:
    if not isinstance(value, dict):
        raise _wrong("must be an object from token ids to numbers")
    if len(value) > MAX_LOGIT_BIAS:
        raise _wrong(f"must have at most {MAX_LOGIT_BIAS} entries, not {len(value)}")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10):
            raise _wrong("must have token ids, written as whole numbers, for keys")
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise _wrong("must have numbers from -100 to 100 for values")
        biases[int(key)] = float(bias)
    return biases


def _check_top_k(value: Any) -> Any:
    if type(value) is int and value < -1:
        raise _wrong("must be at least 1, or 0 or -1 for no limit")
    return 0 if type(value) is int and value == -1 else value


class StreamOptions(_Strict):
    """What a stream carries besides text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_drafts: bool = False


class GenerationParams(_Strict):
    """What both endpoints have in common."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, BeforeValidator(_check_top_k), Field(ge=0, le=2**31)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    n: Annotated[int, Field(ge=1, le=1024)] = 1
    stop: Annotated[list[str], BeforeValidator(_check_stop)] = []
    stop_token_ids: Annotated[list[int], Field(max_length=MAX_STOP_TOKENS)] = []
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0, le=2**31)] = 0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    logit_bias: Annotated[dict[int, float], BeforeValidator(_check_logit_bias)] = {}
    stream: bool = False
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31)] = 0
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] = ""
    decoding: Literal["auto", "ar", "speculative", "diffusion"] | None = None
    block_length: int | None = None
    threshold: float | None = None
    """Unset means the default, null an even schedule: see `model_fields_set`."""
    max_denoising_steps: int | None = None
    diffusing: bool = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def options(self) -> StreamOptions:
        """The stream's options, or none of them."""
        return self.stream_options or StreamOptions()

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise _wrong("'stream_options' is only allowed when 'stream' is enabled")
        if self.diffusing and not self.stream:
            raise _wrong("'diffusing' requires 'stream': true")
        if self.diffusing and self.options.include_drafts:
            raise _wrong("'diffusing' and 'stream_options.include_drafts' are two forms of one thing: choose one")
        return self


class CompletionRequest(GenerationParams):
    """POST /v1/completions"""

    prompt: Annotated[Prompt, BeforeValidator(_check_prompt)]
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False
    suffix: str | None = None
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    """0 only with `echo`: the prompt alone, with its log-probabilities if they are asked for."""

    @model_validator(mode="after")
    def _check_completion(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise _wrong("'max_tokens' must be at least 1, or 0 with 'echo'")
        if self.echo and self.suffix is not None:
            raise _wrong("'echo' and 'suffix' cannot be combined: the answer to a suffix is the middle only")
        if self.diffusing and self.logprobs is not None:
            raise _wrong("'logprobs' cannot be combined with 'diffusing', whose chunks replace each other")
        return self


class TextPart(_Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


def _check_content(value: Any) -> Any:
    if isinstance(value, list):
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text":
                raise _wrong(f"has a part of type {str(kind)[:32]!r}; this model takes only parts of type 'text'")
        return value
    if not isinstance(value, str):
        raise _wrong("must be a string or a list of text parts")
    return value


class Message(_Strict):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | list[TextPart], BeforeValidator(_check_content)]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None

    @property
    def text(self) -> str:
        """The content as one string; parts are separate lines."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class ChatRequest(GenerationParams):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise _wrong("'top_logprobs' requires 'logprobs': true")
        if self.diffusing and self.logprobs:
            raise _wrong("'logprobs' cannot be combined with 'diffusing', whose chunks replace each other")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise _wrong("'max_tokens' and 'max_completion_tokens' differ: send one of them")
        return self


class TokenizeRequest(_Strict):
    """POST /tokenize: a completion prompt or a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise _wrong("exactly one of 'prompt' and 'messages' must be given")
        if self.messages is not None and not self.add_special_tokens:
            raise _wrong("'add_special_tokens': false has no meaning with 'messages'")
        return self


class DetokenizeRequest(_Strict):
    """POST /detokenize"""

    model: str | None = None
    tokens: list[int]


_Generation = TypeVar("_Generation", bound=GenerationParams)
_Model = TypeVar("_Model", bound=BaseModel)


def parse_generation(kind: type[_Generation], endpoint: Endpoint, data: Any) -> _Generation:
    """A generation request out of a JSON value. Raises BadRequest."""
    return parse(kind, take_known(_as_object(data), endpoint, kind.model_fields))


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


def _to_bad_request(error: ErrorDetails, kind: type[BaseModel]) -> BadRequest:
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
    verb = message[len("Input should ") :] if message.startswith("Input should ") else message
    text = f"should {verb}" if verb is not message else message[:1].lower() + message[1:]
    return BadRequest(f"Invalid value for '{name}': it {text}.", name, "invalid_value")


def _known_fields(kind: type[BaseModel], path: list[int | str]) -> list[str]:
    """Field names of the model that the path leads to; empty where that is not a model."""
    names: dict[str, type[BaseModel]] = {
        "stream_options": StreamOptions,
        "messages": Message,
        "content": TextPart,
        "response_format": ResponseFormat,
        "json_schema": JsonSchemaFormat,
        "structured_outputs": StructuredOutputs,
    }
    last = next((part for part in reversed(path) if isinstance(part, str)), None)
    if last is None:
        return list(kind.model_fields)
    return list(names[last].model_fields) if last in names else []
