"""The server's configuration: command-line flags over LIGHTCONE_* variables over a TOML file over defaults."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from engine.config import NOT_NEGATIVE, POSITIVE, EngineConfig, Range, check_config, check_ranges
from engine.errors import ConfigError
from engine.messages import HEARTBEAT_SECONDS
from server.tracing.tracer import traces_url

ENV_PREFIX = "LIGHTCONE_"
NOT_OPTIONS = frozenset({"LIGHTCONE_CONFIG", "LIGHTCONE_URL"})
"""Variables with another meaning: the configuration file, and the server that `lightcone generate` speaks to."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the API process. Durations are in seconds. The engine's options are in `EngineConfig`."""

    host: str = "127.0.0.1"
    """Address to listen on; `0.0.0.0` or `::` for every one of the machine."""
    port: Annotated[int, Range(least=0, most=65535)] = 8000
    """0: any free one; the log says which."""
    served_model_name: str | None = None
    """Name clients use in `model`. None: the model as given, or its directory's name."""
    api_keys: tuple[str, ...] = ()
    """Accepted bearer keys, comma-separated in flags and variables. None given: no authentication."""
    api_key_file: str | None = None
    """File with one accepted key a line, added to `api_keys`."""
    public_metrics: bool = False
    """/metrics needs no key."""
    page: bool = True
    """`GET /` is the live page for browsers. Its files need no key; what it asks the API for does."""
    tls_cert: str | None = None
    """PEM file of the certificate chain; with `tls_key` the server speaks HTTPS alone."""
    tls_key: str | None = None
    """PEM file of the certificate's private key."""
    cors_origins: tuple[str, ...] = ()
    """Web origins, such as https://app.example, whose pages may read answers; `*`: any. None given: no CORS headers."""
    max_queued_requests: Annotated[int, NOT_NEGATIVE] = 1024
    """Choices that may wait beyond those that run; more are answered 429."""
    max_queued_tokens: Annotated[int, NOT_NEGATIVE] = 1_000_000
    """Prompt tokens that may wait in requests the engine has not begun; more are answered 429."""
    max_choices: Annotated[int, POSITIVE] = 128
    """Most choices of one request: prompts times `n`."""
    clip_max_tokens: bool = True
    """`max_tokens` beyond what the context leaves becomes what it leaves; false: it is answered 400."""
    tool_call_parser: typing.Literal["auto", "none", "qwen3_coder", "hermes", "mistral", "llama3_json", "pythonic"] = (
        "auto"
    )
    """How the model writes calls of tools. `auto`: as its chat template does. `none`: it calls none."""
    reasoning_parser: typing.Literal["auto", "none", "think", "mistral"] = "auto"
    """The tags around the model's reasoning, `<think>` or `[THINK]`. `auto`: as in its chat template. `none`: answers
    are not taken apart."""
    max_stored_bytes: Annotated[int, NOT_NEGATIVE] = 64 * 1024 * 1024
    """Memory for responses with `store: true` and their conversations; the oldest go first. 0: none are stored."""
    max_body_bytes: Annotated[int, POSITIVE] = 4 * 1024 * 1024
    """A longer request body is answered 413."""
    max_connections: Annotated[int, POSITIVE] = 4096
    """More connections are answered 503 and closed."""
    body_timeout: Annotated[float, POSITIVE] = 30.0
    """Longest a request's body may take to arrive."""
    header_timeout: Annotated[float, POSITIVE] = 30.0
    """Longest a fresh connection may take to send a request's headers."""
    keep_alive: Annotated[float, POSITIVE] = 90.0
    """Idle time after which a connection is closed; longer than proxies pool theirs."""
    request_timeout: Annotated[float, POSITIVE] = 600.0
    """Longest a request may take, queueing included."""
    stream_stall_timeout: Annotated[float, POSITIVE] = 60.0
    """A reader that takes nothing for this long is dropped."""
    sse_keepalive: Annotated[float, NOT_NEGATIVE] = 0.0
    """Interval of comments in a silent stream; 0: none, as some clients fail on them."""
    drain_delay: Annotated[float, NOT_NEGATIVE] = 0.0
    """After SIGTERM: time during which new work is still served, so that a load balancer can notice first."""
    drain_timeout: Annotated[float, NOT_NEGATIVE] = 60.0
    """After the drain delay: longest wait for what is in flight."""
    engine_stall_timeout: Annotated[float, Range(above=HEARTBEAT_SECONDS)] = 120.0
    """An engine silent for this long is restarted; an idle one speaks once a second. The first pass of a size may
    compile kernels."""
    engine_start_timeout: Annotated[float, POSITIVE] = 1800.0
    """Longest a model may take to load."""
    per_request_metrics: bool = True
    """Answers tell their times beside the usage (`metrics`), in vLLM's form; false: they do not."""
    log_level: typing.Literal["debug", "info", "warning", "error"] = "info"
    """From `warning` on, requests are not logged."""
    log_format: typing.Literal["auto", "json", "text"] = "auto"
    """`json`: one JSON object a line. `text`: lines for people. `auto`: text on a terminal, JSON elsewhere."""
    log_text: bool = False
    """Prompts and answers go into the log, too."""
    otlp_traces_endpoint: str | None = None
    """URL of an OpenTelemetry collector, such as http://localhost:4318: each POST request becomes a trace there, sent
    over OTLP/HTTP. Needs the `tracing` extra. None: nothing is traced."""

    @property
    def has_keys(self) -> bool:
        """Requests need a key."""
        return bool(self.api_keys) or self.api_key_file is not None


class Config(msgspec.Struct, frozen=True):
    """Everything `lightcone serve` runs with."""

    server: ServerConfig = ServerConfig()
    engine: EngineConfig = EngineConfig()


SECTIONS: dict[str, type[msgspec.Struct]] = {"server": ServerConfig, "engine": EngineConfig}


def option_types() -> dict[str, tuple[str, Any, Any]]:
    """Every option: name -> (section, type, default). Names are unique across the sections."""
    options: dict[str, tuple[str, Any, Any]] = {}
    for section, struct in SECTIONS.items():
        hints = typing.get_type_hints(struct)
        for info in msgspec.structs.fields(struct):
            options[info.name] = (section, hints[info.name], info.default)
    return options


def load_config(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None, file: str | None = None) -> Config:
    """Merges the sources; raises ConfigError with one line that names the key, where it stands and what is valid."""
    options = option_types()
    given = _Given()
    if file is not None:
        _read_file(Path(file), options, given)
    _read_environ(os.environ if environ is None else environ, options, given)
    for name, raw in flags.items():
        given.take(name, raw, options[name][1], f"--{name.replace('_', '-')}", lax=isinstance(raw, str))
    parts = {
        section: struct(**{name: value for name, value in given.values.items() if options[name][0] == section})
        for section, struct in SECTIONS.items()
    }
    config = Config(**parts)  # type: ignore[arg-type]
    _check(config, given.places)
    return config


class _Given:
    """The values that the sources gave so far, and where each was set. A later source wins."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.places: dict[str, str] = {}

    def take(self, name: str, raw: Any, kind: Any, where: str, *, lax: bool) -> None:
        self.values[name] = _convert(raw, kind, where, lax=lax)
        self.places[name] = where


def _read_file(path: Path, options: Mapping[str, tuple[str, Any, Any]], given: _Given) -> None:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"cannot read the configuration file {path}: {exc.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not valid TOML: {exc}") from None
    for section, table in document.items():
        if section not in SECTIONS or not isinstance(table, dict):
            raise ConfigError(f"{path}: unknown section [{section}]; valid sections: {', '.join(SECTIONS)}")
        for key, raw in table.items():
            valid = [name for name, option in options.items() if option[0] == section]
            if key not in valid:
                raise ConfigError(f"{path}: unknown key '{key}' in [{section}]{_nearest(key, valid)}")
            given.take(key, raw, options[key][1], f"{path}: '{key}' in [{section}]", lax=False)


def _is_service_link(variable: str, raw: str) -> bool:
    """Whether Kubernetes set the variable, such as LIGHTCONE_PORT=tcp://..., in a pod beside a Service `lightcone`."""
    return raw.startswith(("tcp://", "udp://")) or re.search(r"_SERVICE_(HOST|PORT)|_PORT_\d+_", variable) is not None


def _read_environ(environ: Mapping[str, str], options: Mapping[str, tuple[str, Any, Any]], given: _Given) -> None:
    for variable, raw in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable in NOT_OPTIONS or _is_service_link(variable, raw):
            continue
        name = variable[len(ENV_PREFIX) :].lower()
        if name == "api_key":  # what clients on the same machine read, too
            name = "api_keys"
        if name not in options:
            near = difflib.get_close_matches(name, options, 1)
            hint = f"; did you mean {ENV_PREFIX}{near[0].upper()}?" if near else ""
            raise ConfigError(f"unknown environment variable {variable}{hint}")
        given.take(name, raw, options[name][1], variable, lax=True)


def _convert(raw: Any, kind: Any, where: str, *, lax: bool) -> Any:
    """The value as the option's type. lax: it is text of a flag or a variable, where lists are comma-separated."""
    value = raw
    if lax and typing.get_origin(kind) is tuple:
        value = [part.strip() for part in str(raw).split(",") if part.strip()]
        if not value:  # an empty secret must not switch authentication off
            raise ConfigError(f"{where} is set but holds nothing")
    try:
        return msgspec.convert(value, kind, strict=not lax)
    except msgspec.ValidationError as exc:
        shown = "(not shown)" if "api_key" in where.lower().replace("-", "_") else repr(raw)
        reason = f"{str(exc)[:1].lower()}{str(exc)[1:]}"
        if typing.get_origin(kind) is typing.Literal:
            reason = f"valid values: {', '.join(typing.get_args(kind))}"
        raise ConfigError(f"{where}: {shown} is not valid: {reason}") from None


def _nearest(key: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(key, valid, 1)
    return f"; did you mean '{near[0]}'?" if near else f"; valid keys: {', '.join(valid)}"


def _check(config: Config, places: Mapping[str, str]) -> None:
    """Raises ConfigError for a value out of range, or for one that makes no sense without another."""
    check_ranges(config.server, places)
    check_config(config.engine, places)
    if (config.server.tls_cert is None) is not (config.server.tls_key is None):
        one, other = ("tls_cert", "tls_key") if config.server.tls_key is None else ("tls_key", "tls_cert")
        raise ConfigError(f"{places.get(one, one)} needs {other}, too: HTTPS takes both")
    endpoint = config.server.otlp_traces_endpoint
    if endpoint is not None:
        try:
            traces_url(endpoint)
        except ValueError as exc:
            place = places.get("otlp_traces_endpoint", "otlp_traces_endpoint")
            raise ConfigError(f"{place}: {endpoint!r} is not valid: {exc}") from None


def describe(config: Config) -> str:
    """The effective configuration as TOML without its secrets, for `--print-config`."""
    lines: list[str] = []
    for section in SECTIONS:
        lines.append(f"[{section}]")
        for name, value in msgspec.structs.asdict(getattr(config, section)).items():
            if name == "api_keys":
                lines.append(f"# api_keys: {len(value)} set")
            elif value is None:
                lines.append(f"# {name}: not set")
            else:
                lines.append(f"{name} = {msgspec.json.encode(value).decode()}")
        lines.append("")
    return "\n".join(lines).rstrip()
