"""The OpenAPI document, built from the request models and the response structs: every route, field and status."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI

from server.api.chat.request import ChatRequest
from server.api.chat.response import ChatCompletion, ChatCompletionChunk
from server.api.completions.request import CompletionRequest
from server.api.completions.response import Completion, CompletionChunk
from server.api.decisions_api.request import DecisionsRequest
from server.api.decisions_api.response import Decision
from server.api.fields import UNSUPPORTED, WITHOUT_EFFECT, FieldFacts, Strict
from server.api.fill.edit import EditRequest
from server.api.fill.request import FimRequest, InfillRequest
from server.api.fill.response import FimChunk, FimCompletion, InfillAnswer, InfillChunk
from server.api.info import Health, Load, Model, ModelList, Ready, TokenizerInfo, Version
from server.api.messages_api.objects import MESSAGES_EVENTS, AnswerMessage, MessagesEvent, TokenCount
from server.api.messages_api.request import CountTokensRequest, MessagesRequest
from server.api.requests import GenerationRequest
from server.api.responses_api.objects import EVENTS, DeletedResponse, Event, ModelResponse
from server.api.responses_api.request import ResponsesRequest
from server.api.tokens import DetokenizeRequest, Prompt, TokenizeRequest, Tokens
from server.generation.job import EndpointName
from server.http.error_forms import Error, MessagesError
from server.http.keys import OPEN_PATHS
from server.version import VERSION

Schema = dict[str, Any]

REQUESTS: tuple[type[Strict], ...] = (
    CompletionRequest, ChatRequest, ResponsesRequest, MessagesRequest, CountTokensRequest, DecisionsRequest, FimRequest,
    InfillRequest, EditRequest, TokenizeRequest, DetokenizeRequest,
)  # fmt: skip
RESPONSES: tuple[type[msgspec.Struct], ...] = (
    Error, Completion, CompletionChunk, ChatCompletion, ChatCompletionChunk, Model, ModelList, Tokens, Prompt, Health,
    Ready, Version, Load, TokenizerInfo, ModelResponse, DeletedResponse, *EVENTS,
    MessagesError, AnswerMessage, TokenCount, *MESSAGES_EVENTS, Decision, FimCompletion, FimChunk, InfillAnswer,
    InfillChunk,
)  # fmt: skip
_REFERENCE = "#/components/schemas/"

MODES = "x-decodings"
"""Beside a field that means something in some decoding modes only: those modes. In any other it is refused."""
WITHOUT_USE = "x-without-use"
"""Beside a field that is accepted for the sake of other servers' clients, and can ask for nothing."""

_DETAILS = {
    "400": "The request can never succeed as it stands; the message names the field.",
    "401": "No key, or a wrong one.",
    "404": "No such model, or nothing is stored under this id.",
    "413": "The body is larger than the server reads.",
    "429": "The queue is full.",
    "500": "The server failed this request.",
    "503": "The model is loading, the server is draining, or the engine is down.",
    "504": "The request took longer than the server's request timeout.",
}
_READING = ("400", "401", "404", "413", "500", "503")
_EVENTS: dict[type[msgspec.Struct], str] = {
    Event: f"Events with names, whose data is one of: {', '.join(kind.__name__ for kind in EVENTS)}.",
    MessagesEvent: f"Events with names, whose data is one of: {', '.join(kind.__name__ for kind in MESSAGES_EVENTS)}.",
    InfillChunk: "Events whose data is an InfillChunk; that of the last is an InfillAnswer.",
}
"""What is said of streams that do not end with [DONE]."""
_GENERATING = ("400", "401", "404", "413", "429", "500", "503", "504")


def install(app: FastAPI, *, needs_key: bool, public_metrics: bool) -> None:
    """Makes the application answer /openapi.json with this document. The arguments are those of `build`."""
    document = build(needs_key=needs_key, public_metrics=public_metrics)
    app.openapi = lambda: document  # type: ignore[method-assign]


def build(*, needs_key: bool, public_metrics: bool) -> Schema:
    """The OpenAPI 3.1 document of a server that needs a key, on /metrics perhaps not, or that needs none."""
    _, components = msgspec.json.schema_components(RESPONSES, ref_template=_REFERENCE + "{name}")
    for model in REQUESTS:
        _add_request(components, model)
    document = {
        "openapi": "3.1.0",
        "info": {"title": "Lightcone", "version": VERSION,
                 "summary": "OpenAI-compatible inference for diffusion language models"},
        "paths": _paths(),
        "components": {"schemas": components},
    }  # fmt: skip
    if needs_key:
        _add_security(document, public_metrics=public_metrics)
    else:
        for operation in _operations(document):
            operation["responses"].pop("401", None)
    return document


def _add_security(document: Schema, *, public_metrics: bool) -> None:
    """A key on every path but the open ones, in one of three headers."""
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer"},
        "azure_key": {"type": "apiKey", "in": "header", "name": "api-key"},
        "anthropic_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    document["security"] = [{"key": []}, {"azure_key": []}, {"anthropic_key": []}]
    for path in OPEN_PATHS | ({"/metrics"} if public_metrics else set()):
        operation = document["paths"][path]["get"]
        operation["security"] = []
        operation["responses"].pop("401", None)


def _operations(document: Schema) -> list[Schema]:
    return [operation for methods in document["paths"].values() for operation in methods.values()]


def _paths() -> Schema:
    post, get = _operation, _operation
    paths: Schema = {
        "/v1/completions": {"post": post("Continue a prompt", CompletionRequest, Completion, _GENERATING,
                                         events=CompletionChunk)},
        "/v1/chat/completions": {"post": post("Answer a conversation", ChatRequest, ChatCompletion, _GENERATING,
                                              events=ChatCompletionChunk)},
        "/v1/responses": {"post": post("Answer a conversation, in items", ResponsesRequest, ModelResponse, _GENERATING,
                                       events=Event)},
        "/v1/responses/{response_id}": {
            "get": get("A stored response", None, ModelResponse, ("400", "401", "404", "500", "503")),
            "delete": _operation("Forget a stored response", None, DeletedResponse, ("401", "404", "500", "503")),
        },
        "/v1/messages": {"post": post("Answer a conversation, in Anthropic's form", MessagesRequest, AnswerMessage,
                                      _GENERATING, events=MessagesEvent, error=MessagesError)},
        "/v1/messages/count_tokens": {"post": post("Tokens of a conversation, in Anthropic's form", CountTokensRequest,
                                                   TokenCount, _READING, error=MessagesError)},
        "/v1/decisions": {"post": post("Answer questions with probabilities", DecisionsRequest, Decision, _GENERATING)},
        "/v1/fim/completions": {"post": post("Fill the gap before a suffix", FimRequest, FimCompletion, _GENERATING,
                                             events=FimChunk)},
        "/infill": {"post": post("Fill the gap between two texts, for editors", InfillRequest, InfillAnswer,
                                 _GENERATING, events=InfillChunk)},
        "/v1/edit/completions": {"post": post("Edit a region of code", EditRequest, ChatCompletion, _GENERATING,
                                              events=ChatCompletionChunk)},
        "/invocations": {"post": _either("Answer a conversation, or continue a prompt")},
        "/v1/models": {"get": get("The served model and its aliases", None, ModelList, ("401", "500", "503"))},
        "/v1/models/{name}": {"get": get("One model or alias", None, Model, ("401", "404", "500", "503"))},
        "/tokenize": {"post": post("Tokens of a prompt or a chat", TokenizeRequest, Tokens, _READING)},
        "/detokenize": {"post": post("Text of tokens", DetokenizeRequest, Prompt, _READING)},
        "/health": {"get": get("Liveness, answered from memory", None, Health, ())},
        "/ready": {"get": get("Readiness: whether new work is welcome", None, Ready, ())},
        "/ping": {"get": get("Liveness, as /health tells it", None, Health, ())},
        "/load": {"get": get("Answers that are being waited for", None, Load, ("401",))},
        "/tokenizer_info": {"get": get("Special tokens and chat template", None, TokenizerInfo, ("401", "500", "503"))},
        "/version": {"get": get("The server's version", None, Version, ("401",))},
        "/metrics": {"get": get("Prometheus metrics", None, None, ("401",))},
    }  # fmt: skip
    for path, body in (("/health", Health), ("/ping", Health), ("/ready", Ready)):
        paths[path]["get"]["responses"]["503"] = _response("Not so.", body)
    paths["/v1/models/{name}"]["get"]["parameters"] = [_in_path("name", "A model's id.")]
    for operation in paths["/v1/responses/{response_id}"].values():
        operation["parameters"] = [_in_path("response_id", "A response's id.")]
    return paths


def _in_path(name: str, description: str) -> Schema:
    schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _operation(
    summary: str,
    request: type[Strict] | None,
    answer: type[msgspec.Struct] | None,
    errors: tuple[str, ...],
    events: type[msgspec.Struct] | None = None,
    error: type[msgspec.Struct] = Error,
) -> Schema:
    text = {"text/plain": {"schema": {"type": "string"}}}
    success: Schema = {"description": "Success.", "content": text} if answer is None else _response("Success.", answer)
    if events is not None:
        told = _EVENTS.get(events, f"Events whose data is a {events.__name__}; the last is [DONE].")
        shape = {"type": "string", "description": told}
        success["content"]["text/event-stream"] = {"schema": shape}
    responses = {"200": success} | {status: _response(_DETAILS[status], error) for status in errors}
    for status in ("429", "503"):
        if status in responses:
            wait = {"description": "Seconds to wait.", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
            responses[status]["headers"] = {"Retry-After": wait}
    operation: Schema = {"summary": summary, "responses": responses}
    if request is not None:
        operation["requestBody"] = {"required": True, "content": _json_content(request)}
    return operation


def _either(summary: str) -> Schema:
    """A chat or a completion, by what the body has."""
    kinds = ((ChatRequest, ChatCompletion, ChatCompletionChunk), (CompletionRequest, Completion, CompletionChunk))
    operation, other = (_operation(summary, asked, told, _GENERATING, events) for asked, told, events in kinds)
    for place, more in (
        (operation["requestBody"]["content"], other["requestBody"]["content"]),
        (operation["responses"]["200"]["content"], other["responses"]["200"]["content"]),
    ):
        shapes = [place["application/json"]["schema"], more["application/json"]["schema"]]
        place["application/json"] = {"schema": {"anyOf": shapes}}
    return operation


def _response(description: str, kind: type) -> Schema:
    return {"description": description, "content": _json_content(kind)}


def _json_content(kind: type) -> Schema:
    return {"application/json": {"schema": {"$ref": _REFERENCE + kind.__name__}}}


def _add_request(components: dict[str, Schema], model: type[Strict]) -> None:
    """Adds the schema of a request model, and those of the objects within it."""
    schema = model.model_json_schema(ref_template=_REFERENCE + "{model}")
    for name, part in schema.pop("$defs", {}).items():
        components[name] = _without_titles(part)
    schema = _without_titles(schema)
    for name, field in model.model_fields.items():
        if modes := FieldFacts.of(field).modes:
            schema["properties"][field.alias or name][MODES] = list(modes)
    if issubclass(model, GenerationRequest | DecisionsRequest):
        _make_nullable(schema)
        schema["properties"] = _accepted_fields(model.endpoint) | schema["properties"]
    schema["additionalProperties"] = False
    components[model.__name__] = schema


def _without_titles(schema: Schema) -> Schema:
    """pydantic titles every field with its name spelled otherwise, which says nothing."""
    for field in schema.get("properties", {}).values():
        field.pop("title", None)
    return schema


def _make_nullable(schema: Schema) -> None:
    """Allows null for every field that need not be sent: it means that the field was not."""
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        if name not in required and {"type": "null"} not in field.get("anyOf", ()):
            outside = {key: field.pop(key) for key in ("default", "description", MODES) if key in field}
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **outside}


def _accepted_fields(endpoint: EndpointName) -> Schema:
    """The fields that are accepted without effect, or with their neutral values only."""
    fields: Schema = {}
    for name, entry in UNSUPPORTED.items():
        neutral = entry.neutral_at(endpoint)
        if endpoint in entry.endpoints and neutral:
            shape: Schema = {"enum": [*neutral, None]}
            if name == "best_of":
                shape = {"type": ["integer", "null"], "minimum": 1}
            fields[name] = {**shape, "description": "Not supported beyond its neutral value.", WITHOUT_USE: True}
    kinds: dict[type, str] = {str: "string", dict: "object"}
    for name, types in WITHOUT_EFFECT.items():
        shape = {"type": [*(kinds[kind] for kind in types), "null"], "description": "Accepted; has no effect."}
        fields[name] = {**shape, WITHOUT_USE: True}
    return fields
