"""Cheap proofs of many properties at once: below the truth for every bound, and no more work than pays."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import verifier
from tests.mlp import Mlp, near_truth, random_mlp, smallest_margin
from verifier.bab.budget import Deadline
from verifier.bounds.crown import IbpOnly, crown
from verifier.errors import VerifierError
from verifier.measure import screen
from verifier.measure.certified import Perturbation, ball, certify
from verifier.measure.screen import BOUNDS, PROBE, CrownUntil, Screen, lowest_margins
from verifier.spec.spec import Ball, Case, Polytope
from verifier.verdict import Status

LATER = Deadline.after(1e6)


def graph_of(mlp: Mlp) -> verifier.Graph:
    return mlp.graph().to("cpu", torch.float64)


def cases_of(mlp: Mlp, count: int, seed: int, gap: float = 0.05) -> list[Case]:
    """Boxes and rows over the outputs alone, the smallest margin of each within `gap` of zero."""
    return [near_truth(mlp, 3 * (seed + k) + 1, gap) for k in range(count)]


def proved_margins(mlp: Mlp, cases: list[Case], name: str) -> np.ndarray:
    return Screen(graph_of(mlp))._lower(name, cases, LATER)


@pytest.mark.parametrize("name", BOUNDS)
def test_what_is_proved_of_many_stays_below_the_truth(name: str) -> None:
    """Bounds of several cases at once are at most the MILPs' minima; where every neuron is stable they are the minima."""
    found = 0
    for seed in range(4):
        mlp = random_mlp(seed)
        cases = cases_of(mlp, 3, seed, 1.0)
        for case, lower in zip(cases, proved_margins(mlp, cases, name).tolist()):
            assert not lower > smallest_margin(mlp, case.lower, case.upper, case.polytopes[0])[0] + 1e-6
            found += lower > 0
    assert found >= 4
    shifted_up = Mlp(tuple((weight, bias + 20) for weight, bias in random_mlp(9).layers))
    case = cases_of(shifted_up, 1, 0, 0.5)[0]
    assert 0.49 <= float(proved_margins(shifted_up, [case], name)[0]) <= 0.5 + 1e-6


def test_a_proposal_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: engines that call everything safe by far. What the checker does not prove stays open."""
    monkeypatch.setattr(Screen, "_proposed", lambda self, cases, deadline: np.full(len(cases), 1e6))
    for seed in range(4):
        mlp = random_mlp(seed)
        unsafe = [moved(case, -1e-3) for case in cases_of(mlp, 3, seed, 0.0)]
        assert Screen(graph_of(mlp)).prove(unsafe, 10.0).engine == [""] * 3
        assert np.isnan(Screen(graph_of(mlp))._lower("CROWN", unsafe, LATER)).all()


def moved(case: Case, gap: float) -> Case:
    """A case at its truth, moved so that its smallest margin is `gap`."""
    return replace(case, polytopes=tuple(replace(p, offset=p.offset - gap) for p in case.polytopes))


def test_nothing_unsafe_is_proved() -> None:
    """A hair on the unsafe side, and a rounding: no bound proves it. Far on the safe side most are proved."""
    proved = 0
    for seed in range(4):
        mlp = random_mlp(seed)
        cases = cases_of(mlp, 3, seed, 0.0)
        for gap in (-1e-3, -1e-7, 0.0):
            assert not any(Screen(graph_of(mlp)).prove([moved(case, gap) for case in cases], 10.0).engine)
        proved += sum(bool(engine) for engine in Screen(graph_of(mlp)).prove([moved(case, 1.0) for case in cases], 10.0).engine)
    assert proved >= 6


def test_what_float32_hides_is_not_proved() -> None:
    """1e9 relu(x) - 1e9 relu(x) + 1: one over the reals, anything as float32 computes it."""
    mlp = Mlp(((np.ones((2, 1)), np.zeros(2)), (np.array([[1e9, -1e9]]), np.ones(1))))
    case = Case(np.array([0.5]), np.array([1.0]), (Polytope(np.ones((1, 1)), np.zeros(1)),))
    screened = Screen(replace(graph_of(mlp), arithmetic="float32"))
    assert screened.arithmetic == "float32" and screened.prove([case], 10.0).engine == [""]
    assert Screen(replace(graph_of(mlp), arithmetic="float32"), wanted="real").prove([case], 10.0).engine == ["CROWN-IBP"]


def test_what_is_proved_has_its_bound() -> None:
    """Positive and below the MILP's minimum where an engine proved the case, NaN elsewhere."""
    mlp = random_mlp(3)
    cases = [moved(case, gap) for case in cases_of(mlp, 3, 3, 0.0) for gap in (-1.0, 1.0)]
    found = Screen(graph_of(mlp)).prove(cases, 10.0)
    assert any(found.engine) and not all(found.engine)
    for case, engine, lower in zip(cases, found.engine, found.lower.tolist()):
        truth, _ = smallest_margin(mlp, case.lower, case.upper, case.polytopes[0])
        assert 0 < lower <= truth + 1e-6 if engine else np.isnan(lower)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e308])
def test_numbers_that_are_not_finite_prove_nothing(value: float) -> None:
    mlp = random_mlp(0)
    (weight, bias), *rest = mlp.layers
    broken = Mlp(((np.where(np.eye(*weight.shape) > 0, value, weight), bias), *rest))
    assert Screen(graph_of(broken)).prove(cases_of(mlp, 2, 0, 1.0), 10.0).engine == ["", ""]


def test_a_ball_is_more_than_its_box() -> None:
    """x_0 + x_1 >= 1.3 on the l2 ball of radius 0.5 around (1, 1), where the box alone gives 1."""
    mlp = Mlp(((np.array([[1.0, 1.0]]), np.zeros(1)), (np.ones((1, 1)), np.zeros(1))))
    center = np.ones(2)
    case = Case(center - 0.5, center + 0.5, (Polytope(np.ones((1, 1)), np.zeros(1)),), Ball(center, 0.5, 2))
    lower = lowest_margins(graph_of(mlp), [case], lambda request: crown(request, CrownUntil(LATER)))
    assert float(lower[0]) == pytest.approx(2 - 0.5 * 2**0.5, abs=1e-9)


def test_other_properties_are_refused() -> None:
    mlp = random_mlp(0)
    reads_inputs = near_truth(mlp, 3, 0.1)
    several = near_truth(mlp, 1, 0.1, rows=2)
    for cases in ([reads_inputs], [several], [*cases_of(mlp, 1, 0), replace(several, polytopes=())]):
        with pytest.raises(VerifierError, match="verify_many"):
            lowest_margins(graph_of(mlp), cases, lambda request: crown(request, CrownUntil(LATER)))


def scripted(monkeypatch: pytest.MonkeyPatch, lower: dict[str, float]) -> dict[str, list[int]]:
    """Bounds of these names and results; the counts of cases that each was given."""
    calls: dict[str, list[int]] = {name: [] for name in lower}

    def bounded(self: Screen, name: str, cases: list[Case], deadline: Deadline) -> np.ndarray:
        calls[name].append(len(cases))
        return np.full(len(cases), lower[name])

    monkeypatch.setattr(screen, "BOUNDS", tuple(lower))
    monkeypatch.setattr(Screen, "_lower", bounded)
    return calls


def test_a_bound_that_proves_nothing_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = scripted(monkeypatch, {"none": -1.0, "all": 1.0})
    mlp = random_mlp(0)
    tried, cases = Screen(graph_of(mlp)), 5 * cases_of(mlp, 2, 0)
    for _ in range(3):
        assert tried.prove(cases, 10.0).engine == ["all"] * 10
    assert calls == {"none": [PROBE], "all": [PROBE, 6, 10, 10]}


def test_a_bound_dearer_than_the_solver_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = scripted(monkeypatch, {"all": 1.0})
    mlp = random_mlp(0)
    tried = Screen(graph_of(mlp))
    tried.solver_s = 1e-9
    assert tried.prove(3 * cases_of(mlp, 2, 0), 10.0).engine == ["all"] * PROBE + [""] * 2 and calls == {"all": [PROBE]}


def test_after_its_deadline_crown_keeps_intervals() -> None:
    mlp = random_mlp(1, (3, 8, 8, 8, 2))
    cases = cases_of(mlp, 3, 0, 0.5)
    late, early, between = (
        lowest_margins(graph_of(mlp), cases, lambda request, rows=rows: crown(request, rows))
        for rows in (CrownUntil(Deadline.after(-1)), CrownUntil(LATER), IbpOnly())
    )
    assert torch.equal(late, between) and not torch.equal(early, between)
    assert np.isnan(Screen(graph_of(mlp))._lower("CROWN", cases, Deadline.after(-1))).all(), "and the checker is not asked"


def test_screened_verdicts_are_the_solvers(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits at a radius that leaves work for every stage: the same statuses with and without cheap bounds."""
    from verifier.measure import certified

    graph = verifier.load_onnx(digits / "digits.onnx")
    x, y = verifier.load_images(digits / "images.npz")
    around, config = Perturbation(0.05, clip=(0.0, 1.0)), verifier.Config(timeout_s=20, attack=None)
    rows = list(certify(graph, x[:12], y[:12], around, config))
    monkeypatch.setattr(certified, "screen_of", lambda graph, config: None)
    alone = list(certify(graph, x[:12], y[:12], around, config))
    assert [row.index for row in rows] == list(range(12))
    assert [row.verdict.status for row in rows] == [row.verdict.status for row in alone]
    assert any(row.verdict.engine in BOUNDS for row in rows) and any(row.verdict.splits for row in rows)
    assert all(row.verdict.lower_bound > 0 for row in rows if row.verdict.engine in BOUNDS)
    assert all(row.verdict.seconds > 0 for row in rows if row.verdict.status is Status.VERIFIED)
    assert ball(x[0], int(y[0]), around, 0.05, 10).cases[0].polytopes
