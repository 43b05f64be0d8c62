"""The base of the request models, and the tables of fields that are accepted without effect or refused.

Every field a client may send is either a field of a request model, where its type, range and meaning stand, and does
what it says there; or it is in one of the two tables below. `null` means "not sent", except where a FieldFacts says
otherwise.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from server.generation.job import EndpointName
from server.http.errors import BadRequest


class Strict(BaseModel):
    """A JSON object of exactly the declared fields and types. The string below a field describes it to clients.

    A null is a field that was not sent, and a whole number may be written as 1.0: languages differ in that.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True, frozen=True,
        use_attribute_docstrings=True,
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        return {
            name: int(value) if type(value) is float and value.is_integer() and _is_integer(fields.get(name)) else value
            for name, value in data.items()
            if value is not None or name not in fields or FieldFacts.of(fields[name]).null_has_meaning
        }


def _is_integer(field: FieldInfo | None) -> bool:
    """The field's type is a whole number, or nothing."""
    if field is None:
        return False
    union = get_args(field.annotation) or (field.annotation,)
    kinds = {get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in union}
    return kinds - {type(None)} == {int}


def invalid(message: str) -> PydanticCustomError:
    """The error of a validator. The message continues "it ...", or names the fields of a wrong combination."""
    return PydanticCustomError("lightcone", "{message}", {"message": message})


def not_here(hint: str) -> tuple[BeforeValidator, WithJsonSchema]:
    """The metadata of a field that an endpoint does not share with the others: it may be null, and nothing else."""

    def refuse(value: Any) -> Any:
        if value is not None:
            raise invalid(f"has no meaning at this endpoint: {hint}")
        return value

    return BeforeValidator(refuse), WithJsonSchema({"type": "null"})


def _refuse_true(value: Any) -> Any:
    if value is True:
        raise invalid("has no meaning at this endpoint: it tells text, and no tokens")
    return value


FALSE_HERE = (BeforeValidator(_refuse_true), WithJsonSchema({"type": "boolean", "const": False}))
"""The metadata of a switch that an endpoint does not share with the others: it may be false, and nothing else."""


@dataclass(frozen=True)
class FieldFacts:
    """Stands among the metadata of a request model's field (`typing.Annotated`)."""

    modes: tuple[str, ...] = ()
    """Decoding modes in which the field means something; in any other it is refused. Empty: it has a meaning in all."""
    null_has_meaning: bool = False
    """A `null` that was sent is a value, not an unset field."""

    @classmethod
    def of(cls, field: FieldInfo) -> FieldFacts:
        """The facts of a field; the defaults where none are given."""
        return next((fact for fact in field.metadata if isinstance(fact, cls)), cls())


WITHOUT_EFFECT: dict[str, tuple[type, ...]] = {
    "user": (str,),
    "metadata": (dict,),
    "service_tier": (str,),
    "prompt_cache_key": (str,),
    "safety_identifier": (str,),
    "session_id": (str,),
}
"""Fields of OpenAI and vLLM that cannot change text, with the types they must have."""


@dataclass(frozen=True)
class Unsupported:
    """A known field that this server does not implement: it is refused unless it has a neutral value."""

    neutral: tuple[Any, ...] = ()
    """Values that ask for nothing; the first one is told to clients."""
    endpoints: tuple[EndpointName, ...] = ("completions", "chat")
    hint: str = ""
    neutral_in_chat: tuple[Any, ...] | None = None
    """Those of the chat endpoint, where they differ."""

    def neutral_at(self, endpoint: EndpointName) -> tuple[Any, ...]:
        """The neutral values at an endpoint."""
        return self.neutral_in_chat if endpoint == "chat" and self.neutral_in_chat is not None else self.neutral


_CHAT: tuple[EndpointName, ...] = ("chat",)
_RESPONSES: tuple[EndpointName, ...] = ("responses",)
_CHATS: tuple[EndpointName, ...] = ("chat", "responses")
_MESSAGES: tuple[EndpointName, ...] = ("messages",)
_COMPLETIONS: tuple[EndpointName, ...] = ("completions",)

UNSUPPORTED: dict[str, Unsupported] = {
    "store": Unsupported((False,)),
    "best_of": Unsupported((1,), hint="Use 'n' and choose among the answers."),  # equal to n is neutral, too
    "use_beam_search": Unsupported((False,)),
    "length_penalty": Unsupported((1.0,)),
    "early_stopping": Unsupported((False,)),
    "typical_p": Unsupported((1.0,)),
    "spaces_between_special_tokens": Unsupported((True, False)),
    "detokenize": Unsupported((True,)),
    "logits_processors": Unsupported(([],)),
    "guided_json": Unsupported(hint="Use 'structured_outputs': {'json': ...}."),
    "guided_regex": Unsupported(hint="Use 'structured_outputs': {'regex': ...}."),
    "guided_choice": Unsupported(hint="Use 'structured_outputs': {'choice': ...}."),
    "guided_grammar": Unsupported(hint="Use 'structured_outputs': {'grammar': ...}."),
    "guided_json_object": Unsupported((False,), hint="Use 'structured_outputs': {'json_object': true}."),
    "guided_decoding_backend": Unsupported(hint="Use 'structured_outputs': there is one grammar library."),
    "guided_whitespace_pattern": Unsupported(hint="Use 'structured_outputs' with 'disable_any_whitespace'."),
    "structural_tag": Unsupported(),
    "regex": Unsupported((), hint="Use 'structured_outputs'."),
    "ebnf": Unsupported(hint="Use 'structured_outputs': {'grammar': ...}."),
    "no_stop_trim": Unsupported((False,), hint="Use 'include_stop_str_in_output'."),
    "request_id": Unsupported((), hint="Send the header 'x-request-id'."),
    "kv_transfer_params": Unsupported(({},)),
    "ec_transfer_params": Unsupported(({},)),
    "vllm_xargs": Unsupported(({},)),
    "repetition_detection": Unsupported(),
    "thinking_token_budget": Unsupported((-1,)),
    "stream_interval": Unsupported((1,)),
    "watermarking": Unsupported((False,)),
    "routed_experts_prompt_start": Unsupported((0,)),
    "return_token_offsets": Unsupported((False,)),
    "return_mm_kwargs": Unsupported((True, False)),  # there are none
    "return_hidden_states": Unsupported((False,)),
    "lora_path": Unsupported(),
    "prompt_embeds": Unsupported((), _COMPLETIONS),
    "stream_reasoning": Unsupported((True,), _CHAT),
    "return_prompt_text": Unsupported((False,), _CHAT),
    "media_io_kwargs": Unsupported(({},), _CHAT),
    "mm_processor_kwargs": Unsupported(({},), _CHAT),
    "max_completion_tokens": Unsupported((), _COMPLETIONS, hint="Use 'max_tokens'."),
    "top_logprobs": Unsupported((0,), _COMPLETIONS, hint="Use 'logprobs': k."),
    "messages": Unsupported((), ("completions", "responses"), hint="Use /v1/chat/completions."),
    "prompt": Unsupported((), _CHATS, hint="Send its text, or use /v1/completions."),
    "echo": Unsupported((False,), _CHAT),
    "suffix": Unsupported((), _CHAT, hint="Use /v1/completions."),
    "chat_template": Unsupported((), _CHAT),
    "documents": Unsupported(([],), _CHAT),
    "functions": Unsupported(([],), _CHAT, hint="Use 'tools'."),
    "function_call": Unsupported(("none", "auto"), _CHAT, hint="Use 'tool_choice'."),
    "modalities": Unsupported((["text"],), _CHAT),
    "audio": Unsupported((), _CHAT),
    "prediction": Unsupported((), _RESPONSES, hint="Use /v1/chat/completions."),
    "web_search_options": Unsupported((), _CHAT),
    "prompt_cache_options": Unsupported((), _CHATS),
    "prompt_cache_retention": Unsupported((), _CHATS),
    "moderation": Unsupported((), _CHATS),
    "conversation": Unsupported((), _RESPONSES, hint="Use 'previous_response_id'."),
    "context_management": Unsupported(
        ([], {"edits": []}, {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}), ("responses", "messages")
    ),  # the whole conversation is read
    "access_programs": Unsupported((), _RESPONSES),
    "background_options": Unsupported((), _RESPONSES),
    "image": Unsupported((), _RESPONSES),
    "container": Unsupported((), _MESSAGES),
    "diagnostics": Unsupported((), _MESSAGES),
    "inference_geo": Unsupported((), _MESSAGES),
    "mcp_servers": Unsupported(([],), _MESSAGES),
    "speed": Unsupported(("standard",), _MESSAGES),
}


def take_known(data: dict[str, Any], endpoint: EndpointName, fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """The fields of a request as sent that a request model reads.

    Raises BadRequest for the first field that is unknown, or that is in a table above and has a value it may not have.
    """
    taken: dict[str, Any] = {}
    for name, value in data.items():
        if name in fields:
            taken[name] = value
        elif name in WITHOUT_EFFECT:
            if value is not None and not isinstance(value, WITHOUT_EFFECT[name]):
                raise BadRequest(f"Invalid type for '{name}'.", name, "invalid_type")
        elif name in UNSUPPORTED and endpoint in UNSUPPORTED[name].endpoints:
            _check_neutral(name, value, data, endpoint)
        else:
            raise unknown_parameter(name, fields)
    return taken


def check_modes(
    sent: Iterable[str], fields: Mapping[str, FieldInfo], decoding: str, available: Iterable[str], *, infill: bool
) -> None:
    """Raises BadRequest for a field that was sent and means nothing in the mode. Infill is done by diffusion.

    available: the model's modes.
    """
    mode = "diffusion" if infill else decoding
    for name in sent:
        modes = FieldFacts.of(fields[name]).modes
        if not modes or mode in modes:
            continue
        if infill:
            message = f"'{name}' has no meaning with a 'suffix', before which the gap is filled by diffusion."
        elif not {*modes} & {*available}:
            message = (
                f"'{name}' has no meaning with decoding '{decoding}', and this model has none of those for which it "
                f"has one: {', '.join(modes)}."
            )
        else:
            message = f"'{name}' has no meaning with decoding '{decoding}'; it is valid with: {', '.join(modes)}."
        raise BadRequest(message, name, "unsupported_parameter")


def unknown_parameter(name: str, known: Iterable[str], prefix: str = "") -> BadRequest:
    """The error for a field that nobody knows: OpenAI's wording, with the nearest known name."""
    shown = prefix + (name if len(name) <= 64 else name[:64] + "...")
    near = difflib.get_close_matches(name[:64], sorted(known), 1)
    hint = f" Did you mean '{prefix}{near[0]}'?" if near else ""
    return BadRequest(f"Unknown parameter: '{shown}'.{hint}", shown, "unknown_parameter")


def _check_neutral(name: str, value: Any, data: dict[str, Any], endpoint: EndpointName) -> None:
    entry = UNSUPPORTED[name]
    neutral = entry.neutral_at(endpoint)
    accepted = (*neutral, data.get("n") or 1) if name == "best_of" else neutral
    if value is None or any(_same(value, candidate) for candidate in accepted):
        return
    valid = f"leave it out or send {_shown(neutral[0])}" if neutral else "leave it out"
    hint = f" {entry.hint}" if entry.hint else ""
    raise BadRequest(f"'{name}' is not supported with this value: {valid}.{hint}", name, "unsupported_parameter")


def _same(value: Any, candidate: Any) -> bool:
    """Equality that tells true from 1, as JSON does."""
    return (isinstance(value, bool) is isinstance(candidate, bool)) and bool(value == candidate)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
