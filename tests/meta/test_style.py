"""Limits of style, read from the source: file and function length, parameters, what is caught, and that every test can fail."""
from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(p for folder in ("verifier", "certprune", "benchmarks", "examples", "tests") for p in (ROOT / folder).rglob("*.py"))
FILE_LINES, FUNCTION_LINES, PARAMETERS = 500, 80, 8
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


# Borders to onnx and onnxruntime, whose errors have no common base but Exception: only there a handler of everything may stand.
BORDERS = {"verifier/graph/onnx_constants.py", "verifier/graph/onnx_file.py", "verifier/graph/onnx_run.py"}


def complaints(text: str, is_test: bool, is_border: bool = False) -> list[str]:
    """What a file does that the project's style does not allow, with line numbers."""
    tree = ast.parse(text)
    found = [f"1: {len(text.splitlines())} lines"] if len(text.splitlines()) > FILE_LINES else []
    for node in ast.walk(tree):
        if isinstance(node, Function):
            found += [f"{node.lineno}: {node.name} {what}" for what in _function_complaints(node, is_test)]
        elif isinstance(node, ast.ExceptHandler) and _catches_all(node) and not is_border:
            found.append(f"{node.lineno}: catches everything")
        elif isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            found.append(f"{node.lineno}: star import")
    return found


def _function_complaints(node: ast.FunctionDef | ast.AsyncFunctionDef, is_test: bool) -> list[str]:
    found = []
    lines = node.end_lineno - node.lineno + 1
    parameters = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
    if lines > FUNCTION_LINES:
        found.append(f"has {lines} lines")
    if parameters > PARAMETERS:
        found.append(f"has {parameters} parameters")
    if is_test and node.name.startswith("test") and not any(_asserts(inner) for inner in ast.walk(node)):
        found.append("asserts nothing")
    return found


def _catches_all(handler: ast.ExceptHandler) -> bool:
    names = [] if handler.type is None else [ast.unparse(t) for t in getattr(handler.type, "elts", [handler.type])]
    return not names or bool({"Exception", "BaseException"} & set(names))


def _asserts(node: ast.AST) -> bool:
    """An assert, or a call whose name says that it is one (`pytest.raises`, `assert_close`, `check_bounds`)."""
    if isinstance(node, ast.Assert):
        return True
    name = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
    return name == "raises" or name.startswith(("assert", "check", "_assert", "_check"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_style(path: Path) -> None:
    is_border = str(path.relative_to(ROOT)) in BORDERS
    assert complaints(path.read_text(), path.name.startswith("test_"), is_border) == []


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\n" * (FILE_LINES + 1),
        "def f():\n" + "    x = 1\n" * FUNCTION_LINES,
        "def f(a, b, c, d, e, f, g, *, h, i): ...",
        "try:\n    f()\nexcept:\n    g()",
        "try:\n    f()\nexcept Exception:\n    g()",
        "try:\n    f()\nexcept (ValueError, BaseException):\n    g()",
        "from os import *",
        "def test_nothing():\n    f(1)",
    ],
)
def test_a_breach_is_seen(text: str) -> None:
    assert len(complaints(text, is_test=True)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "def test_a():\n    assert f()",
        "def test_a():\n    with pytest.raises(E):\n        f()",
        "try:\n    f()\nexcept ValueError:\n    g()",
    ],
)
def test_what_is_allowed_passes(text: str) -> None:
    assert complaints(text, is_test=True) == []


def test_only_a_border_may_catch_everything() -> None:
    text = "try:\n    f()\nexcept Exception as e:\n    raise Ours(e) from None"
    assert complaints(text, is_test=False, is_border=True) == []
    assert len(complaints(text, is_test=False, is_border=False)) == 1
