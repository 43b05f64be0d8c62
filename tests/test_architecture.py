"""Who may import whom, read from the source.

The rules keep the server free of torch (it starts at once, and no forward delays a health probe), the engine free of
HTTP, and each part of the engine replaceable without reading the others. No checkpoint's code is ever run and nothing
is ever unpickled: a model directory from the internet could otherwise take the machine.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SERVER_MAY_USE = {
    "engine", "engine.builtin", "engine.config", "engine.errors", "engine.events", "engine.messages", "engine.models",
    "engine.models.files", "engine.models.spec", "engine.request",
}  # fmt: skip
"""Types and files of the engine: whatever crosses the process boundary."""

LEAVES = {
    "engine.errors": set(),
    "engine.config": set(),
    "engine.events": set(),
    "engine.models.spec": set(),
    "engine.request": {"engine.config", "engine.errors"},
    "engine.sequence": {"engine.events", "engine.request"},
    "engine.batch": {"engine.device.transfer"},
    "engine.messages": {"engine.config", "engine.events", "engine.request"},
    "engine.sampling.noise": set(),
    "engine.device.transfer": set(),
    "engine.kv_cache.pages": {"engine.errors"},
}
"""Modules that anybody may import, and all of the engine that they import themselves."""

TYPES = set(LEAVES) - {"engine.kv_cache.pages", "engine.sampling.noise", "engine.messages"}

MAY_IMPORT = {
    "engine.scheduling.scheduler": TYPES | {
        "engine.kv_cache.pages", "engine.decoding.contract", "engine.decoding.prefill", "engine.scheduling.outcome",
    },
    "engine.scheduling.outcome": TYPES | {"engine.decoding.contract"},
    "engine.sampling.history": TYPES,
    "engine.sampling.sampler": TYPES | {
        "engine.grammar.state", "engine.sampling.history", "engine.sampling.noise", "engine.gpu.choice",
    },
    "engine.grammar.state": TYPES,
    "engine.grammar.compiler": TYPES | {"engine.grammar.state", "engine.grammar.json_schema.library"},
    "engine.grammar.json_schema": {"engine.errors", "engine.grammar.json_schema"},
    "engine.runner.kernels": TYPES | {
        "engine.models.decoder", "engine.models.elementwise", "engine.gpu.elementwise", "engine.attention",
        "engine.kv_cache.pool", "engine.gpu.choice",
    },
    "engine.gpu.choice": TYPES | {"engine.gpu.choice_kernels"},
    "engine.runner.model_runner": TYPES | {
        "engine.models", "engine.runner.kernels", "engine.gpu.graphs", "engine.kv_cache.pool",
    },
    "engine.gpu.graphs": TYPES | {
        "engine.models.decoder", "engine.models.elementwise", "engine.gpu.attention", "engine.kv_cache.pool",
        "engine.measure.device_speed",
    },
    "engine.decoding": TYPES | {"engine.decoding", "engine.sampling"},
    "engine.attention": TYPES | {"engine.attention", "engine.gpu.attention", "engine.kv_cache.pool"},
    "engine.models": TYPES | {"engine.models", "engine.attention.base", "engine.builtin"},
    "engine.kv_cache.pool": TYPES,
    "engine.kv_cache.sizing": TYPES | {"engine.kv_cache.pool", "engine.models.decoder"},
    "engine.process": TYPES | {"engine.engine", "engine.messages"},
}  # fmt: skip
"""By module or package: the modules and packages of the engine that it may import."""

NO_TORCH = {
    *(set(LEAVES) - {"engine.batch", "engine.sampling.noise", "engine.device.transfer"}),
    "engine.models.files", "engine.builtin", "engine.grammar.state", "engine.grammar.compiler",
}  # fmt: skip


@cache
def modules() -> dict[str, Path]:
    """Every module of the product, by dotted name."""
    found = {}
    for package in ("bench", "engine", "server", "loadtest"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def imports_of(module: str, *, for_types: bool = False) -> set[str]:
    """Modules it imports anywhere, functions included; by default without those only a type checker reads."""
    found: set[str] = set()
    pending: list[ast.AST] = [tree_of(module)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and _is_type_checking(node.test) and not for_types:
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import: absolute ones can be searched for"
            name = node.module or ""
            submodules = {f"{name}.{alias.name}" for alias in node.names} & set(modules())
            found |= submodules
            if len(submodules) < len(node.names):
                found.add(name)
        pending += ast.iter_child_nodes(node)
    return found


def _is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def within(module: str, packages: set[str]) -> bool:
    """Whether the module is one of `packages` or lies in one."""
    return any(module == package or module.startswith(package + ".") for package in packages)


def of(package: str) -> list[str]:
    return [module for module in modules() if within(module, {package})]


@pytest.mark.parametrize("module", of("server"))
def test_the_server_uses_only_the_engines_types(module: str) -> None:
    """The API process would load torch: seconds of start-up, gigabytes of memory, and passes that delay probes."""
    imported = imports_of(module)
    assert not {name for name in imported if within(name, {"torch", "transformers", "loadtest", "tests", "tools"})}
    assert {name for name in imported if within(name, {"engine"})} <= SERVER_MAY_USE


@pytest.mark.parametrize("module", of("loadtest"))
def test_the_load_test_knows_the_server_by_http_alone(module: str) -> None:
    """It would measure the code it shares with the server, and could not be pointed at another one."""
    assert not {name for name in imports_of(module) if within(name, {"engine", "server", "torch", "tests", "tools"})}


@pytest.mark.parametrize("module", of("engine"))
def test_the_engine_knows_nothing_of_http(module: str) -> None:
    """It could not be run, tested or embedded without a web server."""
    web = {"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "httpx", "jinja2"}
    imported = imports_of(module, for_types=True)
    assert not {name for name in imported if within(name, web | {"server", "loadtest", "tests", "tools"})}


@pytest.mark.parametrize("module", sorted(LEAVES))
def test_leaves_stay_leaves(module: str) -> None:
    """Types that everybody imports would pull in half of the engine, and cycles with it."""
    assert {name for name in imports_of(module) if within(name, {"engine"})} <= LEAVES[module]


@pytest.mark.parametrize("module", sorted(NO_TORCH))
def test_what_crosses_the_process_boundary_needs_no_torch(module: str) -> None:
    assert not {name for name in imports_of(module) if within(name, {"torch"})}


@pytest.mark.parametrize("module", [module for module in of("engine") if within(module, set(MAY_IMPORT))])
def test_each_part_of_the_engine_knows_only_its_neighbours(module: str) -> None:
    """Algorithms would grow into the scheduler, or forward loops into the algorithms."""
    if module in LEAVES:
        return
    allowed = next(MAY_IMPORT[part] for part in sorted(MAY_IMPORT, key=len, reverse=True) if within(module, {part}))
    imported = {name for name in imports_of(module) if within(name, {"engine"})}
    assert {name for name in imported if not within(name, allowed)} == set()


def test_what_a_step_sends_to_the_device_it_sends_without_waiting() -> None:
    """An ordinary copy lets the GPU run dry first: tens of microseconds each, several a step."""
    for module in of("engine"):
        if within(module, {"bench", "engine.device.transfer", "engine.models", "engine.sampling.noise"}):
            continue  # not in a step, or not on a GPU's fast path
        for function in (node for node in ast.walk(tree_of(module)) if isinstance(node, ast.FunctionDef)):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                made = ast.unparse(call)
                direct = made.startswith("torch.tensor(") and any(word.arg == "device" for word in call.keywords)
                moved = made.startswith(("torch.tensor(", "torch.from_numpy(")) and ").to(" in made
                assert function.name == "__init__" or not (direct or moved), f"{module}: {made}"


def test_every_rule_is_about_something_that_exists() -> None:
    """A renamed module would leave its rule behind, and be free of it."""
    named = SERVER_MAY_USE | NO_TORCH | set(LEAVES) | set(MAY_IMPORT)
    for allowed in (*LEAVES.values(), *MAY_IMPORT.values()):
        named |= allowed
    assert named <= set(modules())


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("module", modules())
def test_nothing_is_unpickled_and_no_foreign_code_is_run(module: str) -> None:
    """Whoever can name a model directory or reach a socket could run code on the machine."""
    assert not {name for name in imports_of(module, for_types=True) if within(name, FORBIDDEN_MODULES)}
    for node in ast.walk(tree_of(module)):
        where = f"{module}, line {getattr(node, 'lineno', '?')}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, where
        if isinstance(node, ast.Attribute):
            assert not (node.attr == "load" and isinstance(node.value, ast.Name) and node.value.id == "torch"), where
            assert node.attr not in ("recv_pyobj", "send_pyobj"), where
        if isinstance(node, ast.keyword):
            assert node.arg != "trust_remote_code", where
            assert not (node.arg == "shell" and getattr(node.value, "value", None) is not False), where


def test_importing_the_server_leaves_torch_out() -> None:
    """The rules above read the server's own imports; this also sees what those import in turn."""
    names = [name for name in of("server") if name != "server.__main__"]
    lines = [f"import {name}" for name in names]
    code = "\n".join(["import sys", *lines, "print([n for n in ('torch', 'transformers') if n in sys.modules])"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
