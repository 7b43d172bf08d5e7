"""The rounding analysis, against rationals: same verdicts, and a rounded bound is never above the exact one."""
from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.mlp import Mlp
from tests.soundness import handmade
from tests.soundness.agreement import Agreement, agreement
from tests.soundness.battery import subjects
from tests.soundness.exact_truth import Claim, output
from tests.soundness.nets import mlp
from tests.soundness.proofs import files, judged, whole, write
from verifier.certificate.arithmetic import Exact, Rounded
from verifier.certificate.boxes import box_bounds
from verifier.certificate.reduce import Statement, reduce


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


def test_rationals_stay_rationals_behind_a_split(tmp_path: Path) -> None:
    """y >= 0 on [-1, 1]^2 and y(-1, 1) = 0: a leaf's bound of y whose terms of 2^52 were rounded would be positive."""
    small = 2.0**-53 + 2.0**-60
    first = np.array([[1, 0], [1, 0], [0, 0], [0, 0], [0, 0.5], [0, small]]), np.array([0, 2, 1, small, 0, 0])
    net, one = mlp([first, (np.array([[1, 0.5, 1, 1, -1, -1]]), -np.ones(1))]), Fraction(1)
    assert output(net, [-1, 1]) == [0]
    claim = Claim((-one, -one), (one, one), ((((one,), Fraction(0)),),))
    where = files(net, [claim], tmp_path)
    target = {"target": np.zeros((1, 1), np.int32), "columns": np.arange(6, dtype=np.uint32), "tree": np.array([0, -1, -1], np.int32)}
    multipliers = np.zeros((2, 6))
    multipliers[0, 0], multipliers[1, 0], multipliers[1, 2] = -0.5, 2.0**-70, 2.0**52 + 1
    case = handmade.case(net, claim, [(2, k) for k in range(6)], [0, 2])
    parts = whole(where.head("real"), [case, ("TREE", {"target": "polytopes"}, target), ("LEAF", {}, {"nu": multipliers})])
    certificate = write(parts, tmp_path / "c.cert")
    assert [judged(where, certificate, kind).verdict for kind in (Exact(), Rounded())] == ["rejected"] * 2


def test_half_of_a_dead_neurons_output_is_rational() -> None:
    third = np.ones((1, 2)) / 3
    graph = Mlp(((np.array([[1.0], [1.0]]), np.array([-2.0, 0.0])), (third, -third[0, :1] / 5), (np.ones((1, 1)), np.zeros(1)))).graph()
    asked = Statement(-np.ones(1), np.ones(1), np.eye(1), np.zeros((1, 1)), np.zeros(1), {("h0", 0): 0}, frozenset([0]))
    problem = reduce(graph, asked, Exact(), None)
    assert len(problem.b) == 3
    whole_box = tuple(Exact().array(side * np.ones((1, 1))) for side in (-1.0, 1.0))
    numbers = problem.lower, problem.upper, *box_bounds(problem, *whole_box)
    assert {type(value) for part in numbers for value in part.reshape(-1).tolist()} == {Fraction}


def test_an_offset_below_the_least_float_is_no_zero(tmp_path: Path) -> None:
    """y = 2^-1080 x is at most 2^-1076 for x in [1, 2], and never 0."""
    net = mlp([(np.array([[2.0**-135]]), np.zeros(1))] * 8)
    text = f"(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 1))(assert (<= X_0 2))(assert (<= Y_0 (/ 1 {2**1076})))"
    claim = Claim((Fraction(1),), (Fraction(2),), ((((Fraction(1),), Fraction(0)),),))
    where = files(net, [claim], tmp_path, text)
    certificate = write(whole(where.head("real"), [handmade.case(net, claim, [], [])]), tmp_path / "c.cert")
    assert judged(where, certificate, Exact()).verdict == "rejected"
