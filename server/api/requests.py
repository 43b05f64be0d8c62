"""The request models' common part.

A field's type, range, meaning and OpenAPI description stand here, or among the sampling fields, once; the endpoints'
own fields stand beside them.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, WithJsonSchema, model_validator

from engine.request import MAX_FACTOR, MAX_POST_STEPS, Editing, Remasking, Unmasking
from server.api.fields import FALSE_HERE, FieldFacts, Strict, invalid, not_here, take_known
from server.api.parameters.parsing import as_object, parse
from server.api.parameters.sampling import SamplingFields
from server.api.parameters.values import MAX_COUNT, MAX_LOGPROBS, ListedTokens, OptionalText
from server.api.structured_outputs import ResponseFormat, StructuredOutputs
from server.generation.job import EndpointName

SPECULATES = FieldFacts(modes=("auto", "speculative", "diffusion"))
SCORES = FieldFacts(modes=("ar", "speculative", "auto"))
DENOISES = FieldFacts(modes=("diffusion",))


class StreamOptions(Strict):
    """What a stream carries besides text."""

    include_usage: bool = False
    """A last chunk with the usage of the whole request."""
    continuous_usage_stats: bool = False
    """The usage so far in every chunk; only with include_usage."""
    include_drafts: bool = False
    """What is not settled yet, beside each delta."""
    include_obfuscation: Literal[False] = False
    """OpenAI's padding of chunks, which this server does not add."""


class GenerationRequest(SamplingFields):
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
    editing: Annotated[Editing | None, DENOISES] = None
    """Diffusion, models that edit: the published setting by which unmasked tokens may be replaced until their block
    settles; GET /v1/models lists the values. Unset: the first; off in an answer of a given form."""
    edit_threshold: Annotated[float | None, DENOISES, Field(ge=0, le=1)] = None
    """Editing: an unmasked token gives way to another one of more confidence than this. Unset: the setting's."""
    max_post_steps: Annotated[int | None, DENOISES, Field(ge=0, le=MAX_POST_STEPS)] = None
    """Editing: most passes that a block takes once it holds no mask. Unset: 16."""
    diffusing: bool = False
    """A stream in Mercury's form: each chunk holds the whole text so far, masks included."""
    include_drafts: bool = False
    """As stream_options.include_drafts, for clients that cannot send what they do not know there."""
    skip_special_tokens: bool = True
    """false: control tokens are spelled out in the text, but for the one that ends the answer."""
    prompt_logprobs: Annotated[int | None, SCORES, Field(ge=0, le=MAX_LOGPROBS)] = None
    """How many of the likeliest tokens to list beside each token of the prompt, with log-probabilities and ranks. Not
    in a stream."""
    logprob_token_ids: ListedTokens = ()
    """Tokens to list beside each token of the answer, in place of the likeliest. Needs logprobs."""
    unmasking_trace: Annotated[bool, DENOISES] = False
    """Diffusion: tell of each token of the answer its block, the denoising step that chose it, and its confidence."""
    return_token_ids: bool = False
    """Tell the ids of the prompt's tokens and of the answer's, an end token included."""
    return_tokens_as_token_ids: bool = False
    """Beside log-probabilities call tokens by their ids (token_id:7), which no two tokens share, not by their text."""
    response_format: ResponseFormat | None = None
    """Text, JSON, or JSON of a schema. Not with a suffix."""
    structured_outputs: StructuredOutputs | None = None
    """A regular expression, a choice, or a JSON schema. Not with a suffix."""

    @property
    def infills(self) -> bool:
        """The answer fills a gap between two given texts."""
        return False

    @property
    def predicted_text(self) -> str:
        """What the answer is thought to be; empty where there is no guess."""
        return ""

    @property
    def wanted_logprobs(self) -> int | None:
        """Likeliest tokens to list beside each token of the answer; None: no log-probabilities."""
        raise NotImplementedError

    @property
    def wants_drafts(self) -> bool:
        """Chunks tell what is not settled yet."""
        return self.include_drafts or self.options.include_drafts

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
        if self.include_drafts and not self.stream:
            raise invalid("'include_drafts' requires 'stream': true")
        if self.diffusing and self.wants_drafts:
            raise invalid("'diffusing' and 'stream_options.include_drafts' are two forms of one thing: choose one")
        if self.logprob_token_ids and self.wanted_logprobs is None:
            raise invalid("'logprob_token_ids' requires 'logprobs'")
        if self.stream and self.prompt_logprobs is not None:
            raise invalid("'prompt_logprobs' cannot be combined with 'stream'")
        if self.diffusing and self.unmasking_trace:
            raise invalid("'unmasking_trace' cannot be combined with 'diffusing', whose chunks replace each other")
        if self.diffusing and self.return_token_ids:
            raise invalid("'return_token_ids' cannot be combined with 'diffusing', whose chunks replace each other")
        return self


class TruncatedPrompt(Strict):
    """The part of a request whose prompt may be cut."""

    truncate_prompt_tokens: Annotated[int | None, Field(ge=-1, le=MAX_COUNT)] = None
    """Most tokens of the prompt, BOS included; the rest is left out. -1: what the context leaves beside max_tokens. Not
    with echo."""
    truncation_side: Literal["left", "right"] = "left"
    """Where a prompt that is too long is cut: left keeps its end, and BOS where there is one; right keeps its
    beginning."""

    @property
    def truncates(self) -> bool:
        """The prompt may be cut."""
        return self.truncate_prompt_tokens is not None

    @model_validator(mode="after")
    def _check_truncation(self) -> Self:
        if self.truncate_prompt_tokens == 0:
            raise invalid("'truncate_prompt_tokens' must be at least 1, or -1")
        return self


class UntoldTokens(Strict):
    """The part of a request whose answer tells text and no tokens: what would need them is refused.

    It stands in front of the request model that has these fields otherwise.
    """

    prompt_logprobs: Annotated[int | None, *not_here("use /v1/completions or /v1/chat/completions")] = None
    """Log-probabilities of a prompt are told by /v1/completions and /v1/chat/completions."""
    logprob_token_ids: Annotated[tuple[int, ...], *not_here("use /v1/completions or /v1/chat/completions")] = ()
    """Log-probabilities are told by /v1/completions and /v1/chat/completions."""
    unmasking_trace: Annotated[bool, *FALSE_HERE] = False
    """How tokens were unmasked is told by /v1/completions and /v1/chat/completions."""
    return_token_ids: Annotated[bool, *FALSE_HERE] = False
    """Ids of tokens are told by /v1/completions and /v1/chat/completions."""
    return_tokens_as_token_ids: Annotated[bool, *FALSE_HERE] = False
    """There are no log-probabilities that it could name."""

    @property
    def wanted_logprobs(self) -> int | None:
        return None


class SettledText(UntoldTokens, GenerationRequest):
    """The part of a request with one answer, of which what is told has settled."""

    n: Literal[1] = 1
    """A request has one answer."""
    diffusing: Literal[False] = False
    """Events hold text to append."""
    include_drafts: Literal[False] = False
    """Events hold what has settled."""


_Generation = TypeVar("_Generation", bound=GenerationRequest)


def shared_values(fields: GenerationRequest, otherwise: Container[str]) -> dict[str, Any]:
    """What was sent of the fields that all endpoints share, for a request that is made of this one.

    otherwise: fields that the other request has from elsewhere.
    """
    return {
        name: getattr(fields, name)
        for name in fields.model_fields_set
        if name in GenerationRequest.model_fields and name not in otherwise
    }


def parse_generation(kind: type[_Generation], data: Any) -> _Generation:
    """A generation request out of a JSON value. Raises BadRequest that names the first field at fault."""
    return parse(kind, take_known(as_object(data), kind.endpoint, kind.model_fields))
