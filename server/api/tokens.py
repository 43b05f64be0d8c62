"""Text to token ids and back, for clients that count or build prompts themselves."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.common import json_response, service_of, takes
from server.api.requests import DetokenizeRequest, TokenizeRequest, parse
from server.http.body import read_json
from server.http.errors import BadRequest

router = APIRouter()


@router.post(
    "/tokenize",
    tags=["tokens"],
    summary="Tokens of a prompt or a chat, as generation would see them",
    openapi_extra=takes(TokenizeRequest),
)
async def tokenize(request: Request) -> Response:
    """Exactly one of `prompt` and `messages`."""
    service = service_of(request)
    model = service.require_model()
    params = parse(TokenizeRequest, await read_json(request, service.config.server))
    model.check_name(params.model)
    if params.messages is not None:
        tokens = await model.encode_chat(params.messages)
    else:
        [tokens] = await model.encode_prompts([params.prompt or ""], add_bos=params.add_special_tokens)
    return json_response({"tokens": tokens, "count": len(tokens), "max_model_len": model.info.max_model_len})


@router.post(
    "/detokenize",
    tags=["tokens"],
    summary="Text of tokens, control tokens spelled out",
    openapi_extra=takes(DetokenizeRequest),
)
async def detokenize(request: Request) -> Response:
    """Ids must be of the vocabulary."""
    service = service_of(request)
    model = service.require_model()
    params = parse(DetokenizeRequest, await read_json(request, service.config.server))
    model.check_name(params.model)
    for token in params.tokens:
        if not 0 <= token < model.info.vocab_size:
            raise BadRequest(
                f"Token id {token} is outside the vocabulary [0, {model.info.vocab_size}).", "tokens",
                "invalid_token_id",
            )  # fmt: skip
    return json_response({"prompt": model.tokenizer.decode(params.tokens, skip_special_tokens=False)})
