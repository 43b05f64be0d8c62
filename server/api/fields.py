"""The honest-parameter rule as tables: what is accepted without effect, and what is refused unless it is neutral.

Everything else a client may send is a field of the models in `schema`, and does what it says. `null` always means
"not sent", except for fields in `NULL_HAS_MEANING`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from server.http.errors import BadRequest

Endpoint = Literal["completions", "chat"]

NULL_HAS_MEANING = frozenset({"threshold"})
"""`threshold: null` asks for an even schedule."""

WITHOUT_EFFECT: dict[str, tuple[type, ...]] = {
    "user": (str,),
    "metadata": (dict,),
    "service_tier": (str,),
    "prompt_cache_key": (str,),
    "safety_identifier": (str,),
}
"""OpenAI's fields that cannot change text, with the types they must have."""


@dataclass(frozen=True)
class Unsupported:
    """A known field this server does not implement: only its neutral values are accepted."""

    neutral: tuple[Any, ...] = ()
    endpoints: tuple[Endpoint, ...] = ("completions", "chat")
    hint: str = ""


_CHAT: tuple[Endpoint, ...] = ("chat",)
_COMPLETIONS: tuple[Endpoint, ...] = ("completions",)

UNSUPPORTED: dict[str, Unsupported] = {
    "store": Unsupported((False,)),
    "best_of": Unsupported((1,), hint="Use 'n' and choose among the answers."),  # equal to n is neutral, too
    "use_beam_search": Unsupported((False,)),
    "length_penalty": Unsupported((1.0,)),
    "early_stopping": Unsupported((False,)),
    "typical_p": Unsupported((1.0,)),
    "skip_special_tokens": Unsupported((True,)),
    "spaces_between_special_tokens": Unsupported((True, False)),
    "include_stop_str_in_output": Unsupported((False,)),
    "detokenize": Unsupported((True,)),
    "allowed_token_ids": Unsupported(),
    "bad_words": Unsupported(([],), hint="Use 'logit_bias'."),
    "prompt_logprobs": Unsupported(),
    "truncate_prompt_tokens": Unsupported(),
    "return_tokens_as_token_ids": Unsupported((False,)),
    "return_token_ids": Unsupported((False,)),
    "logits_processors": Unsupported(([],)),
    "guided_json": Unsupported(),
    "guided_regex": Unsupported(),
    "guided_choice": Unsupported(),
    "guided_grammar": Unsupported(),
    "add_special_tokens": Unsupported((True,), _COMPLETIONS),
    "max_completion_tokens": Unsupported((), _COMPLETIONS, hint="Use 'max_tokens'."),
    "top_logprobs": Unsupported((0,), _COMPLETIONS, hint="Use 'logprobs': k."),
    "messages": Unsupported((), _COMPLETIONS, hint="Use /v1/chat/completions."),
    "prompt": Unsupported((), _CHAT, hint="Use 'messages', or /v1/completions."),
    "echo": Unsupported((False,), _CHAT),
    "suffix": Unsupported((), _CHAT, hint="Use /v1/completions."),
    "add_generation_prompt": Unsupported((True,), _CHAT),
    "continue_final_message": Unsupported((False,), _CHAT),
    "chat_template": Unsupported((), _CHAT),
    "chat_template_kwargs": Unsupported(({},), _CHAT),
    "documents": Unsupported(([],), _CHAT),
    "tools": Unsupported(([],), _CHAT),
    "tool_choice": Unsupported(("none", "auto"), _CHAT),
    "parallel_tool_calls": Unsupported((True, False), _CHAT),
    "functions": Unsupported(([],), _CHAT),
    "function_call": Unsupported(("none", "auto"), _CHAT),
    "modalities": Unsupported((["text"],), _CHAT),
    "audio": Unsupported((), _CHAT),
    "prediction": Unsupported((), _CHAT),
    "reasoning_effort": Unsupported(("none",), _CHAT),
    "verbosity": Unsupported(("medium",), _CHAT),
    "web_search_options": Unsupported((), _CHAT),
    "prompt_cache_options": Unsupported((), _CHAT),
    "prompt_cache_retention": Unsupported((), _CHAT),
    "moderation": Unsupported((), _CHAT),
}

DECODING_FIELDS: dict[str, tuple[str, ...]] = {
    "block_length": ("auto", "speculative", "diffusion"),
    "threshold": ("diffusion",),
    "max_denoising_steps": ("diffusion",),
}
"""Fields that mean something only in these modes; anywhere else they are refused."""


def take_known(data: dict[str, Any], endpoint: Endpoint, fields: Iterable[str]) -> dict[str, Any]:
    """The fields that matter, out of a request as sent. Raises BadRequest for the rest, naming the first at fault."""
    known = set(fields)
    taken: dict[str, Any] = {}
    for name, value in data.items():
        if name in known:
            if value is not None or name in NULL_HAS_MEANING:
                taken[name] = value
        elif name in WITHOUT_EFFECT:
            if value is not None and not isinstance(value, WITHOUT_EFFECT[name]):
                raise BadRequest(f"Invalid type for '{name}'.", name, "invalid_type")
        elif name in UNSUPPORTED and endpoint in UNSUPPORTED[name].endpoints:
            _check_neutral(name, value, data)
        else:
            raise unknown_parameter(name, known)
    return taken


def unknown_parameter(name: str, known: Iterable[str], prefix: str = "") -> BadRequest:
    """OpenAI's wording, with the nearest name the server knows."""
    shown = prefix + (name if len(name) <= 64 else name[:64] + "...")
    near = difflib.get_close_matches(name[:64], sorted(known), 1)
    hint = f" Did you mean '{prefix}{near[0]}'?" if near else ""
    return BadRequest(f"Unknown parameter: '{shown}'.{hint}", shown, "unknown_parameter")


def _check_neutral(name: str, value: Any, data: dict[str, Any]) -> None:
    entry = UNSUPPORTED[name]
    neutral = (*entry.neutral, data.get("n") or 1) if name == "best_of" else entry.neutral
    if value is None or any(_same(value, candidate) for candidate in neutral):
        return
    valid = f"leave it out or send {_shown(entry.neutral[0])}" if entry.neutral else "leave it out"
    hint = f" {entry.hint}" if entry.hint else ""
    raise BadRequest(f"'{name}' is not supported with this value: {valid}.{hint}", name, "unsupported_parameter")


def _same(value: Any, candidate: Any) -> bool:
    """Equality that tells true from 1, as JSON does."""
    return (isinstance(value, bool) is isinstance(candidate, bool)) and bool(value == candidate)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def check_decoding_fields(sent: Iterable[str], decoding: str, *, infill: bool) -> None:
    """Refuses decoding fields that mean nothing in this mode. Infill is diffusion, whatever it is called."""
    mode = "diffusion" if infill else decoding
    for name in sent:
        modes = DECODING_FIELDS.get(name)
        if modes is not None and mode not in modes:
            raise BadRequest(
                f"'{name}' has no meaning with decoding '{decoding}'; it is valid with: {', '.join(modes)}.",
                name,
                "unsupported_parameter",
            )
