"""What has broken servers like this one, from their public advisories: HTTP shapes, bodies, fields."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

KEY = "correct-horse"
AUTHORIZED = f"Authorization: Bearer {KEY}\r\n"

_POST = f"POST /tokenize HTTP/1.1\r\nHost: x\r\n{AUTHORIZED}Content-Type: application/json\r\n"
_BODY = '{"prompt": "x"}'
_SECOND = f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{AUTHORIZED}\r\n"
_CHUNKED = f"{len(_BODY):x}\r\n{_BODY}\r\n0\r\n\r\n"


def _post(headers: str, body: str) -> bytes:
    return (_POST + headers + "\r\n" + body).encode("latin-1")


SMUGGLING: dict[str, bytes] = {
    "length and chunks": _post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", _CHUNKED + _SECOND),
    "chunks and length": _post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", _CHUNKED + _SECOND),
    "two lengths": _post(f"Content-Length: {len(_BODY)}\r\nContent-Length: 3\r\n", _BODY + _SECOND),
    "a list of lengths": _post(f"Content-Length: {len(_BODY)}, 3\r\n", _BODY + _SECOND),
    "a length with a sign": _post(f"Content-Length: +{len(_BODY)}\r\n", _BODY + _SECOND),
    "a length with an underscore": _post("Content-Length: 1_5\r\n", _BODY + _SECOND),
    "a length in hexadecimal": _post("Content-Length: 0xf\r\n", _BODY + _SECOND),
    "an unknown coding": _post("Transfer-Encoding: xchunked\r\n", _CHUNKED + _SECOND),
    "two codings": _post("Transfer-Encoding: gzip, chunked\r\n", _CHUNKED + _SECOND),
    "a coding twice": _post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", _CHUNKED + _SECOND),
    "a space before the colon": _post("Transfer-Encoding : chunked\r\n", _CHUNKED + _SECOND),
    "a control character in a value": _post("Content-Length: 15\x0b\r\n", _BODY + _SECOND),
    "a null in a value": _post("X-A: a\x00b\r\nContent-Length: 15\r\n", _BODY + _SECOND),
    "a chunk that is longer than it says": _post("Transfer-Encoding: chunked\r\n", "4\r\nAAAAXX0\r\n\r\n" + _SECOND),
    "a chunk size that is no number": _post("Transfer-Encoding: chunked\r\n", "0x5\r\nAAAAA\r\n0\r\n\r\n" + _SECOND),
    "an endless chunk size": _post("Transfer-Encoding: chunked\r\n", "f" * 400 + "\r\nA\r\n0\r\n\r\n" + _SECOND),
    "no host": f"GET /v1/models HTTP/1.1\r\n{AUTHORIZED}\r\n".encode(),
    "two hosts": f"GET /v1/models HTTP/1.1\r\nHost: x\r\nHost: y\r\n{AUTHORIZED}\r\n".encode(),
    "a space in the target": b"GET /health /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "an old request line": b"GET /health\r\n\r\n",
    "another protocol's greeting": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50) + b"\r\n\r\n",
}
"""Requests that two readers could take for different ones, or for none. Nothing but a refusal may come back."""

FLOODS: dict[str, bytes] = {
    "many headers": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-Flood: y\r\n" * 20_000 + b"\r\n",
    "a long header": b"GET /health HTTP/1.1\r\nHost: x\r\nX-Flood: " + b"y" * 200_000 + b"\r\n\r\n",
    "a long target": b"GET /" + b"y" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "many tiny chunks": _post("Transfer-Encoding: chunked\r\n", "1\r\n \r\n" * 100_000 + _CHUNKED),
    "a long trailer": _post("Transfer-Encoding: chunked\r\n", _CHUNKED[:-2] + "X-Flood: y\r\n" * 20_000 + "\r\n"),
}
"""Cheap to send, dear to read to their end."""


class Case(NamedTuple):
    """A request that is well-formed HTTP, and what must come of it."""

    path: str
    body: bytes
    status: int = 400
    param: str | None = None
    headers: Mapping[str, str] = MappingProxyType({})


def _field(name: str, value: Any, param: str | None = None) -> Case:
    return Case("/v1/completions", json.dumps({"prompt": "x", name: value}).encode(), 400, param or name)


def _chat(param: str, **fields: Any) -> Case:
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    return Case("/v1/chat/completions", json.dumps(body).encode(), 400, param)


def _raw(text: bytes, param: str | None = None, **headers: str) -> Case:
    return Case("/v1/completions", text, 400, param, {name.replace("_", "-"): value for name, value in headers.items()})


_IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x"}}]}]
_DEEP = b"[" * 50_000 + b"]" * 50_000

CASES: dict[str, Case] = {
    "huge n": _field("n", 10**9),
    "huge best_of": _field("best_of", 10**9),
    "huge logprobs": _field("logprobs", 10**9),
    "negative logprobs": _field("logprobs", -1),
    "a penalty out of range": _field("repetition_penalty", -1),
    "a presence penalty out of range": _field("presence_penalty", 1e6),
    "a huge penalty": _field("frequency_penalty", 1e308),
    "a temperature beyond floats": _raw(b'{"prompt": "x", "temperature": 1e999}', "temperature"),
    "NaN": _raw(b'{"prompt": "x", "temperature": NaN}'),
    "infinity": _raw(b'{"prompt": "x", "temperature": -Infinity}'),
    "more min_tokens than max_tokens": _field("min_tokens", 10**6),
    "more tokens than there is context": _field("prompt", [9] * 10**5),
    "more tokens than fit a machine word": _field("max_tokens", 10**30),
    "no prompt": _raw(b"{}", "prompt"),
    "an empty list of prompts": _field("prompt", []),
    "an empty list of ids": _field("prompt", [[]]),
    "a batch beyond bounds": _field("prompt", ["x"] * 5000),
    "the mask id": _field("prompt", [1, 5, 9]),
    "an id beyond the vocabulary": _field("prompt", [10**9]),
    "a negative id": _field("prompt", [-1]),
    "a huge id": _field("prompt", [10**40]),
    "a stop token beyond the vocabulary": _field("stop_token_ids", [10**12]),
    "a bias beyond the vocabulary": _field("logit_bias", {"99999999": 1}),
    "many biases": _field("logit_bias", {str(n): 1 for n in range(5000)}),
    "a huge block": _field("block_length", 10**9),
    "a block of nothing": _field("block_length", 0),
    "steps beyond the block": _raw(
        b'{"prompt": "x", "decoding": "diffusion", "max_denoising_steps": 1000000000}', "max_denoising_steps"
    ),
    "no steps": _raw(b'{"prompt": "x", "decoding": "diffusion", "max_denoising_steps": 0}', "max_denoising_steps"),
    "a long suffix": _field("suffix", "x " * 5000)._replace(param=None),
    "many stops": _field("stop", ["x"] * 1000),
    "a long stop": _field("stop", "x" * 100_000),
    "a long salt": _field("cache_salt", "x" * 10_000),
    "a long unknown field": _field("x" * 10_000, 1, "x" * 64 + "..."),
    "deep nesting": _raw(_DEEP),
    "deep nesting in a field": _raw(b'{"prompt": "x", "metadata": {"a": ' + _DEEP + b"}}"),
    "a number of many digits": _raw(b'{"prompt": "x", "seed": ' + b"9" * 100_000 + b"}"),
    "a key twice": _raw(b'{"prompt": "x", "prompt": "y"}'),
    "no UTF-8": _raw(b'{"prompt": "\xff\xfe"}'),
    "half a surrogate": _raw(b'{"prompt": "\\ud800"}'),
    "no JSON": _raw(b"prompt=x"),
    "nothing": _raw(b""),
    "another type": _raw(b'{"prompt": "x"}', content_type="text/plain"),
    "a form": _raw(b"prompt=x", content_type="application/x-www-form-urlencoded"),
    "a compressed body": _raw(b"\x1f\x8b\x08\x00", content_encoding="gzip"),
    "a template": _chat("chat_template", chat_template="{{ ''.__class__.__mro__ }}"),
    "template arguments": _chat("chat_template_kwargs", chat_template_kwargs={"a": "{{ 7 * 7 }}"}),
    "an address to fetch": _chat("messages", messages=_IMAGE),
    "a role of its own": _chat("messages", messages=[{"role": "root", "content": "x"}]),
    "no messages": _chat("messages", messages=[]),
    "tools": _chat("tools", tools=[{"type": "function", "function": {"name": "f"}}] * 1000),
    "a model's path": _field("model", "../../etc/passwd")._replace(status=404),
    "a null max_tokens": Case("/v1/completions", b'{"prompt": "x", "max_tokens": null}', 200),
    "a prompt that spells the mask": Case("/v1/completions", b'{"prompt": "<|mask|> <|pad|> <|bos|>"}', 200),
}


def exchange(port: int, raw: bytes, seconds: float = 10.0) -> bytes:
    """Sends bytes and reads until the server closes. A server may close before it has read everything."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        answer = b""
        try:
            connection.sendall(raw)
            while part := connection.recv(65536):
                answer += part
        except ConnectionError:
            pass
        return answer
