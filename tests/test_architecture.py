"""Who may import whom, read from the source.

The rules keep the server free of torch (it starts at once, and no forward delays a health probe), the engine free of
HTTP, and each room replaceable without reading the others.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.source_tree import PACKAGES, ROOT, imports_of, modules, of, tree_of, within

SERVER_MAY_USE = {
    "engine.config", "engine.errors", "engine.events", "engine.messages", "engine.models.files",
    "engine.request", "engine.grammar.structure", "engine.validate",
}  # fmt: skip
"""The engine's types and files: whatever crosses the process boundary."""

WIRE = {"config", "errors", "events", "messages", "request", "validate"}
NOUNS = {"config", "errors", "events", "request", "sequence", "batch"}
"""Files at the top of `engine` that rooms may import."""

ROOMS: dict[str, dict[str, set[str]]] = {
    "engine": {
        "errors": set(), "events": set(), "request": set(), "config": {"errors", "request"},
        "messages": {"config", "events", "request"}, "validate": {"config", "errors", "request"},
        "sequence": {"events", "request", "grammar"}, "batch": {"sequence"},
        "device": {"errors"},
        "grammar": {"errors", "request"},
        "sampling": {"request", "sequence", "device", "grammar"},
        "decoding": NOUNS | {"device", "grammar", "sampling", "models"},
        "kv_cache": {"errors", "device"},
        "scheduling": NOUNS | {"decoding", "kv_cache"},
        "attention": {"device", "kv_cache"},
        "ranks": {"config", "errors"},
        "models": {"errors", "request", "attention", "builtin", "ranks"},
        "gpu": {"request", "device", "sampling", "kv_cache", "attention", "models"},
        "runner": NOUNS | {"device", "sampling", "kv_cache", "attention", "ranks", "models", "gpu"},
        "measure": NOUNS | {"messages", "device", "sampling", "decoding", "kv_cache", "models", "runner"},
        "assembly": NOUNS | {
            "device", "sampling", "decoding", "scheduling", "kv_cache", "ranks", "models", "runner", "measure",
        },
        "engine": NOUNS | {"validate", "grammar", "decoding", "scheduling", "models", "measure", "assembly"},
        "process": WIRE | {"ranks", "engine"},
        "builtin": set(),
    },
    "server": {
        "version": set(),
        "http": set(),
        "formats": {"http"},
        "text": {"http", "formats"},
        "engine_link": {"http"},
        "tracing": {"version", "http"},
        "operation": {"http", "text", "engine_link", "tracing"},
        "generation": {"http", "formats", "text", "engine_link", "tracing", "operation"},
        "api": {"version", "http", "formats", "text", "operation", "generation"},
        "page": set(),
        "app": {"version", "http", "engine_link", "tracing", "operation", "api", "page"},
        "serve": {"version", "http", "operation", "app"},
        "__main__": {"version", "operation", "serve"},
        "child_server": {"__main__", "serve"},
        "completion": {"__main__", "operation"},
        "terminal": {"version", "text", "child_server"},
    },
}  # fmt: skip
"""By package: its rooms, and the files at its top, each with those that it may import. A room is a folder."""

LOWER_PARTS = {
    "engine.decoding": {"engine.models": {"engine.models.spec"}},
    "engine.scheduling": {
        "engine.decoding": {"engine.decoding.contract", "engine.decoding.policies.prefill", "engine.decoding.results"},
        "engine.kv_cache": {"engine.kv_cache.pages"},
    },
    "engine.runner.pack": {"engine.attention": {"engine.attention.packed_pass"}},
    "engine.gpu": {"engine.sampling": {"engine.sampling.picker"}},
    "engine.runner": {
        "engine.sampling": {"engine.sampling.divided", "engine.sampling.logprobs", "engine.sampling.picker"},
    },
    "engine.models": {"engine.ranks": {"engine.ranks.group"}},
    "engine.measure": {
        "engine.decoding": {"engine.decoding.costs"},
        "engine.sampling": {"engine.sampling.divided"},
    },
    "engine.process": {"engine.ranks": {"engine.ranks.lifeline"}},
    "engine.sampling": {"engine.grammar": {"engine.grammar.state"}},
    "engine.sequence": {"engine.grammar": {"engine.grammar.state"}},
}
"""Where only some modules of a room may be imported: from -> room -> those modules."""

NO_TORCH = {
    *(f"engine.{name}" for name in WIRE | {"sequence", "batch"}),
    "engine.ranks.lifeline", "engine.ranks.link", "engine.models.files", "engine.models.spec",
    "engine.builtin", "engine.grammar", "engine.kv_cache.pages",
}  # fmt: skip

MAX_FILES, MAX_LINES, MAX_FUNCTION_LINES = 12, 300, 50
"""Of a folder, of a file, and of a function: beyond them a reader loses the thread."""
KERNELS = {
    "engine.gpu.attention_kernels", "engine.gpu.choice_kernels", "engine.gpu.elementwise_kernels",
}  # fmt: skip
"""Their functions are compiled as one piece."""


@pytest.mark.parametrize("module", of("server"))
def test_the_server_uses_only_the_engines_types(module: str) -> None:
    """The API process would load torch: seconds of start-up, gigabytes of memory, and passes that delay probes."""
    imported = imports_of(module)
    assert not {
        name for name in imported if within(name, {"torch", "transformers", "bench", "loadtest", "tests", "tools"})
    }
    assert {name for name in imported if within(name, {"engine"})} <= SERVER_MAY_USE


@pytest.mark.parametrize("module", of("loadtest"))
def test_the_load_test_knows_the_server_by_http_alone(module: str) -> None:
    """It would measure the code it shares with the server, and could not be pointed at another one."""
    assert not {
        name for name in imports_of(module) if within(name, {"engine", "server", "bench", "torch", "tests", "tools"})
    }


@pytest.mark.parametrize("module", of("engine"))
def test_the_engine_knows_nothing_of_http(module: str) -> None:
    """It could not be run, tested or embedded without a web server."""
    web = {"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "httpx", "jinja2"}
    imported = imports_of(module, for_types=True)
    assert not {name for name in imported if within(name, web | {"server", "bench", "loadtest", "tests", "tools"})}


@pytest.mark.parametrize("module", [module for name in sorted(NO_TORCH) for module in of(name)])
def test_what_crosses_the_process_boundary_needs_no_torch(module: str) -> None:
    assert not {name for name in imports_of(module, for_types=True) if within(name, {"torch"})}


def room_of(module: str) -> str:
    """`package.room` for a module in a folder, the module itself at the top of its package."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("module", [*of("engine"), *of("server")])
def test_a_room_knows_only_the_rooms_below_it(module: str) -> None:
    """Algorithms would grow into the scheduler, HTTP into the text, and nobody could change one room alone."""
    package, _, room = room_of(module).partition(".")
    if not room:
        return
    allowed = {f"{package}.{name}" for name in ROOMS[package][room] | {room}}
    imported = {name for name in imports_of(module, for_types=True) if within(name, {package}) and name != package}
    assert {name for name in imported if room_of(name) not in allowed} == set()
    for place in (module, room_of(module)):
        for lower, parts in LOWER_PARTS.get(place, {}).items():
            assert {name for name in imported if within(name, {lower})} <= parts


@pytest.mark.parametrize("package", ROOMS)
def test_no_two_rooms_import_each_other(package: str) -> None:
    """Whoever changes one of them would have to read both. (The table above could allow it by mistake.)"""
    rooms = ROOMS[package]
    for room, below in rooms.items():
        assert not {other for other in below if room in rooms[other]}, room


def circles() -> list[set[str]]:
    """Groups of modules that import each other in a circle, imports for types included (Tarjan 1972)."""
    graph = {module: imports_of(module, for_types=True) & set(modules()) for module in modules()}
    found: list[set[str]] = []
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in graph[module]:
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            group = set(stack[at:])
            del stack[at:]
            if len(group) > 1:
                found.append(group)

    for module in graph:
        if module not in index:
            visit(module)
    return found


def test_no_circle_of_files() -> None:
    """None of the files of a circle can be understood, tested or moved without all the others."""
    assert circles() == []


def folders() -> list[Path]:
    return sorted({path.parent for top in (*PACKAGES, "tests") for path in (ROOT / top).rglob("*.py")})


@pytest.mark.parametrize("folder", [str(folder.relative_to(ROOT)) for folder in folders()])
def test_a_folder_can_be_taken_in_at_a_glance(folder: str) -> None:
    files = [path for path in (ROOT / folder).iterdir() if path.is_file() and path.suffix in (".py", ".mjs")]
    assert len(files) <= MAX_FILES


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_a_file_can_be_read_at_one_sitting(folder: str) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert not {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > MAX_LINES}


@pytest.mark.parametrize("module", modules())
def test_a_function_can_be_read_without_scrolling(module: str) -> None:
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and module not in KERNELS:
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


def test_what_a_step_sends_to_the_device_it_sends_without_waiting() -> None:
    """An ordinary copy lets the GPU run dry first: tens of microseconds each, several a step."""
    for module in of("engine"):
        if within(module, {"engine.device.transfer", "engine.models", "engine.sampling.noise"}):
            continue  # not in a step, or not on a GPU's fast path
        for function in (node for node in ast.walk(tree_of(module)) if isinstance(node, ast.FunctionDef)):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                made = ast.unparse(call)
                direct = made.startswith("torch.tensor(") and any(word.arg == "device" for word in call.keywords)
                moved = made.startswith(("torch.tensor(", "torch.from_numpy(")) and ").to(" in made
                assert function.name == "__init__" or not (direct or moved), f"{module}: {made}"


def test_every_rule_is_about_something_that_exists() -> None:
    """A renamed module would leave its rule behind, and be free of it."""
    named = SERVER_MAY_USE | NO_TORCH | KERNELS | set(LOWER_PARTS)
    for package, rooms in ROOMS.items():
        named |= {f"{package}.{name}" for name in (*rooms, *(name for below in rooms.values() for name in below))}
    for parts in LOWER_PARTS.values():
        named |= {name for modules_of_room in parts.values() for name in modules_of_room} | set(parts)
    assert named <= set(modules())


def test_every_room_has_a_rule() -> None:
    for package, rooms in ROOMS.items():
        assert {room_of(module) for module in of(package)} - {package} == {f"{package}.{room}" for room in rooms}


def test_importing_the_server_leaves_torch_out() -> None:
    """The rules above read the server's own imports; this also sees what those import in turn."""
    names = [name for name in of("server") if name != "server.__main__"]
    lines = [f"import {name}" for name in names]
    code = "\n".join(["import sys", *lines, "print([n for n in ('torch', 'transformers') if n in sys.modules])"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
