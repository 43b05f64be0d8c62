"""GET /openapi.json and /docs: complete, true, and readable without a network."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from server.api.chat.request import ChatRequest
from server.api.completions.request import CompletionRequest
from server.api.decisions_api.request import DecisionsRequest
from server.api.fields import UNSUPPORTED, WITHOUT_EFFECT
from server.api.fill.edit import EditRequest
from server.api.fill.request import FimRequest, InfillRequest
from server.api.messages_api.request import CountTokensRequest, MessagesRequest
from server.api.responses_api.request import ResponsesRequest
from server.api.tokens import DetokenizeRequest, TokenizeRequest
from tests.clients.conftest import KEY

GENERATION = (
    "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/fim/completions", "/infill",
    "/v1/edit/completions",
)  # fmt: skip
BODIES = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/v1/decisions": DecisionsRequest,
    "/v1/fim/completions": FimRequest,
    "/infill": InfillRequest,
    "/v1/edit/completions": EditRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
STATUSES = {
    ("post", "/v1/completions"): {"200", "400", "401", "404", "413", "429", "500", "503", "504"},
    ("post", "/v1/chat/completions"): {"200", "400", "401", "404", "413", "429", "500", "503", "504"},
    ("post", "/v1/responses"): {"200", "400", "401", "404", "413", "429", "500", "503", "504"},
    ("get", "/v1/responses/{response_id}"): {"200", "400", "401", "404", "500", "503"},
    ("delete", "/v1/responses/{response_id}"): {"200", "401", "404", "500", "503"},
    ("post", "/v1/messages"): {"200", "400", "401", "404", "413", "429", "500", "503", "504"},
    ("post", "/v1/messages/count_tokens"): {"200", "400", "401", "404", "413", "500", "503"},
    ("post", "/v1/decisions"): {"200", "400", "401", "404", "413", "429", "500", "503", "504"},
    ("post", "/v1/fim/completions"): {"200", "400", "401", "404", "413", "429", "500", "503", "504"},
    ("post", "/infill"): {"200", "400", "401", "404", "413", "429", "500", "503", "504"},
    ("post", "/tokenize"): {"200", "400", "401", "404", "413", "500", "503"},
    ("post", "/detokenize"): {"200", "400", "401", "404", "413", "500", "503"},
    ("post", "/v1/edit/completions"): {"200", "400", "401", "404", "413", "429", "500", "503", "504"},
    ("post", "/invocations"): {"200", "400", "401", "404", "413", "429", "500", "503", "504"},
    ("get", "/v1/models"): {"200", "401", "500", "503"},
    ("get", "/v1/models/{name}"): {"200", "401", "404", "500", "503"},
    ("get", "/health"): {"200", "503"},
    ("get", "/ready"): {"200", "503"},
    ("get", "/ping"): {"200", "503"},
    ("get", "/load"): {"200", "401"},
    ("get", "/tokenizer_info"): {"200", "401", "500", "503"},
    ("get", "/version"): {"200", "401"},
    ("get", "/metrics"): {"200", "401"},
}
"""What each endpoint can answer. A 500 is left to the two that cannot fail."""


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    answer = http.get("/openapi.json")
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


def resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        node: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            node = node[part]
        schema = node
    return schema


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for value in node.values() for ref in references(value)]
    return [ref for value in node for ref in references(value)] if isinstance(node, list) else []


def body_schema(document: dict[str, Any], path: str) -> dict[str, Any]:
    body = document["paths"][path]["post"]["requestBody"]
    assert body["required"] is True
    return resolve(document, body["content"]["application/json"]["schema"])


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    """A dangling reference stops every tool that reads the document: code generators, Swagger, schemathesis."""
    broken = []
    for reference in references(document):
        try:
            resolve(document, {"$ref": reference})
        except (KeyError, TypeError):
            broken.append(reference)
    assert broken == []


@pytest.mark.parametrize(("method", "path"), STATUSES)
def test_every_status_an_endpoint_can_answer_is_listed(document: dict[str, Any], method: str, path: str) -> None:
    responses = document["paths"][path][method]["responses"]
    listed = set(responses) - (
        {"500"} if path in ("/health", "/ping", "/ready", "/load", "/version", "/metrics") else set()
    )
    assert listed == STATUSES[method, path]
    for status, response in responses.items():
        if path != "/metrics" or status != "200":
            told = response["content"]["application/json"]["schema"]
            for schema in told.get("anyOf", [told]):
                assert resolve(document, schema).get("properties"), f"{status} is documented as anything at all"
        if status in ("429", "503") and path not in ("/health", "/ping", "/ready"):
            assert "Retry-After" in response["headers"]


def test_no_endpoint_is_left_out(document: dict[str, Any]) -> None:
    listed = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert listed == set(STATUSES)


@pytest.mark.parametrize("path", BODIES)
def test_every_field_of_a_request_is_there_and_explained(document: dict[str, Any], path: str) -> None:
    fields = body_schema(document, path)["properties"]
    assert set(BODIES[path].model_fields) <= set(fields)
    unexplained = [name for name, field in fields.items() if not resolve(document, field).get("description")
                   and not field.get("description")]  # fmt: skip
    assert unexplained == []


@pytest.mark.parametrize("path", GENERATION)
def test_fields_without_effect_or_with_one_value_only_are_there_too(document: dict[str, Any], path: str) -> None:
    """They are accepted, so a generated client must be able to send them; nothing else is."""
    endpoint = BODIES[path].endpoint
    neutral = {name for name, entry in UNSUPPORTED.items() if endpoint in entry.endpoints and entry.neutral}
    schema = body_schema(document, path)
    assert set(WITHOUT_EFFECT) | neutral <= set(schema["properties"])
    assert schema["additionalProperties"] is False


EXAMPLES: list[tuple[str, Any]] = [
    ("prompt", "text"), ("prompt", ""), ("prompt", ["a", "b"]), ("prompt", [7, 8]), ("prompt", [[7], [8]]),
    ("stop", "x"), ("stop", ["x", "y"]), ("top_k", -1), ("logit_bias", {"7": -100}), ("threshold", None),
    ("model", None), ("temperature", None), ("max_tokens", None), ("stream_options", None), ("best_of", 1),
    ("user", "u"), ("metadata", {"a": "b"}), ("seed", -1), ("seed", 2**64 - 1),
]  # fmt: skip
COUNTEREXAMPLES: list[tuple[str, Any]] = [
    ("prompt", []), ("prompt", [[]]), ("prompt", 7), ("stop", [""]), ("stop", ["x"] * 17), ("top_k", -2),
    ("logit_bias", {"x": 1}), ("logit_bias", {"7": 101}), ("seed", 2**64), ("nonsense", 1),
    ("stream_options", {"nonsense": True}), ("block_length", 1), ("threshold", 0), ("max_denoising_steps", 0),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), EXAMPLES + COUNTEREXAMPLES)
def test_the_document_and_the_server_agree(
    document: dict[str, Any], http: httpx.Client, field: str, value: Any
) -> None:
    """What the document allows is accepted, and what is refused it forbids."""
    import jsonschema_rs

    body = {"prompt": "Hello", "max_tokens": 2, field: value}
    schema = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    allowed = jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]}).is_valid(body)
    if field in ("threshold", "max_denoising_steps"):
        body["decoding"] = "diffusion"
    if (field, value) == ("threshold", None):
        body["max_denoising_steps"] = 2
    status = http.post("/v1/completions", json=body).status_code
    assert (allowed, status) == ((True, 200) if (field, value) in EXAMPLES else (False, 400))


def test_a_key_is_part_of_the_document(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    name = next(name for name, scheme in schemes.items() if scheme == {"type": "http", "scheme": "bearer"})
    all_keys = [{name: []}, {"azure_key": []}, {"anthropic_key": []}]
    for path, methods in document["paths"].items():
        for operation in methods.values():
            needed = operation.get("security", document.get("security"))
            assert needed == ([] if path in ("/health", "/ping", "/ready") else all_keys), path


def test_streams_are_documented(document: dict[str, Any]) -> None:
    for path in GENERATION:
        content = document["paths"][path]["post"]["responses"]["200"]["content"]
        assert set(content) == {"application/json", "text/event-stream"}


def test_the_page_loads_nothing_from_anywhere(http: httpx.Client) -> None:
    """It must work in a cluster without a way out, and tell no third party who reads it."""
    page = http.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"""(?i)(src|href|url|action)\s*[=(]\s*["']?\s*(https?:)?//""", page.text)
    assert not re.search(r"(?i)<(script|link|iframe|img|object|embed)[^>]*\s(src|href|data)=|@import", page.text)
    for path in STATUSES:
        assert path[1] in page.text
    for field in (*CompletionRequest.model_fields, *ChatRequest.model_fields, "include_drafts"):
        assert field in page.text, f"{field} is not on the page"


def test_the_page_links_to_the_document(http: httpx.Client) -> None:
    page = http.get("/docs")
    target = re.search(r"href=[\"']?([^\"' >]*openapi\.json)", page.text)
    assert target is not None
    found = http.get(str(httpx.URL(str(page.url)).join(target[1])), headers={"Authorization": f"Bearer {KEY}"})
    assert found.json()["openapi"].startswith("3.")
