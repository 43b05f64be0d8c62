"""What can be said of a command without running it: its program, options, targets and files exist; data can be read."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

from server.__main__ import TOOLS
from server.__main__ import main as lightcone
from tools.docs_commands.blocks import ROOT, SHELL, words_of
from tools.docs_commands.plan import Step, without_assignments

_FLAG = re.compile(r"--?[a-z][\w-]*")
_FILE = re.compile(r"(configs|docs|engine|tests|tools|server|loadtest|bench)/[\w./-]+\.\w+")
_ENDS = frozenset({"|", "&&", ";", ">", "2>"})


class Mistake(Exception):
    """Something in a document that is not so. One line."""


def check(step: Step) -> None:
    """What can be said of a step without running it. Raises Mistake."""
    if step.how == "read":
        check_data(step.language, step.command.text)
    elif step.language in SHELL or step.language == "inline":
        check_command(step.command.text)
    elif step.language == "python":
        try:
            compile(step.command.text, step.command.place, "exec")
        except SyntaxError as error:
            raise Mistake(f"is no Python: {error}") from None


def check_data(language: str, text: str) -> None:
    """Reads a block of data. Raises Mistake."""
    try:
        if language == "json":
            json.loads(text)
        elif language == "toml":
            tomllib.loads(text)
        else:
            import yaml

            list(yaml.safe_load_all(text))
    except Exception as error:  # each library has its own tree
        raise Mistake(f"is no {language}: {' '.join(str(error).split())}") from None


def check_command(text: str) -> None:
    """Looks at a command of this repository. Of other programs only the files of the repository are looked at.

    Raises Mistake for an option, a target, a module or a file that does not exist.
    """
    words = _first_command(without_assignments(words_of(text)))
    for word in words:
        if (name := _FILE.fullmatch(word)) is not None and not (ROOT / name[0]).exists():
            raise Mistake(f"there is no file {word}")
    program = words[0].rpartition("/")[2] if words else ""
    if program == "lightcone":
        _check_lightcone(words[1:])
    elif program == "make":
        _check_make(words[1:])
    elif program == "python" and words[1:2] == ["-m"] and words[2:] and words[2].startswith("tools."):
        _check_tool(words[2], words[3:])


def _first_command(words: list[str]) -> list[str]:
    """The words up to where another command or a file begins."""
    for number, word in enumerate(words):
        if word in _ENDS:
            return words[:number]
    return words


def _check_lightcone(words: list[str]) -> None:
    if not words or words[0] == "--version":
        return
    name = words[0]
    if name not in ("serve", *TOOLS):
        raise Mistake(f"lightcone has no command {name!r}")
    flags = [word.partition("=")[0] for word in words if _FLAG.fullmatch(word.partition("=")[0])]
    if name == "bench":
        _check_bench(words[1:], flags)
        return
    asked = [name]
    if name == "loadtest":
        asked.append(words[1] if len(words) > 1 and words[1].isalpha() else "run")
    _check_flags(flags, _help(*asked), f"lightcone {' '.join(asked)}")
    if name == "serve" and not any(word.isupper() for word in words):
        _check_serve(words)


def _check_bench(words: list[str], flags: list[str]) -> None:
    """By its source: importing it imports torch and transformers, which takes seconds."""
    source = _source(ROOT / "bench")
    if words and words[0].isalpha() and f'"{words[0]}"' not in source:
        raise Mistake(f"lightcone bench has no command {words[0]!r}")
    for flag in flags:
        if f'"{flag}"' not in source and f'"--{flag.removeprefix("--no-")}"' not in source:
            raise Mistake(f"lightcone bench has no option {flag}")


@cache
def _source(place: Path) -> str:
    """The text of a module, or of all of a package."""
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    return "".join(file.read_text(encoding="utf-8") for file in files)


@cache
def _help(*words: str) -> str:
    """What `--help` prints. Raises Mistake where there is no such command."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            lightcone([*words, "--help"])
        except SystemExit as ended:
            if ended.code:
                raise Mistake(f"lightcone {' '.join(words)}: {output.getvalue().splitlines()[-1]}") from None
    return output.getvalue()


def _check_flags(flags: list[str], known: str, command: str) -> None:
    for flag in flags:
        if re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", known) is None:
            raise Mistake(f"{command} has no option {flag}")


def _check_serve(words: list[str]) -> None:
    """The values of the options, by `--print-config`, which reads all of them and starts nothing."""
    output = io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = lightcone([*words, "--print-config"])
        except SystemExit as ended:
            code = int(ended.code or 0)
    if code:
        raise Mistake(output.getvalue().strip().splitlines()[-1])


def _check_make(words: list[str]) -> None:
    command = ["make", "--dry-run", "--no-print-directory", "-C", str(ROOT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return  # a machine without make
    if done.returncode:
        raise Mistake(done.stderr.strip().splitlines()[-1])


def _check_tool(name: str, words: list[str]) -> None:
    """Not by `--help`: some tools take no options, and do their work whatever they are given."""
    try:
        module = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        module = None
    if module is None or module.origin is None:
        raise Mistake(f"there is no module {name}")
    origin = Path(module.origin)
    source = _source(origin.parent if origin.name == "__init__.py" else origin)
    for word in words:
        if word.startswith("--") and f'"{word.partition("=")[0]}"' not in source:
            raise Mistake(f"{name} has no option {word}")
