"""The direction of imports, read from the source: lower layers never import higher ones, and the three seams hold."""
from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From low to high; a module imports its own layer and lower ones only. Longest prefix wins.
LAYERS = [
    ("errors", "outputs", "streams", "supervisor"),
    ("verdict", "config", "spec.spec", "bab.budget"),
    ("box",),
    ("form",),
    ("graph", "ops", "spec", "data"),
    ("bounds", "attack", "reduced"),
    ("bab",),
    ("exact",),
    ("certificate",),
    ("acceptance",),
    ("solve",),
    ("measure",),
    ("campaign",),
    ("options", "console", "rows_file", "accuracy_cli", "check_cli", "cli", "start"),
]
RANK = {f"verifier.{name}": rank for rank, names in enumerate(LAYERS) for name in names}

# (importer, what it must not import): prefixes of module names.
SEAMS = [
    ("verifier.ops", "verifier.bounds"),
    ("verifier.ops", "verifier.reduced"),
    ("verifier.ops", "verifier.attack"),
    ("verifier.bab", "verifier.graph"),
    ("verifier.bab", "verifier.ops"),
    ("verifier.bab", "verifier.bounds"),
    ("verifier.bab", "verifier.reduced.build"),
    ("verifier.reduced.problem", "verifier.graph"),
    ("verifier.reduced.bound", "verifier.graph"),
    ("verifier.reduced.eliminate", "verifier.graph"),
    ("verifier.reduced.tighten", "verifier.graph"),
    ("verifier.certificate.check", "torch"),
    ("verifier.certificate.check", "verifier.ops"),
    ("verifier.certificate.check", "verifier.bounds"),
    ("verifier.certificate.check", "verifier.reduced"),
    ("verifier.certificate.check", "verifier.bab"),
    ("verifier.spec", "torch"),
    ("verifier.graph.onnx_load", "torch"),
    ("verifier.graph.onnx_file", "torch"),
    ("verifier", "certprune"),
    ("verifier", "tests"),
    ("verifier", "benchmarks"),
    ("certprune", "tests"),
    ("certprune", "benchmarks"),
]
HEAVY = ("scipy", "onnxruntime", "pydantic", "rich", "matplotlib", "auto_LiRPA", "ray", "pooch", "requests")


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.AST) -> list[str]:
    """Every module named by an import, `from a import b` as both `a` and `a.b`; what only a type checker reads is left out."""
    guarded = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    typing_only = {inner for node in guarded for inner in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _rank(module: str) -> int | None:
    parts = module.split(".")
    return next((RANK[p] for n in range(len(parts), 1, -1) if (p := ".".join(parts[:n])) in RANK), None)


def wrong_imports(module: str, imported: list[str]) -> list[str]:
    """The imports of `module` that go up a layer or through a seam."""
    own = _rank(module)
    up = [name for name in imported if own is not None and (_rank(name) or 0) > own]
    through = [name for name in imported for who, what in SEAMS if _below(module, who) and _below(name, what)]
    return sorted({*up, *through})


SOURCES = sorted(p for folder in ("verifier", "certprune", "benchmarks") for p in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_and_respect_the_seams(path: Path) -> None:
    assert wrong_imports(_module(path), imports_of(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize("path", [p for p in SOURCES if _module(p).startswith("verifier.")], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_has_a_layer(path: Path) -> None:
    assert _rank(_module(path)) is not None, "give the new module its place in LAYERS"


@pytest.mark.parametrize("path", [p for p in SOURCES if _module(p).startswith("verifier")], ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_are_imported_where_they_are_needed(path: Path) -> None:
    top = ast.Module([n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))], [])
    assert [name for name in imports_of(top) if name.split(".")[0] in HEAVY] == []


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("verifier.ops.relu", "verifier.bounds.crown"),
        ("verifier.bab.driver", "verifier.graph.ir"),
        ("verifier.bab.driver", "verifier.solve"),
        ("verifier.certificate.check", "torch"),
        ("verifier.box", "verifier.form"),
        ("verifier.graph.onnx_load", "torch.nn"),
        ("verifier.errors", "certprune.cli"),
    ],
)
def test_a_wrong_import_is_seen(module: str, imported: str) -> None:
    assert wrong_imports(module, ["numpy", imported]) == [imported]


LIGHT = ("", ".config", ".data.load", ".graph.ir", ".graph.onnx_load", ".graph.describe", ".spec.normal", ".spec.robustness", ".cli")


@pytest.mark.parametrize("module", [f"verifier{name}" for name in LIGHT])
def test_import_is_cheap(module: str) -> None:
    """A fresh interpreter that imports the module has not imported torch or another heavy package."""
    code = f"import sys, {module}; print([m for m in ('torch', *{HEAVY!r}) if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout.strip() == "[]"


def test_every_folder_of_modules_is_a_package() -> None:
    """Otherwise it is left out of an installed distribution."""
    folders = {path.parent for path in SOURCES if path.relative_to(ROOT).parts[0] in ("verifier", "certprune")}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []
