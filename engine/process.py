"""The engine process: `python -m engine.process ENDPOINT`, started by the API process as a plain subprocess.

The first line of stdin is the EngineConfig as JSON. stdin then stays open for as long as the API process lives. Its end
of file means that the parent is gone, and the process exits at once; one thread waits for that. The main thread takes
messages between two passes, steps the engine, and sends events over a ZeroMQ PAIR socket. Messages are msgspec structs,
and nothing received is ever unpickled.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path

import msgspec
import zmq

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import EngineError, RequestError
from engine.events import Finished, GenerationEvent, GenerationStats
from engine.messages import (
    HEARTBEAT_SECONDS,
    AbortRequests,
    AddRequests,
    EngineFailed,
    EngineLoading,
    EngineReady,
    EngineUpdate,
    FromEngine,
    Shutdown,
    ToEngine,
)
from engine.ranks.lifeline import leave_with_parent, set_up_log
from engine.request import Request

log = logging.getLogger("lightcone.engine")


class EngineProcess:
    """Connects an Engine to the API process's socket."""

    def __init__(self, engine: Engine, socket: zmq.Socket[bytes]) -> None:
        self.engine = engine
        self._socket = socket
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._encoder = msgspec.msgpack.Encoder()
        self._stopping = False

    def send(self, message: FromEngine) -> None:
        """Queues a message; never blocks."""
        self._socket.send(self._encoder.encode(message))

    def serve(self) -> None:
        """Runs until told to shut down."""
        while not self._stopping:
            events = self._receive(wait=not self.engine.has_work)
            stepped, stats = self.engine.step()
            self.send(EngineUpdate(events + stepped, stats))

    def _receive(self, wait: bool) -> list[GenerationEvent]:
        """Handles every message that has arrived. wait: for the first one, up to a heartbeat."""
        events: list[GenerationEvent] = []
        timeout = int(HEARTBEAT_SECONDS * 1000) if wait else 0
        while self._socket.poll(timeout):
            timeout = 0
            message = self._decoder.decode(self._socket.recv())
            match message:
                case AddRequests(requests):
                    for request in requests:
                        events += self._add(request)
                case AbortRequests(request_ids):
                    for request_id in request_ids:
                        events += self.engine.abort(request_id)
                case Shutdown():
                    self._stopping = True
        return events

    def _add(self, request: Request) -> list[GenerationEvent]:
        try:
            self.engine.add(request)
        except RequestError as error:
            # The API process has checked the request with the same rules; a defect there must not end the engine.
            return [Finished(request_id=request.request_id, reason="error", stats=GenerationStats(), error=str(error))]
        except Exception:
            log.exception("request %s could not be added", request.request_id)
            return [
                Finished(
                    request_id=request.request_id, reason="error", stats=GenerationStats(),
                    error="The engine failed to accept this request.",
                )
            ]  # fmt: skip
        return []


def main() -> int:
    """Entry point. Exits 0 after Shutdown, 1 after a failure that it has reported in one line."""
    # Ctrl-C reaches the whole terminal group; the API process handles it and sends Shutdown.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up_log()
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineConfig)
    leave_with_parent()
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    socket.set_hwm(0)
    socket.connect(sys.argv[1])
    encoder = msgspec.msgpack.Encoder()

    def report(*progress: int) -> None:
        socket.send(encoder.encode(EngineLoading(*progress)))

    def tell(message: str) -> None:
        socket.send(encoder.encode(EngineFailed(message)))

    def tell_and_close(message: str) -> None:
        """For another thread, while the main thread waits for a rank that is gone, and will not use the socket."""
        tell(message)
        socket.close(linger=2000)
        context.term()
        os._exit(1)

    code = 0
    engine: Engine | None = None
    try:
        started = time.monotonic()
        # The directory of the socket is private, and the API process removes it with what is in it.
        engine = Engine.load(config, report, Path(sys.argv[1].removeprefix("ipc://")).parent, tell_and_close)
        log.info("model loaded in %.1f s", time.monotonic() - started)
        process = EngineProcess(engine, socket)
        process.send(EngineReady(engine.info))
        process.serve()
    except EngineError as error:
        tell(str(error))
        code = 1
    except Exception as error:
        log.exception("the engine process failed")
        tell(f"the engine failed: {type(error).__name__}: {error}".splitlines()[0])
        code = 1
    if engine is not None:
        engine.close()
    socket.close(linger=2000)
    context.term()
    return code


if __name__ == "__main__":
    sys.exit(main())
