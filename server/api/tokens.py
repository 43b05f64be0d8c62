"""POST /tokenize and /detokenize, for clients that count tokens or build prompts themselves."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Self

from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from server.api.chat.messages import Messages
from server.api.chat.request import check_ending, ending_of
from server.api.common import json_response, parse_body, service_of
from server.api.fields import Strict, invalid
from server.api.parameters.parsing import parse
from server.api.parameters.values import OptionalText
from server.api.responses import Count, Response
from server.http.errors import BadRequest
from server.text.chat_template import Chat
from server.text.served_model import run_encoding

router = APIRouter()


class TokenizeRequest(Strict):
    """POST /tokenize: a completion prompt or a chat."""

    model: OptionalText = None
    """The served name, or an alias. May be left out."""
    prompt: str | None = None
    """Text. Control tokens may be spelled; the mask never is one."""
    messages: Messages | None = None
    """A conversation, through the model's chat template."""
    add_special_tokens: bool = True
    """Put BOS in front, as generation does."""
    add_generation_prompt: bool = True
    """As in a chat; only with messages."""
    continue_final_message: bool = False
    """As in a chat; only with messages."""
    return_token_strs: bool = False
    """Tell the text of each token, too."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise invalid("exactly one of 'prompt' and 'messages' must be given")
        if self.messages is not None and not self.add_special_tokens:
            raise invalid("'add_special_tokens': false has no meaning with 'messages'")
        if self.messages is None and (self.continue_final_message or not self.add_generation_prompt):
            raise invalid("'add_generation_prompt' and 'continue_final_message' have no meaning with 'prompt'")
        check_ending(self.model_fields_set, self.continue_final_message, self.add_generation_prompt)
        return self


class DetokenizeRequest(Strict):
    """POST /detokenize"""

    model: OptionalText = None
    """The served name, or an alias. May be left out."""
    tokens: Annotated[list[int], Field(fail_fast=True)]
    """Token ids."""


class Tokens(Response):
    """The answer of /tokenize."""

    tokens: list[Count]
    count: Count
    max_model_len: Count
    token_strs: list[str] | UnsetType = UNSET
    """The text of each token; only with return_token_strs."""


class Prompt(Response):
    """The answer of /detokenize."""

    prompt: str


@router.post("/tokenize")
async def tokenize(request: Request) -> HttpResponse:
    """Tokens of a prompt or a chat, as generation would see them."""
    model = service_of(request).require_model()
    fields = await parse_body(request, partial(parse, TokenizeRequest))
    model.check_name(fields.model)
    if fields.messages is not None:
        ending = ending_of(fields.continue_final_message, fields.add_generation_prompt)
        messages = [message.for_template() for message in fields.messages]
        tokens = (await model.chat_prompt(Chat(messages, ending=ending))).token_ids
    else:
        [tokens] = await model.encode_prompts([fields.prompt or ""], add_bos=fields.add_special_tokens)
    texts = list(map(model.tokenizer.texts.token_text, tokens)) if fields.return_token_strs else UNSET
    length = model.info.max_model_len
    return json_response(Tokens(tokens=tokens, count=len(tokens), max_model_len=length, token_strs=texts))


@router.post("/detokenize")
async def detokenize(request: Request) -> HttpResponse:
    """Text of tokens, control tokens spelled out."""
    model = service_of(request).require_model()
    fields = await parse_body(request, lambda data: parse(DetokenizeRequest, _bounded(data, model.info.max_model_len)))
    model.check_name(fields.model)
    vocab_size = model.info.vocab_size
    for token in fields.tokens:
        if not 0 <= token < vocab_size:
            message = f"Token id {token} is outside the vocabulary [0, {vocab_size})."
            raise BadRequest(message, "tokens", "invalid_token_id")
    decode = partial(model.tokenizer.decode, fields.tokens, skip_special_tokens=False)
    return json_response(Prompt(prompt=await run_encoding(decode, len(fields.tokens))))


def _bounded(data: Any, max_model_len: int) -> Any:
    """The request as sent. Raises BadRequest for more tokens than a text of this model can have."""
    tokens = data.get("tokens") if isinstance(data, dict) else None
    if isinstance(tokens, list) and len(tokens) > max_model_len:
        message = f"This model's maximum context length is {max_model_len} tokens; 'tokens' has {len(tokens)}."
        raise BadRequest(message, "tokens", "context_length_exceeded")
    return data
