"""A well-formed request together with what it asks of the served model: decoding mode and grammar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.request import Decoding, Mode
from server.api.fields import check_modes
from server.api.requests import GenerationRequest
from server.api.structured_outputs import check_stop_tokens, refuse_infilled_grammar, requested_grammar
from server.generation.job import RequestedGrammar
from server.http.errors import BadRequest
from server.text.served_model import ServedModel

Fields = TypeVar("Fields", bound=GenerationRequest)


@dataclass(frozen=True)
class Call(Generic[Fields]):
    """The result of the first stage of a request: every field is well-formed and has a meaning in the mode.

    The prompt, and ranges that depend on the model, are checked in `prepare`.
    """

    fields: Fields
    decoding: Decoding
    """The mode by the name that the client knows."""
    mode: Mode
    """The mode that the engine runs it in."""
    grammar: RequestedGrammar | None


def validate(fields: Fields, model: ServedModel) -> Call[Fields]:
    """Chooses the decoding mode of a parsed request and checks its fields against it. Raises BadRequest or NotFound."""
    decoding = model.choose_decoding(fields.model, fields.decoding)
    known, modes = type(fields).model_fields, model.info.decodings
    check_modes(fields.model_fields_set, known, decoding, modes, infill=fields.infills)
    check_unmasking(fields)
    grammar = requested_grammar(fields.response_format, fields.structured_outputs)
    if grammar is not None:
        if fields.infills:
            refuse_infilled_grammar(grammar.param)
        check_stop_tokens(grammar, fields.stop_token_ids, model.tokenizer)
    mode: Mode = "infill" if fields.infills and decoding in ("auto", "diffusion") else decoding
    return Call(fields, decoding, mode, grammar)


def check_unmasking(fields: GenerationRequest) -> None:
    """Raises BadRequest for a parameter of an unmasking rule that is sent with another rule."""
    for name, rules in {"factor": ("factor", "bound"), "bound": ("bound",)}.items():
        if name in fields.model_fields_set and fields.unmasking not in rules:
            message = (
                f"'{name}' has no meaning with unmasking '{fields.unmasking}'; it is valid with: {', '.join(rules)}."
            )
            raise BadRequest(message, name, "unsupported_parameter")
