"""The project's own source as data: its modules, their syntax trees, and who imports whom."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("bench", "engine", "loadtest", "server", "tools")


@cache
def modules() -> dict[str, Path]:
    """Every module of the product and its tools, by dotted name."""
    found = {}
    for package in PACKAGES:
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
