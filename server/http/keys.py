"""API keys: bearer tokens, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers

from engine.errors import ConfigError
from server.http.errors import Unauthorized

OPEN_PATHS = frozenset({"/health", "/ping", "/ready"})
"""Paths that never need a key: orchestrators and load balancers have none. Every other path does, known or not,
but for those that `Keys.load` is given."""

KEY_HEADERS = ("authorization", "api-key", "x-api-key")
"""Headers that may carry a key, the first one that is there counting: OpenAI's clients send the first, Azure's the
second, Anthropic's the third."""


class Keys:
    """The accepted keys. Only their digests are held, all of one length, so comparing tells nothing of a key."""

    def __init__(self, keys: Iterable[str], public_paths: frozenset[str] = OPEN_PATHS) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._public_paths = public_paths

    @classmethod
    def load(
        cls,
        keys: Iterable[str],
        file: str | None,
        *,
        public_metrics: bool,
        also_public: frozenset[str] = frozenset(),
    ) -> Keys:
        """The given keys and those of a file with one key a line. Raises ConfigError.

        public_metrics: /metrics needs no key. also_public: further paths that need none.
        """
        accepted = [*keys, *(_read_keys(file) if file is not None else ())]
        for number, key in enumerate(accepted, 1):
            if not (key.isascii() and key.isprintable()) or " " in key:
                raise ConfigError(f"API key {number} of {len(accepted)} holds a character that no header can carry")
        return cls(accepted, OPEN_PATHS | also_public | ({"/metrics"} if public_metrics else set()))

    def check(self, path: str, headers: Headers) -> None:
        """Raises Unauthorized unless the path is open or the request carries an accepted key."""
        if not self._digests or path in self._public_paths:
            return
        key = _key_of(headers)
        if not key:
            raise Unauthorized(
                "You didn't provide an API key. Send it in an Authorization header: 'Authorization: Bearer KEY'.",
                None,
                "missing_api_key",
                {"WWW-Authenticate": "Bearer"},
            )
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise Unauthorized("Incorrect API key provided.", None, "invalid_api_key", {"WWW-Authenticate": "Bearer"})


def _key_of(headers: Headers) -> str:
    """The key of a request, from the first of the headers that it has; empty where there is none.

    A header that is there twice with different values gives none: two readers could take different ones.
    """
    for name in KEY_HEADERS:
        values = set(headers.getlist(name))
        if values:
            value = values.pop()
            if values:
                return ""
            if name != "authorization":
                return value.strip()
            scheme, _, key = value.partition(" ")
            return key.strip() if scheme.lower() == "bearer" else ""
    return ""


def _read_keys(file: str) -> list[str]:
    """The keys of a file; empty lines and lines that begin with # are left out. Raises ConfigError."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read api_key_file {file}: {exc}") from None
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise ConfigError(f"api_key_file {file} holds no key")
    return found
