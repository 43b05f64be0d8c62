"""Reader of OpenAI's answers, streamed or whole: bytes in, plain records out. No I/O."""

from typing import Any

import msgspec

from loadtest.records import Record


class _Text(msgspec.Struct):
    content: str | None = None


class _Present(msgspec.Struct):
    """An object of which only the presence matters; its fields are skipped."""


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    delta: _Text | None = None
    message: _Text | None = None
    finish_reason: str | None = None
    draft: _Present | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Diffusion(msgspec.Struct):
    decoding: str = ""
    passes: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    diffusion: _Diffusion | None = None


class Chunk(msgspec.Struct):
    """One streamed chunk, or a whole answer. All other fields are skipped without being decoded."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None
    diffusion_meta: _Present | None = None

    def pieces(self) -> str:
        """The text of the first choice in this chunk; empty when it brings none."""
        found = ""
        for choice in self.choices:
            if choice.index == 0:
                body = choice.delta or choice.message
                found += (body.content if body is not None else choice.text) or ""
        return found


_decoder = msgspec.json.Decoder(Chunk)


def decode(payload: bytes) -> Chunk:
    """Decode one JSON payload. Raises msgspec.DecodeError (a ValueError) when it is not one."""
    return _decoder.decode(payload)


class EventLines:
    """Cuts a byte stream into the payloads of its `data:` lines, wherever the network cut it."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by `data`, in order. Comments and other fields are skipped."""
        data = self._rest + data
        *lines, self._rest = data.split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


def note(record: Record, chunk: Chunk) -> None:
    """Copy the usage and the finish reason of a chunk, if it has them, into the record."""
    for choice in chunk.choices:
        if choice.finish_reason:
            record.finish_reason = choice.finish_reason
    usage = chunk.usage
    if usage is None:
        return
    record.prompt_tokens = usage.prompt_tokens
    record.completion_tokens = usage.completion_tokens
    if usage.prompt_tokens_details is not None:
        record.cached_tokens = usage.prompt_tokens_details.cached_tokens
    if usage.diffusion is not None:
        record.passes = usage.diffusion.passes
        record.decoding = usage.diffusion.decoding


def error_message(payload: bytes | Any) -> str:
    """The message of an OpenAI error object, or the start of whatever was sent instead; at most 200 characters."""
    found: Any = payload
    if isinstance(payload, bytes):
        try:
            found = msgspec.json.decode(payload)
        except msgspec.DecodeError:
            found = payload.decode("utf-8", "replace")
    for key in ("error", "message"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return " ".join(str(found).split())[:200]
