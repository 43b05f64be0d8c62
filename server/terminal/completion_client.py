"""The HTTP client of `lightcone generate`: the request, and the answer as it is streamed."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

RAW_MAX_TOKENS = 64


class GenerateError(Exception):
    """There is no answer, or no more of it. The message is one line for the user."""


@dataclass(frozen=True)
class DraftToken:
    """One position of a draft; no text where it is masked."""

    text: str | None
    confidence: float | None


@dataclass(frozen=True)
class Draft:
    """The part of an answer that is not settled yet."""

    text: str = ""
    block: int = 0
    step: int = 0
    masked: int = 0
    length: int = 0
    tokens: list[DraftToken] = field(default_factory=list)


@dataclass
class Answer:
    """The answer as far as it has been received."""

    text: str = ""
    draft: Draft | None = None
    rejected: str = ""
    """The end of the last draft, if verification has just rejected it."""
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)

    def apply(self, chunk: dict[str, Any]) -> None:
        """Adds one chunk of a stream."""
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or ():
            delta = (choice["text"] if "text" in choice else choice.get("delta", {}).get("content")) or ""
            self.text += delta
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            if "draft" in choice:
                last, self.draft = self.draft, None if choice["draft"] is None else _draft(choice["draft"])
                verified = last is not None and last.masked == 0 and self.draft is None and self.finish_reason is None
                self.rejected = last.text[_agreeing(last.text, delta) :] if last is not None and verified else ""


def _agreeing(draft: str, settled: str) -> int:
    """Characters at the beginning that are the same in both."""
    return next(
        (n for n, (a, b) in enumerate(zip(draft, settled, strict=False)) if a != b), min(len(draft), len(settled))
    )


def _draft(raw: dict[str, Any]) -> Draft:
    tokens = [DraftToken(token["text"], token["confidence"]) for token in raw["tokens"]]
    return Draft(raw["text"], raw["block"], raw["step"], raw["masked"], raw["length"], tokens)


@dataclass(frozen=True)
class Prompt:
    """The request. A field that is None is not sent: the server's default holds."""

    text: str
    raw: bool = False
    history: tuple[dict[str, str], ...] = ()
    """The messages before it, in a chat."""
    suffix: str | None = None
    decoding: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    threshold: float | None = None
    block_length: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request, by name."""

    @property
    def path(self) -> str:
        """The path of the endpoint."""
        return "/v1/completions" if self.raw else "/v1/chat/completions"

    def body(self, *, drafts: bool) -> dict[str, Any]:
        """The request's JSON. Without `drafts` it is OpenAI's own but for the decoding fields that were given."""
        fields: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("suffix", "decoding", "max_tokens", "temperature", "seed", "threshold", "block_length")
            if getattr(self, name) is not None
        }
        fields |= self.fields
        if self.raw:
            fields = {"prompt": self.text, "max_tokens": RAW_MAX_TOKENS, **fields}
        else:
            fields = {"messages": [*self.history, {"role": "user", "content": self.text}], **fields}
        options: dict[str, bool] = {"include_usage": True}
        if drafts:
            options |= {"include_drafts": True, "continuous_usage_stats": True}
        return {**fields, "stream": True, "stream_options": options}


async def chunks(client: httpx.AsyncClient, prompt: Prompt, *, drafts: bool) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks of the answer as they arrive. Raises GenerateError."""
    try:
        async with client.stream("POST", prompt.path, json=prompt.body(drafts=drafts)) as response:
            if response.status_code != 200:
                await response.aread()
                raise GenerateError(_reason(response))
            async for data in _events(response.aiter_bytes()):
                if data == b"[DONE]":
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    raise GenerateError(str(chunk["error"].get("message", chunk["error"])))
                yield chunk
    except httpx.UnsupportedProtocol:
        raise GenerateError("the URL must begin with http:// or https://") from None
    except httpx.ConnectError as exc:
        raise GenerateError(f"cannot reach {client.base_url}: {_cause(exc)}") from None
    except httpx.TransportError as exc:
        raise GenerateError(f"the connection failed: {_cause(exc)}") from None
    except json.JSONDecodeError:
        raise GenerateError("the server sent something that is not JSON; is it an OpenAI-compatible server?") from None
    raise GenerateError("the stream ended before the answer was complete")


async def _events(parts: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The data of server-sent events. Lines end with LF only: text may hold what else counts as a line's end."""
    buffer = b""
    async for part in parts:
        *lines, buffer = (buffer + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[len(b"data:") :].strip()


def _reason(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        message = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        message = f"HTTP {response.status_code} {response.reason_phrase}".strip()
    retry = response.headers.get("retry-after")
    return f"{message} (retry after {retry} s)" if retry else str(message)


def _cause(exc: Exception) -> str:
    return str(exc).strip() or type(exc).__name__
