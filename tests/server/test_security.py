"""Keys from every source, HTTPS, other web origins, texts in logs: what is closed unless an operator opens it."""

from __future__ import annotations

import json
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Headers

from engine.errors import ConfigError
from server.http.errors import Unauthorized
from server.http.keys import Keys
from server.operation.config import ServerConfig, load_config
from tests.server.conftest import ApiFactory
from tests.server.processes import fake, server, wait_for


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_keys_of_every_source_count_and_none_is_shown(tmp_path: Path) -> None:
    """An operator who rotates keys needs two at once; one who reads logs must not find any."""
    file = tmp_path / "keys"
    file.write_text("# rotated monthly\nfrom-file\n\nfrom-file-too\n")
    env = {"LIGHTCONE_API_KEYS": "from-env,from-env-too", "LIGHTCONE_API_KEY_FILE": str(file)}
    with server(["tests.serve_with_fake_engine", "echo"], env=env) as running:
        keys = ["from-env", "from-env-too", "from-file", "from-file-too"]
        for key, status in [*((key, 200) for key in keys), ("from-fil", 401), ("from-env,from-env-too", 401)]:
            assert running.http.get(f"{running.url}/v1/models", headers=bearer(key)).status_code == status, key
        for path in ("/tokenize", "/v1/completions", "/v1/chat/completions", "/detokenize"):
            assert running.http.post(running.url + path, json={}).status_code == 401
        assert "from-" not in running.log()
        status_line = Path(f"/proc/{running.process.pid}/cmdline").read_bytes()
        assert b"from-" not in status_line


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (ServerConfig(api_key_file="/no/such/file"), "api_key_file /no/such/file"),
        (ServerConfig(api_keys=("two words",)), "API key 1 of 1 holds a character that no header can carry"),
        (ServerConfig(api_keys=("ok", "schlüssel")), "API key 2 of 2"),
    ],
)
def test_keys_that_could_never_match_are_refused_at_the_start(config: ServerConfig, says: str) -> None:
    """Else the operator would find out from the first user."""
    with pytest.raises(ConfigError, match=says) as caught:
        Keys.load(config.api_keys, config.api_key_file, public_metrics=config.public_metrics)
    assert "words" not in str(caught.value)


def test_an_empty_key_file_does_not_switch_authentication_off(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# none yet\n\n")
    with pytest.raises(ConfigError, match="holds no key"):
        Keys.load((), str(file), public_metrics=False)


def test_every_key_is_compared_whole_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    """An early exit would tell an attacker with a clock how far a guess got."""
    compared: list[tuple[int, int]] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return left == right

    monkeypatch.setattr("server.http.keys.hmac.compare_digest", compare)
    keys = Keys(["a", "a much longer key", "c"])
    keys.check("/v1/models", Headers(bearer("a")))
    with pytest.raises(Unauthorized):
        keys.check("/v1/models", Headers(bearer("no")))
    assert compared == [(32, 32)] * 6


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("api-key", "right")], 200), ([("X-API-Key", "right")], 200), ([("api-key", "wrong")], 401), ([], 401),
        ([("authorization", "Bearer right"), ("api-key", "wrong")], 200),
        ([("authorization", "Bearer wrong"), ("api-key", "right")], 401),
        ([("authorization", "Bearer right"), ("authorization", "Bearer wrong")], 401),
        ([("authorization", "Bearer right"), ("authorization", "Bearer right")], 200),
        ([("api-key", "right"), ("api-key", "wrong")], 401), ([("authorization", "Basic right")], 401),
        ([("api-key", "wrong"), ("x-api-key", "right")], 401), ([("api-key", "")], 401),
    ],
)  # fmt: skip
async def test_a_key_may_come_in_one_of_several_headers(
    serve: ApiFactory, headers: list[tuple[str, str]], status: int
) -> None:
    """Azure's clients send `api-key`. The first header in a fixed order counts, so nobody can mean two keys."""
    async with serve(api_keys=("right",)) as api:
        assert (await api.http.get("/v1/models", headers=headers)).status_code == status


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    directory = tmp_path_factory.mktemp("tls")
    cert, key = str(directory / "cert.pem"), str(directory / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
               "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return cert, key


def test_https_where_a_certificate_is_given(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    context = ssl.create_default_context(cafile=cert)
    with fake("echo", "--tls-cert", cert, "--tls-key", key, ready=False) as running:
        url = f"https://127.0.0.1:{running.port}"
        with httpx.Client(base_url=url, verify=context, trust_env=False) as http:
            wait_for("HTTPS", lambda: http.get("/ready").status_code == 200)
            answer = http.post("/v1/completions", json={"prompt": "x", "stream": True})
            assert answer.text.endswith("data: [DONE]\n\n")
        with pytest.raises(httpx.TransportError):
            running.http.get(f"{running.url}/health", timeout=5)


def test_a_certificate_that_cannot_be_used_is_one_line(certificate: tuple[str, str], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nothing")
    for cert, key in ((certificate[0], "/no/key"), (str(wrong), certificate[1])):
        with fake("echo", "--tls-cert", cert, "--tls-key", key, ready=False) as running:
            plain = [line for line in running.errors().splitlines() if not line.startswith("{")]
            assert running.process.returncode == 2
            assert len(plain) == 1
            assert plain[0].startswith(f"lightcone: error: cannot use tls_cert {cert}")
    with pytest.raises(ConfigError, match="--tls-cert needs tls_key, too"):
        load_config({"tls_cert": "x"}, {})


ORIGIN = {"Origin": "https://elsewhere.example"}
PREFLIGHT = {**ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@pytest.mark.anyio
async def test_pages_of_other_origins_may_read_nothing_unless_named(serve: ApiFactory) -> None:
    """A server on a laptop is within reach of every page its owner visits."""
    async with serve() as api:
        for response in (
            await api.http.get("/v1/models", headers=ORIGIN),
            await api.http.options("/v1/completions", headers=PREFLIGHT),
        ):
            assert not [name for name in response.headers if name.startswith("access-control")]
    async with serve(cors_origins=("https://app.example",), api_keys=("secret",)) as api:
        stranger = await api.http.get("/v1/models", headers=ORIGIN | bearer("secret"))
        assert "access-control-allow-origin" not in stranger.headers
        known = {"Origin": "https://app.example"}
        preflight = await api.http.options("/v1/completions", headers=PREFLIGHT | known)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, known["Origin"])
        refused = await api.http.get("/v1/models", headers=known)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == known["Origin"]
        assert refused.headers["x-request-id"]
        assert "access-control-allow-credentials" not in refused.headers


def test_texts_are_logged_only_when_asked_for() -> None:
    body = {"prompt": ["private one", "private two"], "max_tokens": 3}
    with fake("echo", "--log-text") as running:
        running.complete(**body)
        wait_for("the line", lambda: bool(running.log_lines("request")))
        [line] = running.log_lines("request")
        assert [prompt[-11:] for prompt in line["prompts"]] == body["prompt"]
        assert line["texts"][0].startswith("Once")
    with fake("echo") as running:
        running.complete(**body)
        wait_for("the line", lambda: bool(running.log_lines("request")))
        assert "private" not in running.log()
        assert "Once" not in running.log()
        assert all(json.loads(line) for line in running.log().splitlines())
