"""The examples in docstrings, and the example of the README, do what they show."""
from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import verifier

ROOT = Path(__file__).resolve().parents[2]
WITH_EXAMPLES = [p for folder in ("verifier", "certprune") for p in sorted((ROOT / folder).rglob("*.py")) if ">>> " in p.read_text()]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda p: str(p.relative_to(ROOT)))
def test_docstring_examples(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted > 0 and outcome.failed == 0


def test_readme_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "Status.VERIFIED" in capsys.readouterr().out


@pytest.mark.parametrize("name", verifier.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(verifier, name).__doc__


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'verfy'; it has .*verify"):
        _ = verifier.verfy
