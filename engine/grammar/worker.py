"""The worker process in which a grammar is compiled for the first time, started by the API process.

`python -m engine.grammar.worker --tokenizer PATH ...` answers one line of JSON when it is ready, then one for each line
with a `Grammar`, until the end of stdin: null, or a string that says what is wrong. A grammar can explode in time, in
memory or in depth of recursion; here that ends this process alone. What passes is compiled again by the engine,
with the library's limits as here and four times the stack, but with no limit on time or memory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import sys
import threading
from pathlib import Path

import msgspec

from engine.errors import RequestError
from engine.grammar.compiler import STACK_BYTES, compile_grammar, load_vocabulary, probe
from engine.grammar.state import GrammarVocabulary
from engine.request import Grammar


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line; exits with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m engine.grammar.worker")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the model's tokenizer.json")
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--end-token-id", type=int, action="append", default=[])
    parser.add_argument("--mask-token-id", type=int, required=True)
    parser.add_argument(
        "--memory-bytes", type=int, required=True, help="address space beyond what the worker has once it is ready"
    )
    parser.add_argument("--cpu-seconds", type=int, required=True, help="processor time for one grammar")
    return parser.parse_args(argv)


def judge(vocabulary: GrammarVocabulary, grammar: Grammar) -> str | None:
    """Why a grammar cannot be used, in one line; None if it compiles and texts of it can be generated."""
    try:
        probe(compile_grammar(vocabulary, grammar), grammar)
    except RequestError as error:
        return str(error)
    except MemoryError:
        return "The grammar cannot be used: it needs too much memory."
    return None


def limit_memory(extra: int) -> None:
    """Allows `extra` more bytes of address space than there are now."""
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return  # not Linux: the parent's clock has to do
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, used + extra))


def limit_processor(seconds: int) -> None:
    """Has this process ended by a signal `seconds` of processor time from now, though its parent be gone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + seconds, hard))


def serve(arguments: argparse.Namespace) -> None:
    """Reads grammars and answers until stdin ends."""

    def say(answer: str | None) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()

    ends = tuple(arguments.end_token_id)
    try:
        vocabulary = load_vocabulary(arguments.tokenizer, arguments.vocab_size, ends, arguments.mask_token_id)
    except RequestError as error:
        say(str(error))
        return
    limit_memory(arguments.memory_bytes)
    say(None)
    for line in sys.stdin.buffer:
        limit_processor(arguments.cpu_seconds)
        say(judge(vocabulary, msgspec.json.decode(line, type=Grammar)))


def main() -> None:
    """Entry point. Serves on a thread whose stack is smaller than the engine's compiler has."""
    arguments = parse_arguments(sys.argv[1:])
    with contextlib.suppress(OSError):
        os.nice(10)  # the passes come first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES // 4)
    thread = threading.Thread(target=serve, args=(arguments,))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
