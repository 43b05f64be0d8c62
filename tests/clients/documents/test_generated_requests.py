"""Requests generated from /openapi.json: whatever they say, the server answers as documented and never with a 5xx."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest

from tests.clients.conftest import KEY

OPERATIONS: dict[tuple[str, str], int] = {
    ("POST", "/v1/completions"): 60,
    ("POST", "/v1/chat/completions"): 60,
    ("POST", "/v1/responses"): 60,
    ("GET", "/v1/responses/{response_id}"): 5,
    ("DELETE", "/v1/responses/{response_id}"): 5,
    ("POST", "/v1/messages"): 60,
    ("POST", "/v1/messages/count_tokens"): 20,
    ("POST", "/v1/decisions"): 30,
    ("POST", "/v1/fim/completions"): 30,
    ("POST", "/infill"): 30,
    ("POST", "/v1/edit/completions"): 20,
    ("POST", "/invocations"): 20,
    ("POST", "/tokenize"): 30,
    ("POST", "/detokenize"): 30,
    ("GET", "/v1/models/{name}"): 20,
    ("GET", "/v1/models"): 2,
    ("GET", "/health"): 2,
    ("GET", "/ready"): 2,
    ("GET", "/ping"): 2,
    ("GET", "/load"): 2,
    ("GET", "/tokenizer_info"): 2,
    ("GET", "/version"): 2,
    ("GET", "/metrics"): 2,
}
"""Requests to generate for each, valid ones and again as many that break the schema."""

BREAKABLE = {(method, path) for method, path in OPERATIONS if method == "POST"}
"""Those with a body that a schema constrains."""

TOKENS, CHOICES = 24, 4


@pytest.fixture(scope="module")
def schema(url: str) -> Any:
    import schemathesis

    loaded = schemathesis.openapi.from_url(f"{url}/openapi.json", headers={"Authorization": f"Bearer {KEY}"})
    loaded.config.generation.update(with_security_parameters=False)
    return loaded


def integral(value: Any) -> Any:
    """JSON Schema takes 2.0 for an integer, this server does not: that is known and need not be found again."""
    if isinstance(value, dict):
        return {name: integral(item) for name, item in value.items()}
    if isinstance(value, list):
        return [integral(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def known_id(token: Any) -> Any:
    return 6 + token % 1594 if type(token) is int and token >= 1600 and token % 3 else token


def sensible(path: str, raw: Any) -> Any:
    """A valid request, made cheap enough to run, and more often one that the model can answer.

    What the server would refuse as too much stays as it is.
    """
    body = integral(raw)
    if not isinstance(body, dict):
        return body
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "min_tokens"):
        if type(body.get(name)) is int and TOKENS < body[name] <= 1024:
            body[name] = TOKENS
    if "chat" in path and body.get("max_tokens") is body.get("max_completion_tokens") is None:
        body["max_tokens"] = TOKENS
    if "responses" in path and body.get("max_output_tokens") is None:
        body["max_output_tokens"] = TOKENS
    if type(body.get("n")) is int and CHOICES < body["n"] <= 128:
        body["n"] = CHOICES
    for name in ("prompt", "tokens"):
        if isinstance(body.get(name), list):
            flat = not any(isinstance(item, list) for item in body[name])
            body[name] = [known_id(item) if flat else [known_id(part) for part in item] for item in body[name]]
            if body[name] and not isinstance(body[name][0], int):
                body[name] = body[name][:CHOICES]
    if isinstance(body.get("model"), str) and len(body["model"]) != 3:
        body["model"] = "builtin"
    return body


CASES = [(*operation, False) for operation in OPERATIONS] + [(*operation, True) for operation in sorted(BREAKABLE)]


@pytest.mark.parametrize(("method", "path", "breaking"), CASES)
def test_every_generated_request_gets_a_documented_answer(
    schema: Any, url: str, method: str, path: str, breaking: bool
) -> None:
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        negative_data_rejection,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
              response_schema_conformance]  # fmt: skip
    if breaking:
        checks.append(negative_data_rejection)
    operation = schema[path][method]
    mode = GenerationMode.NEGATIVE if breaking else GenerationMode.POSITIVE

    @hypothesis.settings(
        max_examples=OPERATIONS[method, path],
        derandomize=True,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        if not breaking:
            case.body = sensible(path, case.body)
        response = case.call(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
        # A body beyond the limit is refused before its fields are looked at; the check does not count that as refused.
        unread = response.status_code == 413
        case.validate_response(response, checks=[c for c in checks if not (unread and c is negative_data_rejection)])

    run()


def test_no_operation_is_forgotten(schema: Any) -> None:
    documented = {(result.ok().method.upper(), result.ok().path) for result in schema.get_all_operations()}
    assert documented == set(OPERATIONS)


def test_the_server_still_works_after_all_that(schema: Any, http: Any) -> None:
    """No page lost, no request left running."""
    assert http.get("/ready").status_code == 200
    metrics = http.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert values['lightcone_requests_running{model="builtin"}'] == "0.0"
    assert values['lightcone_requests_waiting{model="builtin"}'] == "0.0"
    assert values['lightcone_engine_restarts_total{model="builtin"}'] == "0.0"
    assert values['lightcone_nan_logits_total{model="builtin"}'] == "0.0"
