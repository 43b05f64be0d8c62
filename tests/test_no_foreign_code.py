"""No checkpoint's code is ever run and nothing is ever unpickled.

A model directory from the internet, or whoever reaches a socket, could otherwise take the machine.
"""

from __future__ import annotations

import ast

import pytest

from tests.source_tree import imports_of, modules, tree_of, within

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("module", [module for module in modules() if not within(module, {"tools"})])
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
