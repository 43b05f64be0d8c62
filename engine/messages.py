"""Messages between the API process and the engine process: msgspec structs over one ZeroMQ PAIR socket. A leaf."""

import msgspec

from engine.config import EngineInfo
from engine.events import GenerationEvent, StepStats
from engine.request import Request

HEARTBEAT_SECONDS = 1.0
"""Longest time between two messages of an engine that has nothing to do."""


class AddRequests(msgspec.Struct, tag=True, frozen=True):
    """Requests to run; they join between two passes."""

    requests: list[Request]


class AbortRequests(msgspec.Struct, tag=True, frozen=True):
    """Drop these before the next pass. Unknown or finished ids are ignored: an abort may cross a Finished."""

    request_ids: list[str]


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    """Leave at once; what is in flight is dropped."""


ToEngine = AddRequests | AbortRequests | Shutdown


class EngineReady(msgspec.Struct, tag=True, frozen=True):
    """The model is loaded; requests may come."""

    info: EngineInfo


class EngineFailed(msgspec.Struct, tag=True, frozen=True):
    """The engine could not start or could not go on; it exits after this. One line, fit to be shown to an operator."""

    message: str


class EngineUpdate(msgspec.Struct, tag=True, frozen=True):
    """Sent after each step, and about once a second while idle, so that silence means the engine is stuck."""

    events: list[GenerationEvent]
    stats: StepStats


FromEngine = EngineReady | EngineFailed | EngineUpdate
