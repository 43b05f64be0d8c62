"""`lightcone serve`: listens, handles signals, and shuts down in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import resource
import signal
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from engine.errors import ConfigError
from server.app import create_app
from server.http.connection import ConnectionLimits, http_protocol
from server.operation import logs
from server.operation.config import Config, ServerConfig
from server.operation.service import Service

logger = logging.getLogger("lightcone.server")

CONNECTION_TIMEOUT = 5.0
"""Longest wait for connections to close once everything has been answered."""
SPARE_FILES = 256
"""File descriptors for everything but connections."""


class Server(uvicorn.Server):
    """uvicorn's server, except that the first signal drains with the listener open and a second one exits at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._drain: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Replaces uvicorn's handlers, which close the listener at once and raise the signal again at the end."""
        loop = asyncio.get_running_loop()
        watch = loop.create_task(self._watch())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
            watch.cancel()

    def _on_signal(self, number: int) -> None:
        if self._drain is None:
            self._drain = asyncio.get_running_loop().create_task(self._leave())
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


def listen(config: ServerConfig) -> socket.socket:
    """Binds the address. Raises ConfigError with one line."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        listener.listen(2048)
    except OSError as exc:
        listener.close()
        raise ConfigError(f"cannot listen on {config.host} port {config.port}: {exc.strerror or exc}") from None
    listener.setblocking(False)
    return listener


def run(config: Config) -> int:
    """Serves until told to stop. Returns the exit status. Raises ConfigError before anything is served."""
    logs.set_up(config.server.log_level)
    listener = listen(config.server)
    try:
        return asyncio.run(_serve(config, listener))
    except KeyboardInterrupt:  # between two signals' handlers being ours
        return 130
    finally:
        listener.close()


async def _serve(config: Config, listener: socket.socket) -> int:
    app = create_app(config)
    service: Service = app.state.service
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if config.server.tls_cert else "http"
    logger.info("listening on %s://%s:%d", scheme, shown, port, extra={"fields": {"model": service.name, "port": port}})
    server = _server(app, config.server, service)
    _raise_file_limit(config.server.max_connections + SPARE_FILES)
    settling = asyncio.create_task(_settle(service))
    try:
        await server.serve(sockets=[listener])
    finally:
        settling.cancel()
    if service.fatal is not None:
        print(f"lightcone: error: {service.fatal}", file=sys.stderr)
        return 1
    return 0


async def _settle(service: Service) -> None:
    """Once the model is loaded, tells the garbage collector not to look through what stays while requests wait."""
    await service.loaded.wait()
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


def _raise_file_limit(wanted: int) -> None:
    """Every connection is a file: out of them, a server accepts nobody, probes included."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        logger.warning("max_connections needs %d open files, but this process may have only %d", wanted, most)
