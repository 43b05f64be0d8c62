"""The engine process as a child of this one, and the socket to it: start, send, receive, stop. No restarts here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from engine.config import EngineConfig, EngineInfo
from engine.messages import EngineFailed, EngineLoading, EngineReady, FromEngine, Shutdown, ToEngine
from server.engine_link.directory import SocketDirectory
from server.engine_link.output import Output

_ROOT = str(Path(__file__).resolve().parents[2])

MAX_MESSAGES = 32
"""Most messages taken together where this process has fallen behind."""
STOP_TIMEOUT = 5.0
"""Seconds between asking an engine to leave and killing it."""


class EngineChildError(Exception):
    """The engine process failed. One line, fit for an operator."""


def package_environment() -> dict[str, str]:
    """The environment of a child that is started with -P: it finds the packages beside this one, wherever it starts."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])}


class EngineChild:
    """An engine process of its own session, spoken to over a ZeroMQ PAIR socket in a private directory.

    Its stdin stays open as long as this process lives: at end of file the engine leaves, so it cannot be orphaned.
    """

    def __init__(self, argv: list[str] | None = None) -> None:
        # -P: never the `engine` package that may lie in the current directory, but the one beside this package.
        self._argv = argv or [sys.executable, "-P", "-m", "engine.process"]
        self._directory: SocketDirectory | None = None
        self._context: zmq.asyncio.Context | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._output: Output | None = None
        self._exit: asyncio.Task[int] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._listening = False
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)

    async def start(self, config: EngineConfig, on_loading: Callable[[EngineLoading], None]) -> EngineInfo:
        """Starts the process and waits for it to have loaded its model. Raises EngineChildError."""
        self._directory = SocketDirectory()
        endpoint = self._directory.endpoint
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(endpoint)
        self._output = await Output.open()
        self._process = await asyncio.create_subprocess_exec(
            *self._argv,
            endpoint,
            env=package_environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=self._output.write_end,
            stderr=self._output.write_end,
            start_new_session=True,
        )
        self._output.hand_over()
        self._exit = asyncio.create_task(self._process.wait())
        if self._process.stdin is not None:
            self._process.stdin.write(msgspec.json.encode(config) + b"\n")
        while isinstance(message := await self.receive(), EngineLoading):
            on_loading(message)
        if isinstance(message, EngineReady):
            self._listening = True
            return message.info
        if isinstance(message, EngineFailed):
            raise EngineChildError(message.message)
        raise EngineChildError("the engine spoke before it was ready")

    def send(self, message: ToEngine) -> None:
        """Queues a message to the engine; never blocks. To an engine that is gone it goes nowhere."""
        if self._socket is not None:
            # In order, and at once while there is a peer: nothing to wait for.
            sent = asyncio.ensure_future(self._socket.send(self._encoder.encode(message)))
            sent.add_done_callback(lambda future: future.cancelled() or future.exception())

    async def receive(self) -> FromEngine:
        """The next message. Raises EngineChildError once the process is gone and all it said has been read."""
        if self._socket is None or self._exit is None:
            raise EngineChildError("the engine is not running")
        received = asyncio.ensure_future(self._socket.recv())
        try:
            await asyncio.wait({received, self._exit}, return_when=asyncio.FIRST_COMPLETED)
            if not received.done():
                # What it said last may still be on its way through the socket.
                await asyncio.wait({received}, timeout=0.2)
            if received.done():
                return self._decoder.decode(received.result())
        except msgspec.DecodeError as exc:
            raise EngineChildError(f"the engine sent a message that cannot be read: {exc}") from None
        finally:
            received.cancel()
        raise EngineChildError(f"the engine process ended ({_describe_exit(self._exit.result())})")

    def receive_waiting(self) -> list[FromEngine]:
        """The messages that are here already, a bounded number of them. Raises EngineChildError."""
        found: list[FromEngine] = []
        if self._socket is None:
            return found
        waiting: zmq.Socket[bytes] = zmq.Socket.shadow(self._socket)
        try:
            while len(found) < MAX_MESSAGES:
                found.append(self._decoder.decode(waiting.recv(zmq.NOBLOCK)))
        except zmq.Again:
            pass
        except msgspec.DecodeError as exc:
            raise EngineChildError(f"the engine sent a message that cannot be read: {exc}") from None
        return found

    async def close(self) -> None:
        """Ends the process, gently if it listens, and removes what it left. Idempotent; goes on when cancelled."""
        self._closing = self._closing or asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._exit is not None:
            self.send(Shutdown())
            if process.stdin is not None:
                process.stdin.close()
            if self._listening:  # before that it has nothing to lose, and hears nothing
                await asyncio.wait({self._exit}, timeout=STOP_TIMEOUT)
            self._kill(process)
            await self._exit
        output, self._output = self._output, None
        if output is not None:
            await output.close()
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close(linger=0)
        context, self._context = self._context, None
        if context is not None:
            context.term()
        self._remove_directory()

    def kill(self) -> None:
        """Ends the process now, without waiting."""
        if self._process is not None:
            self._kill(self._process)
        self._remove_directory()

    @staticmethod
    def _kill(process: asyncio.subprocess.Process) -> None:
        """The engine leads a session of its own, so its process group is it and whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)

    def _remove_directory(self) -> None:
        directory, self._directory = self._directory, None
        if directory is not None:
            directory.remove()


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"
