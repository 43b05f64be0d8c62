"""The OpenAPI document: every route, every field a request may have, every status an endpoint can answer."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from server.api.answers import ANSWERS
from server.api.fields import UNSUPPORTED, WITHOUT_EFFECT, Endpoint
from server.api.info import VERSION
from server.api.requests import (
    MAX_LOGIT_BIAS,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)

Schema = dict[str, Any]

_IDS: Schema = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_STOP: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}

SHAPES: dict[str, Schema] = {
    "prompt": {
        "anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
            _IDS,
            {"type": "array", "minItems": 1, "items": _IDS},
        ]
    },
    "stop": {"anyOf": [_STOP, {"type": "array", "maxItems": MAX_STOPS, "items": _STOP}]},
    "top_k": {"type": "integer", "minimum": -1, "maximum": 2**31, "default": 0},
    "logit_bias": {
        "type": "object",
        "maxProperties": MAX_LOGIT_BIAS,
        "propertyNames": {"pattern": "^[0-9]{1,10}$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    },
    "block_length": {"type": "integer", "minimum": 2},
    "threshold": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "max_denoising_steps": {"type": "integer", "minimum": 1},
    "content": {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"$ref": "#/components/schemas/TextPart"}}],
    },
}
"""Fields whose checks are functions, which pydantic cannot describe."""

MEANINGS: dict[str, str] = {
    "model": "The served name, or an alias that also chooses the decoding mode. May be left out.",
    "prompt": "Text, token ids, or a list of either. Control tokens may be spelled; the mask never is one.",
    "messages": "The conversation so far, through the model's chat template. Nothing in it becomes a control token.",
    "max_tokens": "Most tokens to generate. Completions: 16 by default, 0 with echo; chats: the rest of the context.",
    "max_completion_tokens": "The newer name of max_tokens.",
    "temperature": "0 is greedy.",
    "top_p": "Sample among the likeliest tokens that together have this probability.",
    "top_k": "Sample among this many likeliest tokens; 0 or -1: no limit.",
    "min_p": "Sample among tokens at least this likely, relative to the likeliest.",
    "seed": "The same request with the same seed gives the same text in ar, speculative and auto. Drawn if unset.",
    "n": "Answers to give for each prompt.",
    "stop": "Strings that end the answer; the text ends before them.",
    "stop_token_ids": "Tokens that end the answer.",
    "ignore_eos": "Treat the model's end tokens as ordinary ones.",
    "min_tokens": "End tokens are banned until so many tokens have been generated.",
    "presence_penalty": "Lowers the logits of tokens that the answer already holds.",
    "frequency_penalty": "Lowers the logits of tokens by how often the answer holds them.",
    "repetition_penalty": "Divides the logits of tokens that prompt or answer already hold; 1: off.",
    "logit_bias": "Token ids and what is added to their logits.",
    "logprobs": "Log-probabilities: how many of the likeliest tokens (completions), or whether at all (chats).",
    "top_logprobs": "Likeliest tokens to list beside each token of the answer. Needs logprobs.",
    "echo": "Put the prompt in front of the answer; with logprobs, its log-probabilities before the answer's.",
    "suffix": "Fill the gap of max_tokens tokens between prompt and suffix, by diffusion.",
    "stream": "Answer with server-sent events as the text settles.",
    "stream_options": "What a stream carries besides text.",
    "include_usage": "A last chunk with the usage of the whole request.",
    "continuous_usage_stats": "The usage so far in every chunk.",
    "include_drafts": "What is not settled yet, beside each delta.",
    "priority": "Lower is served first.",
    "cache_salt": "The prefix cache is shared only among requests with the same salt.",
    "decoding": "How to decode. Unset: the model's best exact mode.",
    "block_length": "Tokens refined together (auto, speculative, diffusion). Unset: the model's own.",
    "threshold": "Diffusion: unmask at this confidence or above (0.9). null: an even schedule.",
    "max_denoising_steps": "Diffusion: most passes a block may take. Unset: the block's length.",
    "diffusing": "A stream in Mercury's form: each chunk holds the whole text so far, masks included.",
    "response_format": "Text, JSON, or JSON of a schema. Not with diffusion.",
    "structured_outputs": "A regular expression, a choice, or a JSON schema. Not with diffusion.",
    "role": "Who speaks.",
    "content": "Text, or text in parts.",
    "name": "A name: of a participant, for templates that use it, or of a schema.",
    "description": "What the schema is for; it changes nothing.",
    "json_schema": "The schema, for type json_schema.",
    "schema": "A JSON schema; always enforced.",
    "strict": "Accepted: a schema is always enforced.",
    "json": "A JSON schema, as an object or as text.",
    "regex": "A regular expression that the whole answer matches.",
    "choice": "The answers to choose from.",
    "json_object": "Any JSON object.",
    "type": "The kind of a part.",
    "text": "The text of a part.",
    "add_special_tokens": "Put BOS in front, as generation does.",
    "tokens": "Token ids.",
}

_DETAILS = {
    "400": "The request can never succeed as it stands; the message names the field.",
    "401": "No key, or a wrong one.",
    "404": "No such model.",
    "413": "The body is larger than the server reads.",
    "429": "The queue is full.",
    "500": "The server failed this request.",
    "503": "The model is loading, the server is draining, or the engine is down.",
    "504": "The request took longer than the server's request timeout.",
}
_READING = ("400", "401", "404", "413", "500", "503")
_GENERATING = ("400", "401", "404", "413", "429", "500", "503", "504")


def install(app: FastAPI) -> None:
    """Makes the application answer /openapi.json with this document."""
    document = build()
    app.openapi = lambda: document  # type: ignore[method-assign]


def build() -> Schema:
    """The document."""
    components: dict[str, Schema] = dict(ANSWERS)
    requests: list[tuple[type[BaseModel], Endpoint | None]] = [
        (CompletionRequest, "completions"),
        (ChatRequest, "chat"),
        (TokenizeRequest, None),
        (DetokenizeRequest, None),
    ]
    for model, endpoint in requests:
        _add_request(components, model, endpoint)
    post, get = _operation, _operation
    paths: Schema = {
        "/v1/completions": {"post": post("Continue a prompt", "CompletionRequest", "Completion", _GENERATING,
                                         events="CompletionChunk")},
        "/v1/chat/completions": {"post": post("Answer a conversation", "ChatRequest", "ChatCompletion", _GENERATING,
                                              events="ChatCompletionChunk")},
        "/v1/models": {"get": get("The served model and its aliases", None, "ModelList", ("401", "500", "503"))},
        "/v1/models/{name}": {"get": get("One model or alias", None, "Model", ("401", "404", "500", "503"))},
        "/tokenize": {"post": post("Tokens of a prompt or a chat", "TokenizeRequest", "Tokens", _READING)},
        "/detokenize": {"post": post("Text of tokens", "DetokenizeRequest", "Prompt", _READING)},
        "/health": {"get": get("Liveness, answered from memory", None, "Health", ())},
        "/ready": {"get": get("Readiness: whether new work is welcome", None, "Ready", ())},
        "/version": {"get": get("The server's version", None, "Version", ("401",))},
        "/metrics": {"get": get("Prometheus metrics", None, None, ("401",))},
    }  # fmt: skip
    for path, body in (("/health", "Health"), ("/ready", "Ready")):
        paths[path]["get"]["security"] = []
        paths[path]["get"]["responses"]["503"] = _response("Not so.", body)
    name = {"name": "name", "in": "path", "required": True, "description": "A model's id.",
            "schema": {"type": "string", "minLength": 1}}  # fmt: skip
    paths["/v1/models/{name}"]["get"]["parameters"] = [name]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Lightcone", "version": VERSION,
                 "summary": "OpenAI-compatible inference for diffusion language models"},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
    }  # fmt: skip


def _operation(
    summary: str, request: str | None, answer: str | None, errors: tuple[str, ...], events: str | None = None
) -> Schema:
    text = {"text/plain": {"schema": {"type": "string"}}}
    success: Schema = {"description": "Success.", "content": text} if answer is None else _response("Success.", answer)
    if events is not None:
        shape = {"type": "string", "description": f"Events whose data is a {events}; the last is [DONE]."}
        success["content"]["text/event-stream"] = {"schema": shape}
    responses = {"200": success} | {status: _response(_DETAILS[status], "Error") for status in errors}
    for status in ("429", "503"):
        if status in responses:
            wait = {"description": "Seconds to wait.", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
            responses[status]["headers"] = {"Retry-After": wait}
    operation: Schema = {"summary": summary, "responses": responses}
    if request is not None:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{request}"}}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _response(description: str, schema: str) -> Schema:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


def _add_request(components: dict[str, Schema], model: type[BaseModel], endpoint: Endpoint | None) -> None:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    for name, part in schema.pop("$defs", {}).items():
        components[name] = _explained(part, nullable=False)
    schema = _explained(schema, nullable=endpoint is not None)
    schema["additionalProperties"] = False
    if endpoint is not None:
        for name, entry in UNSUPPORTED.items():
            if endpoint in entry.endpoints and entry.neutral and name not in schema["properties"]:
                shape: Schema = {"enum": [*entry.neutral, None]}
                if name == "best_of":
                    shape = {"type": ["integer", "null"], "minimum": 1}
                schema["properties"][name] = {**shape, "description": "Not supported beyond its neutral value."}
        kinds: dict[type, str] = {str: "string", dict: "object"}
        for name, types in WITHOUT_EFFECT.items():
            shape = {"type": [*(kinds[kind] for kind in types), "null"], "description": "Accepted; has no effect."}
            schema["properties"][name] = shape
    components[model.__name__] = schema


def _explained(schema: Schema, *, nullable: bool) -> Schema:
    """Adds what pydantic does not know. `nullable`: null means not sent."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        shape = SHAPES.get(name)
        if shape is not None:
            field = {
                **shape,
                **({"default": field["default"]} if "default" in field and "default" not in shape else {}),
            }
        field.pop("title", None)
        if nullable and name not in required and {"type": "null"} not in field.get("anyOf", ()):
            default = {"default": field.pop("default")} if "default" in field else {}
            field = {"anyOf": [field, {"type": "null"}], **default}
        schema["properties"][name] = {**field, "description": MEANINGS[name]}
    return schema
