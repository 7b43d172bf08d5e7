"""The rounding analysis, against rationals: same verdicts, and a rounded bound is never above the exact one."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.soundness.agreement import Agreement, agreement
from tests.soundness.battery import subjects
from verifier.certificate.arithmetic import Rounded


def agreements(seeds: range, folder: Path) -> list[Agreement]:
    return [agreement(s, folder) for seed in seeds for arithmetic in ("real", "float32") for s in subjects(seed, arithmetic)]


def check_agreement(found: list[Agreement]) -> None:
    assert [a for a in found if a.rounded != a.exact] == []
    assert [a for a in found if a.slack and min(a.slack) < 0] == []
    assert sum(a.aligned for a in found) >= 0.8 * len(found)


def test_both_arithmetics_agree(tmp_path: Path) -> None:
    some = [s for arithmetic in ("real", "float32") for s in subjects(0, arithmetic) if s.name.startswith(("wide, seed", "mlp, seed"))]
    found = [agreement(s, tmp_path) for s in some]
    check_agreement(found)
    slack = np.concatenate([a.slack for a in found])
    assert len(found) >= 8 and len(slack) > 50 and np.median(slack) < 1e-7


@pytest.mark.slow
def test_both_arithmetics_agree_on_hundreds(tmp_path: Path) -> None:
    found = agreements(range(1, 7), tmp_path)
    assert len(found) >= 200
    check_agreement(found)


def test_a_checker_that_does_not_count_its_roundings_is_above_the_exact_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rounded, "room", lambda self, k, terms: 0.0 * terms)
    monkeypatch.setattr(Rounded, "up", lambda self, value: value)
    found = [agreement(s, tmp_path) for s in subjects(0, "real") if s.name.startswith(("mlp", "two"))]
    assert any(a.slack and min(a.slack) < 0 for a in found)
