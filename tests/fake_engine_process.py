"""An engine process without a model, for tests of the bridge to it: `python fake_engine_process.py MODE ENDPOINT`.

It speaks the engine's protocol and misbehaves as its mode says; `steady` only takes its time, `mute` never answers,
`noisy` writes what is no log, `reading` reads four files of weights first.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator

import msgspec
import zmq

from engine.config import EngineConfig
from engine.events import GenerationEvent, StepStats
from engine.messages import (
    AbortRequests,
    AddRequests,
    EngineFailed,
    EngineLoading,
    EngineReady,
    EngineUpdate,
    FromEngine,
    ToEngine,
)
from engine.request import Request
from tests.fakes import INFO, TEXT, saying

IDLE = StepStats(running=0, waiting=0, free_pages=64, num_pages=64)


class Fake:
    """One connection to the API process."""

    def __init__(self, mode: str, endpoint: str) -> None:
        self.mode = mode
        self.socket: zmq.Socket[bytes] = zmq.Context().socket(zmq.PAIR)
        self.socket.connect(endpoint)
        self.aborted: list[str] = []
        self.speaking: dict[str, Iterator[GenerationEvent]] = {}

    def send(self, message: FromEngine) -> None:
        self.socket.send(msgspec.msgpack.encode(message))

    def run(self) -> int:
        if self.mode == "exit":
            return 3
        if self.mode == "fail":
            self.send(EngineFailed("the weights are damaged"))
            self.socket.close(linger=1000)
            return 1
        if self.mode == "hang":
            time.sleep(60)
        if self.mode == "reading":
            for files in range(5):
                self.send(EngineLoading(files * 10**9, 4 * 10**9, files, 4))
                time.sleep(0.3)
        self.send(EngineReady(INFO))
        decoder = msgspec.msgpack.Decoder(ToEngine)
        while True:
            if self.speaking:
                self.speak()
            if self.socket.poll(10 if self.speaking else 100):
                message = decoder.decode(self.socket.recv())
                if isinstance(message, AddRequests):
                    for request in message.requests:
                        self.answer(request)
                elif isinstance(message, AbortRequests):
                    self.aborted += message.request_ids
                    for request_id in message.request_ids:
                        self.speaking.pop(request_id, None)
                else:
                    return 0
            elif self.mode != "silent":
                self.send(EngineUpdate([], IDLE))

    def answer(self, request: Request) -> None:
        if request.cache_salt == "what was aborted?":
            self.say(request, " ".join(self.aborted))
            return
        if self.mode == "mute":
            return
        if self.mode == "steady":
            self.speaking[request.request_id] = iter(saying(TEXT * 20, chunk=1)(request))
            return
        events: list[GenerationEvent] = list(saying()(request))
        if self.mode in ("crash", "stall", "garbage") or request.cache_salt == "crash":
            self.send(EngineUpdate(events[:1], IDLE))
            time.sleep(0.05)
            if self.mode == "stall":
                time.sleep(60)
            if self.mode == "garbage":
                self.socket.send(b"\xc1not a message")
                return
            os._exit(9)
        for event in events[: 1 if self.mode == "slow" else None]:
            self.send(EngineUpdate([event], IDLE))

    def speak(self) -> None:
        """The next token of everybody: about a hundred a second."""
        events: list[GenerationEvent] = []
        for request_id, script in list(self.speaking.items()):
            event = next(script, None)
            if event is None:
                del self.speaking[request_id]
            else:
                events.append(event)
        running = len(self.speaking)
        self.send(EngineUpdate(events, StepStats(running=running, waiting=0, free_pages=64 - running, num_pages=64)))

    def say(self, request: Request, text: str) -> None:
        self.send(EngineUpdate(list(saying(text)(msgspec.structs.replace(request, max_tokens=200))), IDLE))


def leave_with_parent() -> None:
    while os.read(0, 4096):  # not sys.stdin, whose lock would be held at the interpreter's end
        pass
    os._exit(0)


def main() -> int:
    msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineConfig)
    threading.Thread(target=leave_with_parent, daemon=True).start()
    if sys.argv[1] == "noisy":
        print("on standard output", flush=True)
        print("not a log line\n\n" + "x" * 2**21, file=sys.stderr, flush=True)
    return Fake(sys.argv[1], sys.argv[2]).run()


if __name__ == "__main__":
    sys.exit(main())
