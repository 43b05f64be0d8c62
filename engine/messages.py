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


class EngineLoading(msgspec.Struct, tag=True, frozen=True):
    """How far the weights are. Sent a few times a second while they are read; the last one says that all of them are.

    What follows (measuring, capturing passes) tells nothing of itself.
    """

    bytes: int
    """Read so far, as they are stored."""
    total_bytes: int
    files: int
    """Read to their ends."""
    total_files: int


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


FromEngine = EngineLoading | EngineReady | EngineFailed | EngineUpdate


class Gpu(msgspec.Struct, frozen=True):
    """A GPU of this machine."""

    name: str
    capability: str
    """Compute capability, such as 9.0."""
    total_bytes: int
    free_bytes: int


class ModelNeeds(msgspec.Struct, frozen=True):
    """What a model directory turned out to be, its weights not loaded."""

    info: EngineInfo
    """As the engine would tell it; num_pages is 0."""
    weight_bytes: int
    """Of all weights in the type that they would run in."""
    kv_bytes_per_token: int


class Inspection(msgspec.Struct, frozen=True):
    """What `python -m engine.measure.inspection` found."""

    torch: str
    cuda: str | None
    """Version that torch was built for; None: a build without."""
    gpus: list[Gpu]
    threads: int
    """torch's by default, on a CPU."""
    huge_pages: str
    """The system's setting of transparent huge pages, as in `engine.device.huge_pages`."""
    kernels: dict[str, str]
    """By name: why they cannot run on the device; empty where they can."""
    device: str
    """Empty where there is none of the name that was asked for."""
    model: ModelNeeds | None
    problem: str
    """Why the engine could not serve the model here, in one line; empty where nothing is known against it."""
