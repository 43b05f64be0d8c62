"""POST /tokenize and /detokenize, for clients that count tokens or build prompts themselves."""

from __future__ import annotations

from typing import Self

from fastapi import APIRouter
from pydantic import model_validator
from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from server.api.chat.messages import Messages
from server.api.common import body_of, json_response, service_of
from server.api.fields import Strict, invalid
from server.api.requests import parse
from server.api.responses import Count, Response
from server.http.errors import BadRequest

router = APIRouter()


class TokenizeRequest(Strict):
    """POST /tokenize: a completion prompt or a chat."""

    model: str | None = None
    """The served name, or an alias. May be left out."""
    prompt: str | None = None
    """Text. Control tokens may be spelled; the mask never is one."""
    messages: Messages | None = None
    """A conversation, through the model's chat template."""
    add_special_tokens: bool = True
    """Put BOS in front, as generation does."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise invalid("exactly one of 'prompt' and 'messages' must be given")
        if self.messages is not None and not self.add_special_tokens:
            raise invalid("'add_special_tokens': false has no meaning with 'messages'")
        return self


class DetokenizeRequest(Strict):
    """POST /detokenize"""

    model: str | None = None
    """The served name, or an alias. May be left out."""
    tokens: list[int]
    """Token ids."""


class Tokens(Response):
    """The answer of /tokenize."""

    tokens: list[Count]
    count: Count
    max_model_len: Count


class Prompt(Response):
    """The answer of /detokenize."""

    prompt: str


@router.post("/tokenize")
async def tokenize(request: Request) -> HttpResponse:
    """Tokens of a prompt or a chat, as generation would see them."""
    model = service_of(request).require_model()
    fields = parse(TokenizeRequest, await body_of(request))
    model.check_name(fields.model)
    if fields.messages is not None:
        tokens = await model.encode_chat([message.for_template() for message in fields.messages])
    else:
        [tokens] = await model.encode_prompts([fields.prompt or ""], add_bos=fields.add_special_tokens)
    return json_response(Tokens(tokens=tokens, count=len(tokens), max_model_len=model.info.max_model_len))


@router.post("/detokenize")
async def detokenize(request: Request) -> HttpResponse:
    """Text of tokens, control tokens spelled out."""
    model = service_of(request).require_model()
    fields = parse(DetokenizeRequest, await body_of(request))
    model.check_name(fields.model)
    vocab_size = model.info.vocab_size
    for token in fields.tokens:
        if not 0 <= token < vocab_size:
            message = f"Token id {token} is outside the vocabulary [0, {vocab_size})."
            raise BadRequest(message, "tokens", "invalid_token_id")
    return json_response(Prompt(prompt=model.tokenizer.decode(fields.tokens, skip_special_tokens=False)))
