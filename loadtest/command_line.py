"""The command line: what it accepts, and its reading into a target, a workload and a load."""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from loadtest.http_client import CHAT_TEMPLATE, Api, Target
from loadtest.modes import Mode, grid
from loadtest.questions.categories import CATEGORIES, CHECKABLE
from loadtest.records import Slo
from loadtest.runner import Load
from loadtest.workload import Prompt, Shape, cycled, domain_prompts, load_prompts, shape_prompts

Item = TypeVar("Item")

COMMANDS = ("run", "sweep", "quality")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `lightcone loadtest`."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="lightcone loadtest",
        description="Measure any OpenAI-compatible server over HTTP. Without a command: run.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{run,sweep,quality}")
    run = commands.add_parser(
        "run", allow_abbrev=False, help="one load, closed loop (--concurrency) or open loop (--rate)"
    )
    _load_options(run)
    run.add_argument("--rate", type=_positive, help="open loop: Poisson arrivals a second")
    run.add_argument("--records", action="store_true", help="put every request's record into the JSON file")
    sweep = commands.add_parser(
        "sweep", allow_abbrev=False, help="concurrency x decoding x threshold x block length, measured in turn"
    )
    _load_options(sweep)
    sweep.add_argument("--repeats", type=_natural, default=3, help="times each cell is run, interleaved (default 3)")
    sweep.add_argument(
        "--min-ratio",
        type=_positive,
        help="exit with 3 unless the last cell's tokens a second are at least this many times the first cell's",
    )
    quality = commands.add_parser(
        "quality", allow_abbrev=False, help="share of right answers, agreement and tokens per pass, by mode"
    )
    quality.add_argument("--questions", type=_natural, help="how many to ask each mode (default 100, or all of a file)")
    quality.add_argument("--concurrency", type=_natural, default=8, help="requests in flight (default 8)")
    quality.add_argument("--match", choices=("exact", "contains", "number"), default="exact", help="when text is right")
    for command in (run, sweep, quality):
        _target_options(command)
        _mode_options(command, many=command is not run)
        _workload_options(command)
        _output_options(command)
    return parser


def _target_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--base-url", default="http://127.0.0.1:8000", help="with or without /v1 (default %(default)s)")
    group.add_argument("--model", help="default: the first one the server lists")
    group.add_argument("--api", choices=("chat", "completions"), help="default: completions for --shape, else chat")
    group.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY"), help="default: $OPENAI_API_KEY")
    group.add_argument("--no-stream", action="store_true", help="ask for whole answers: no time to first text")
    about = "a connection for each request, for servers that close them without saying so"
    group.add_argument("--no-keep-alive", action="store_true", help=about)
    group.add_argument(
        "--wait", type=_positive, default=0.0, metavar="SECONDS", help="wait so long for the server to be ready"
    )
    group.add_argument("--timeout", type=_positive, default=120.0, help="seconds a request may take (default 120)")
    group.add_argument("--max-tokens", type=_natural, default=128, help="unless the workload says (default 128)")
    group.add_argument("--temperature", type=float, default=0.0, help="default 0, so that runs can be compared")
    group.add_argument("--ignore-eos", action="store_true", help="send ignore_eos: answers have max_tokens tokens")
    group.add_argument("--extra-body", type=_json_object, default={}, metavar="JSON", help="more fields (null drops)")
    group.add_argument("--prompt-template", help="wraps text sent to completions; {prompt} stands for the text")


def _mode_options(parser: argparse.ArgumentParser, many: bool) -> None:
    hint = " (comma-separated lists; 'default' sends nothing)" if many else ""
    group = parser.add_argument_group("decoding" + hint)
    default: list[str | None] = ["ar", "speculative", "diffusion"] if parser.prog.endswith("quality") else [None]
    shown = ",".join(value or "the server's" for value in default)
    about = f"ar, diffusion, speculative, auto (default {shown})"
    group.add_argument("--decoding", type=_words_of(str), default=default, help=about)
    group.add_argument("--threshold", type=_words_of(float), default=[None], help="unmask at this confidence or above")
    group.add_argument("--block-length", type=_words_of(int), default=[None], help="tokens refined together")
    group.add_argument("--unmasking", type=_words_of(str), default=[None], help="threshold, factor, bound, cumulative")
    group.add_argument("--factor", type=_words_of(float), default=[None], help="of the rules factor and bound")


def _workload_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workload (default: the built-in model's questions)")
    group.add_argument("--prompts", type=Path, help="a JSONL file (prompt or messages, answer), or text, one a line")
    group.add_argument("--shape", type=_pair, metavar="IN:OUT", help="synthetic prompts of IN tokens, OUT max_tokens")
    group.add_argument("--spread", choices=("fixed", "uniform", "lognormal"), default="fixed", help="of shape lengths")
    group.add_argument("--spread-width", type=_positive, default=0.5, help="uniform: half-width/mean; lognormal: sigma")
    group.add_argument("--token-ids", action="store_true", help="shape prompts are random token ids of exact length")
    group.add_argument("--token-id-range", type=_pair, default=(16, 1000), metavar="FIRST:LAST", help="16:1000")
    group.add_argument("--categories", help=f"of the built-in questions: {','.join(CATEGORIES)}")
    group.add_argument("--seed", type=int, default=0, help="of prompts and arrivals (default 0)")


def _load_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    many = parser.prog.endswith("sweep")
    default = [1, 4, 16] if many else None
    kind: Callable[[str], Any] = _naturals if many else _natural
    group.add_argument("--concurrency", type=kind, default=default, help="requests in flight; with --rate: at most")
    # The end of a run, with fewer in flight, counts too: more requests make it a smaller part.
    about = "default, without --duration: 12 for each concurrent one, at least 24; open loop 100"
    group.add_argument("--requests", type=_natural, help=about)
    group.add_argument("--duration", type=_positive, help="seconds during which requests are started")
    group.add_argument("--warmup", type=int, help="requests before the clock starts (default: the concurrency)")
    group.add_argument("--slo-ttft", type=_positive, help="goodput: seconds to the first text")
    group.add_argument("--slo-e2e", type=_positive, help="goodput: seconds from end to end")


def _output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    group.add_argument("--html", type=Path, metavar="FILE", help="write the report as one HTML file with its plots")
    group.add_argument("--png", type=Path, metavar="DIR", help="write the plots as PNG files")
    group.add_argument("--no-progress", action="store_true", help="no progress bar")


def target_of(args: argparse.Namespace, mode: Mode, model: str | None) -> Target:
    """The target that sends `mode`'s fields. Raises ValueError for contradictory options."""
    api: Api = args.api or ("completions" if args.shape else "chat")
    if api == "chat" and args.token_ids:
        raise ValueError("--token-ids needs --api completions: chat takes no token ids.")
    builtin = args.prompts is None and args.shape is None
    fields: dict[str, Any] = {"temperature": args.temperature}
    if args.ignore_eos:
        fields["ignore_eos"] = True
    return Target(
        base_url=args.base_url.rstrip("/").removesuffix("/v1"),
        model=args.model or model,
        api=api,
        stream=not args.no_stream,
        keep_alive=not args.no_keep_alive,
        api_key=args.api_key,
        timeout_s=args.timeout,
        max_tokens=args.max_tokens,
        prompt_template=args.prompt_template or (CHAT_TEMPLATE if builtin else None),
        fields={**fields, **mode.fields(), **args.extra_body},
    )


def modes_of(args: argparse.Namespace) -> list[Mode]:
    """The modes asked for. Raises ValueError when `run` is given several."""
    if args.command == "run":
        asked = (args.decoding, args.threshold, args.block_length, args.unmasking, args.factor)
        if max(map(len, asked)) > 1:
            raise ValueError("run measures one mode; for several use sweep.")
        return [Mode(*(values[0] for values in asked))]
    return grid(args.decoding, args.threshold, args.block_length, args.unmasking, args.factor)


def prompts_of(args: argparse.Namespace, seed: int) -> Iterator[Prompt]:
    """Endless prompts of the chosen workload. Raises ValueError or OSError when there are none."""
    if args.prompts is not None and args.shape is not None:
        raise ValueError("--prompts and --shape exclude each other.")
    if args.prompts is not None:
        return cycled(load_prompts(args.prompts), seed)
    if args.shape is not None:
        first, last = args.token_id_range
        shape = Shape(
            input_tokens=args.shape[0],
            output_tokens=args.shape[1],
            spread=args.spread,
            width=args.spread_width,
            token_ids=args.token_ids,
            first_id=first,
            last_id=last,
        )
        return shape_prompts(shape, seed)
    return domain_prompts(seed, args.categories.split(",") if args.categories else CHECKABLE)


def questions_of(args: argparse.Namespace) -> list[Prompt]:
    """The finite list of questions a quality run asks every mode."""
    if args.prompts is not None:
        return load_prompts(args.prompts)[: args.questions]
    return list(islice(prompts_of(args, args.seed), args.questions or 100))


def load_of(args: argparse.Namespace, concurrency: int | None, seed: int) -> Load:
    """The load of one run or cell."""
    rate = getattr(args, "rate", None)
    in_flight = concurrency or (1 if rate is None else 256)
    requests = args.requests
    if requests is None and args.duration is None:
        requests = max(24, 12 * in_flight) if rate is None else 100
    warmup = min(in_flight, 16) if args.warmup is None else args.warmup
    return Load(concurrency=in_flight, rate=rate, requests=requests, duration_s=args.duration, warmup=warmup, seed=seed)


def slo_of(args: argparse.Namespace) -> Slo | None:
    """The goodput target, if one is given."""
    return Slo(args.slo_ttft, args.slo_e2e) if args.slo_ttft or args.slo_e2e else None


def workload_name(args: argparse.Namespace) -> str:
    """One line for the report."""
    if args.prompts is not None:
        return f"prompts of {args.prompts.name}"
    if args.shape is not None:
        kind = "token ids" if args.token_ids else "words"
        return f"{args.shape[0]} {kind} in, {args.shape[1]} tokens out, {args.spread}"
    return "built-in questions" + (f" ({args.categories})" if args.categories else "")


def _words_of(kind: Callable[[str], Item]) -> Callable[[str], list[Item | None]]:
    def read(text: str) -> list[Item | None]:
        return [None if part.strip() == "default" else kind(part.strip()) for part in text.split(",") if part.strip()]

    read.__name__ = f"list of {kind.__name__}"  # argparse puts it into its message
    return read


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be greater than 0, not {text}")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def _naturals(text: str) -> list[int]:
    return [_natural(part) for part in text.split(",") if part.strip()]


def _pair(text: str) -> tuple[int, int]:
    first, found, second = text.partition(":")
    if not found:
        raise argparse.ArgumentTypeError(f"must be two numbers such as 128:64, not {text}")
    return _natural(first), _natural(second)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value
