"""The command `lightcone bench peers`.

Every server is started once and stays; then all are measured in turn, repeat after repeat, with prompts that none of
them has seen, so that a machine whose speed drifts treats them alike. None of the peers is a dependency.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench import options
from bench.compare.over_http import ServerUnderTest, run_loadtest
from bench.peers.servers import Load, PeerServer, find_programs, free_port, llama_command, vllm_command
from bench.peers.vocabulary import FIRST_WORD
from bench.peers.weights import Checkpoints, Shape, write_checkpoints, write_gguf
from engine.errors import ConfigError, EngineError

SCHEMA = "lightcone-bench-peers/1"
FORMATS: dict[str, tuple[str, ...]] = {
    "lightcone": ("float32", "bfloat16", "int8"),
    "vllm": ("float32", "bfloat16"),
    "llama.cpp": ("f32", "bf16", "q8_0"),
}
"""By server, what its weights may be."""
CHECKED_TOKENS = 16
"""Of the answer that all servers are asked for before they are measured."""


@dataclass
class Served:
    """A server that runs, and what was measured of it."""

    name: str
    url: str
    fields: dict[str, object]
    """Fields of every request."""
    same: float = 0.0
    """Share of the first server's greedy answer, from its beginning, that this one's is the same as."""
    speeds: dict[int, list[float]] = field(default_factory=dict)
    """Tokens a second of each repeat, by requests in flight."""


def add_parser(commands: options.Commands) -> None:
    """Adds `peers` to the parser of `lightcone bench`."""
    about = "this server beside vLLM's and llama.cpp's on the same random weights, over HTTP"
    parser = commands.add_parser("peers", allow_abbrev=False, help=about, description=about)
    parser.set_defaults(run=run)
    parser.add_argument("folder", type=Path, help="holds a Python environment with vllm, or llama-server, or both")
    parser.add_argument("--only", type=options.words, metavar="NAME:FORMAT,...", help="default: all that are found")
    about = "hidden,layers,inner,heads,kv_heads,head_dim,vocabulary (default: 350M parameters)"
    parser.add_argument("--shape", type=Shape.parse, default=Shape(), metavar="SIZES", help=about)
    parser.add_argument("--decoding", default="ar", help="of this server (default ar)")
    parser.add_argument("--concurrency", type=options.integers, default=[1, 8], help="default 1,8")
    parser.add_argument("--tokens", default="64:32", metavar="IN:OUT", help="of every request (default 64:32)")
    parser.add_argument("--requests", type=int, default=8, help="of a run, for each one in flight (default 8)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of every server (default 1)")
    parser.add_argument("--core", type=int, default=None, help="compute on this core alone, with one thread (Linux)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the figures to this file")


def run(args: argparse.Namespace) -> int:
    """`lightcone bench peers`."""
    programs = find_programs(args.folder)
    wanted = chosen(args.only, programs)
    tokens_in, tokens_out = read_tokens(args.tokens)
    most = max(args.concurrency)
    load = Load(
        1 if args.core is not None else args.threads, args.core, most, tokens_in + max(tokens_out, CHECKED_TOKENS)
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lightcone-peers-")))
        checkpoints = write_checkpoints(folder, args.shape)
        servers = []
        for peer, kind in wanted:
            print(f"starting {peer} with {kind} weights", flush=True)
            if peer == "lightcone":
                servers.append(serve_ours(stack, checkpoints, kind, load, args.decoding))
            else:
                servers.append(serve_peer(stack, programs[peer], peer, kind, checkpoints, args.shape, load))
        check_answers(servers, tokens_in)
        for repeat in range(args.repeats):
            for server in servers:
                for concurrency in args.concurrency:
                    measure(server, concurrency, repeat, args)
    report(servers, args)
    return 0


def chosen(only: list[str] | None, programs: dict[str, Path]) -> list[tuple[str, str]]:
    """(server, format) of all that is measured, this server first. Raises ConfigError for what is not there."""
    known = [(peer, kind) for peer in ("lightcone", *programs) for kind in FORMATS[peer]]
    if only is None:
        return known
    found = [(peer, kind) for name in only for peer, _, kind in [name.partition(":")]]
    unknown = [":".join(entry) for entry in found if entry not in known]
    if unknown:
        raise ConfigError(f"--only names {', '.join(unknown)}; there are {', '.join(map(':'.join, known))}.")
    return sorted(found, key=known.index)


def read_tokens(text: str) -> tuple[int, int]:
    """(of a prompt, of an answer) from IN:OUT. Raises ConfigError."""
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--tokens must be IN:OUT, two positive integers, not {text!r}.")
    return int(parts[0]), int(parts[1])


def serve_ours(stack: ExitStack, checkpoints: Checkpoints, kind: str, load: Load, decoding: str) -> Served:
    """Starts `lightcone serve`. int8 weights are those of bfloat16, quantized on the way."""
    dtype, quantization = ("bfloat16", kind) if kind == "int8" else (kind, "none")
    flags = ["--model", str(checkpoints.lightcone), "--device", "cpu", "--dtype", dtype, "--quantization", quantization]
    flags += ["--threads", str(load.threads), "--max-running", str(load.sequences)]
    server = stack.enter_context(ServerUnderTest(flags, load.core))
    return Served(f"lightcone:{kind}", server.url, {"decoding": decoding})


def serve_peer(
    stack: ExitStack, program: Path, peer: str, kind: str, checkpoints: Checkpoints, shape: Shape, load: Load
) -> Served:
    """Starts another server."""
    port = free_port()
    if peer == "vllm":
        command, environment = vllm_command(program, checkpoints.llama, kind, port, load)
    else:
        file = checkpoints.llama.with_name(f"{kind}.gguf")
        write_gguf(checkpoints, shape, kind, file)
        command, environment = llama_command(program, file, port, load)
    server = stack.enter_context(PeerServer(f"{peer}:{kind}", command, environment, port, load))
    return Served(server.name, server.url, {})


def check_answers(servers: list[Served], tokens_in: int) -> None:
    """Asks all of them the same: servers with the same weights and enough precision answer alike."""
    prompt = [FIRST_WORD + 7 * index % 200 for index in range(tokens_in)]
    answers = []
    for server in servers:
        body = {"prompt": prompt, "max_tokens": CHECKED_TOKENS, "temperature": 0, "ignore_eos": True, **server.fields}
        answer = httpx.post(f"{server.url}/v1/completions", json={"model": model_of(server), **body}, timeout=300)
        if answer.status_code != 200:
            raise EngineError(f"{server.name} answers {answer.status_code}: {answer.text[:300]}")
        answers.append(answer.json()["choices"][0]["text"])
    for server, answer in zip(servers, answers, strict=True):
        server.same = same_beginning(answer, answers[0]) / max(1, len(answers[0]))


def same_beginning(one: str, other: str) -> int:
    """Characters that two texts begin alike with."""
    shorter = min(len(one), len(other))
    return next((index for index in range(shorter) if one[index] != other[index]), shorter)


def model_of(server: Served) -> str:
    """The name of the model that a server serves."""
    name: str = httpx.get(f"{server.url}/v1/models", timeout=30).json()["data"][0]["id"]
    return name


def measure(server: Served, concurrency: int, repeat: int, args: argparse.Namespace) -> None:
    """One run of one server. Every repeat has other prompts: none finds them cached."""
    summary = run_loadtest(load_command(server, concurrency, repeat, args))
    server.speeds.setdefault(concurrency, []).append(summary["completion_tokens"] / summary["wall_s"])


def load_command(server: Served, concurrency: int, repeat: int, args: argparse.Namespace) -> list[str]:
    """The words after `lightcone loadtest`."""
    words = ["run", "--base-url", server.url, "--api", "completions", "--shape", args.tokens, "--token-ids"]
    words += ["--token-id-range", f"{FIRST_WORD}:{args.shape.vocabulary - 1}", "--ignore-eos", "--no-progress"]
    words += ["--no-keep-alive"]  # llama.cpp closes a connection after a streamed answer
    words += ["--requests", str(args.requests * concurrency), "--concurrency", str(concurrency)]
    words += ["--seed", str(1000 * repeat + concurrency)]
    if "decoding" in server.fields:
        words += ["--decoding", str(server.fields["decoding"])]
    return words


def report(servers: list[Served], args: argparse.Namespace) -> None:
    """Prints a table, ratios being those of the first server's speed in the same repeat; writes the figures."""
    rows: list[dict[str, object]] = []
    for server in servers:
        for concurrency, speeds in server.speeds.items():
            pairs = zip(servers[0].speeds[concurrency], speeds, strict=True)
            rows.append(
                {
                    "name": server.name,
                    "concurrency": concurrency,
                    "tokens_per_second": statistics.median(speeds),
                    "runs": speeds,
                    "ratio": statistics.median(theirs / first for first, theirs in pairs),
                    "same": server.same,
                }
            )
    columns = {"name": "server", "concurrency": "in flight", "tokens_per_second": "tokens/s", "ratio": "ratio"}
    columns["same"] = "same answer"
    options.show(f"{args.tokens} tokens, {args.threads} thread(s); ratios to {servers[0].name}", columns, rows)
    shape = vars(args.shape)
    options.save(args.json, {"schema": SCHEMA, "shape": shape, "tokens": args.tokens, "servers": rows})
