"""`lightcone serve`: listens, handles signals, and shuts down in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from engine.errors import ConfigError
from server.app import create_app
from server.http.connection import ConnectionLimits, http_protocol
from server.http.errors import is_shortage
from server.http.listener import BACKLOG, Listener, raise_file_limit
from server.operation import logs
from server.operation.config import Config, ServerConfig
from server.operation.logs import OncePerSecond
from server.operation.service import Service
from server.version import VERSION

if TYPE_CHECKING:
    from server.operation.load_display import LoadDisplay

logger = logging.getLogger("lightcone.server")

CONNECTION_TIMEOUT = 5.0
"""Longest wait for connections to close once everything has been answered."""
PROGRESS_LEVELS = ("debug", "info")
"""Log levels at which a terminal is shown how far a model is."""
ACCEPTED_AT_ONCE = 8
"""Most connections that the event loop accepts before it does anything else."""


class Server(uvicorn.Server):
    """uvicorn's server, except that the first signal drains with the listener open and a second one exits at once.

    SIGHUP, which a terminal sends to what it has started when it goes, drains as well and is not counted as a second
    signal: it often comes twice. Where it is ignored, as under nohup, it stays so.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._drain: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Replaces uvicorn's handlers, which close the listener at once and raise the signal again at the end."""
        loop = asyncio.get_running_loop()
        watch = loop.create_task(self._watch())
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
            watch.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to accept. asyncio takes one number for what may wait and for what it accepts at once."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)

    def _on_signal(self, number: int) -> None:
        if self._drain is None:
            self._drain = asyncio.get_running_loop().create_task(self._leave())
            return
        if number == signal.SIGHUP:
            return
        self._service.engine.kill()
        os._exit(128 + number)

    async def _leave(self) -> None:
        await self._service.drain()
        self.should_exit = True

    async def _watch(self) -> None:
        """Ends the server when its service cannot go on."""
        await self._service.ended.wait()
        self.should_exit = True


def listen(config: ServerConfig) -> Listener:
    """Binds the address. Raises ConfigError with one line."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = Listener(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise ConfigError(f"cannot listen on {config.host} port {config.port}: {exc.strerror or exc}") from None
    listener.setblocking(False)
    return listener


def run(config: Config) -> int:
    """Serves until told to stop. Returns the exit status. Raises ConfigError before anything is served."""
    logs.set_up(config.server.log_level, config.server.log_format)
    listener = listen(config.server)
    try:
        return asyncio.run(_serve(config, listener))
    except KeyboardInterrupt:  # between two signals' handlers being ours
        return 130
    finally:
        listener.close()


async def _serve(config: Config, listener: Listener) -> int:
    app = create_app(config)
    service: Service = app.state.service
    url = _url(listener, config.server)
    port = listener.getsockname()[1]
    banner = f"Lightcone {VERSION}: {service.name} at {url}"
    logger.info("listening on %s", url, extra={"fields": {"model": service.name, "port": port}, "text": banner})
    display = _display(service)
    server = _server(app, config.server, service)
    listener.highest = raise_file_limit(config.server.max_connections, logger.warning)
    listener.on_refused, listener.tls = service.record_refusal, config.server.tls_cert is not None
    asyncio.get_running_loop().set_exception_handler(_LoopErrors())
    settling = asyncio.create_task(_settle(service, url))
    try:
        await server.serve(sockets=[listener])
    finally:
        settling.cancel()
        if display is not None:
            display.stop()
    if service.fatal is not None:
        print(f"lightcone: error: {service.fatal}", file=sys.stderr)
        return 1
    return 0


def _display(service: Service) -> LoadDisplay | None:
    """What shows a person how far the model is; None where the log goes to no terminal, or is to say little."""
    options = service.config.server
    if not (sys.stderr.isatty() and logs.is_for_people(options.log_format)) or options.log_level not in PROGRESS_LEVELS:
        return None
    from server.operation.load_display import LoadDisplay  # what draws it takes its time, and few need it

    return LoadDisplay(service.loading)


def _url(listener: socket.socket, config: ServerConfig) -> str:
    """The address that was bound, as a URL."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if config.tls_cert else 'http'}://{shown}:{port}"


async def _settle(service: Service, url: str) -> None:
    """Once the model is loaded, says so, and tells the garbage collector not to look through what stays."""
    await service.loaded.wait()
    shown = url.replace("//0.0.0.0:", "//localhost:").replace("//[::]:", "//localhost:")
    key = " -H 'Authorization: Bearer KEY'" if service.config.server.has_keys else ""
    example = (
        f"curl {shown}/v1/completions -H 'Content-Type: application/json'{key} "
        """-d '{"prompt": "Once upon a time", "max_tokens": 40}'"""
    )
    text = f"ready: {service.name} at {shown}\n  try it   {example}\n  docs     {shown}/docs"
    fields = {"model": service.name, "url": shown, "docs": f"{shown}/docs"}
    logger.info("ready", extra={"fields": fields, "text": text})
    gc.collect()
    gc.freeze()


def _server(app: FastAPI, config: ServerConfig, service: Service) -> Server:
    """Raises ConfigError where the certificate cannot be used."""
    limits = ConnectionLimits(
        header_timeout=config.header_timeout,
        write_timeout=config.stream_stall_timeout,
        max_connections=config.max_connections,
        on_refused=service.record_refusal,
    )
    options = uvicorn.Config(
        app,
        http=http_protocol(limits),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=ACCEPTED_AT_ONCE,
        timeout_keep_alive=math.ceil(config.keep_alive),
        timeout_graceful_shutdown=int(CONNECTION_TIMEOUT),
        ssl_certfile=config.tls_cert,
        ssl_keyfile=config.tls_key,
        ssl_keyfile_password="",  # a locked key is an error, not a question on the terminal
    )
    try:
        options.load()
    except OSError as exc:  # ssl.SSLError is one
        reason = exc.strerror or exc
        raise ConfigError(f"cannot use tls_cert {config.tls_cert} with tls_key {config.tls_key}: {reason}") from None
    return Server(options, service)


class _LoopErrors:
    """The event loop's handler of errors that reach nobody. Being out of resources is one line a second at most."""

    def __init__(self) -> None:
        self._limit = OncePerSecond()

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """See asyncio's set_exception_handler."""
        error = context.get("exception")
        if not is_shortage(error):
            loop.default_exception_handler(context)
        elif self._limit.due():
            logger.warning("out of resources: %s", error, extra={"fields": {"repeated": self._limit.missed}})
