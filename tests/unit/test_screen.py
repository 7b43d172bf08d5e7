"""Cheap proofs of many properties at once: below the truth for every bound, and no more work than pays."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

import verifier
from tests.mlp import Mlp, near_truth, random_mlp, smallest_margin
from tests.tolerances import EXACT
from verifier.bab.budget import Deadline
from verifier.bounds.engine import BoundRequest, BoundResult
from verifier.errors import VerifierError
from verifier.measure import screen
from verifier.measure.certified import Perturbation, ball, certify
from verifier.measure.screen import BOUNDS, PROBE, Screen, lowest_margins, margin_request, rounding_room
from verifier.spec.spec import Ball, Case, Polytope
from verifier.verdict import Status

LATER = Deadline.after(1e6)


def graph_of(mlp: Mlp) -> verifier.Graph:
    return mlp.graph().to("cpu", torch.float64)


def cases_of(mlp: Mlp, count: int, seed: int, gap: float = 0.05) -> list[Case]:
    """Boxes and rows over the outputs alone, the smallest margin of each within `gap` of zero."""
    return [near_truth(mlp, 3 * (seed + k) + 1, gap) for k in range(count)]


def check_below_truth(name: str) -> None:
    """Bounds of several cases at once are at most the MILPs' minima; where every neuron is stable they are the minima."""
    for seed in range(4):
        mlp = random_mlp(seed)
        cases = cases_of(mlp, 3, seed, 0.5)
        lower = lowest_margins(graph_of(mlp), cases, lambda request: BOUNDS[name](request, LATER))
        for case, bound in zip(cases, lower.tolist()):
            assert bound <= smallest_margin(mlp, case.lower, case.upper, case.polytopes[0])[0] + 1e-6
    shifted_up = Mlp(tuple((weight, bias + 20) for weight, bias in random_mlp(9).layers))
    case = cases_of(shifted_up, 1, 0, 0.5)[0]
    lower = lowest_margins(graph_of(shifted_up), [case], lambda request: BOUNDS[name](request, LATER))
    x = case.lower, case.upper
    ends = np.stack(np.meshgrid(*zip(*x)), -1).reshape(-1, 3)
    truth = float((shifted_up(ends) @ case.polytopes[0].output[0] - case.polytopes[0].offset[0]).min())
    assert truth - 1e-9 <= float(lower[0]) <= truth + EXACT


def too_tight(bound: screen.Bound) -> screen.Bound:
    def apply(request: BoundRequest, deadline: Deadline) -> BoundResult:
        result = bound(request, deadline)
        return replace(result, lower=result.lower + 0.01 * result.lower.abs())

    return apply


@pytest.mark.parametrize("name", ["CROWN-IBP", "CROWN"])
def test_bounds_of_many_stay_below_the_truth(name: str) -> None:
    check_below_truth(name)


@pytest.mark.parametrize("name", ["CROWN-IBP", "CROWN"])
def test_a_bound_one_percent_too_tight_is_red(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BOUNDS, name, too_tight(BOUNDS[name]))
    with pytest.raises(AssertionError):
        check_below_truth(name)


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


def test_what_rounding_hides_is_not_proved() -> None:
    """y = 1e17 x - 1e17 x + 1: one in real arithmetic, anything in floating point."""
    mlp = Mlp(((np.array([[1e17], [1e17]]), np.zeros(2)), (np.array([[1.0, -1.0]]), np.ones(1))))
    case = Case(np.array([1.0]), np.array([2.0]), (Polytope(np.ones((1, 1)), np.zeros(1)),))
    assert Screen(graph_of(mlp)).prove([case], 10.0).engine == [""]
    request = screen.margin_request(graph_of(mlp), [case])
    assert float(rounding_room(request)) > 100


def test_the_room_grows_with_the_planes_that_a_backward_pass_meets() -> None:
    """Identities between ReLUs change no number, but each plane's offset is a term of its own."""
    first = (np.array([[1.0, -1.0], [2.0, 1.0]]), np.zeros(2))
    case = cases_of(Mlp((first, (np.eye(2), np.zeros(2)))), 1, 0, 0.5)[0]
    rooms = []
    for depth in (1, 5):
        mlp = Mlp((first, *[(np.eye(2), np.zeros(2))] * depth))
        rooms.append(float(rounding_room(margin_request(graph_of(mlp), [case])).max()))
    assert rooms[1] == pytest.approx(3 * rooms[0])


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
    lower = lowest_margins(graph_of(mlp), [case], lambda request: BOUNDS["CROWN"](request, LATER))
    assert float(lower[0]) == pytest.approx(2 - 0.5 * 2**0.5, abs=1e-9)


def test_other_properties_are_refused() -> None:
    mlp = random_mlp(0)
    reads_inputs = near_truth(mlp, 3, 0.1)
    several = near_truth(mlp, 1, 0.1, rows=2)
    for cases in ([reads_inputs], [several], [*cases_of(mlp, 1, 0), replace(several, polytopes=())]):
        with pytest.raises(VerifierError, match="verify_many"):
            lowest_margins(graph_of(mlp), cases, lambda request: BOUNDS["CROWN"](request, LATER))


def scripted(lower: float, calls: list[int]) -> Callable[[BoundRequest, Deadline], BoundResult]:
    def bound(request: BoundRequest, deadline: Deadline) -> BoundResult:
        calls.append(len(request.box.lower))
        return BoundResult(torch.full(request.rows.shape[:2], lower, dtype=torch.float64), None, {})

    return bound


def test_a_bound_that_proves_nothing_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    none, all_of_them = [], []
    monkeypatch.setattr(screen, "BOUNDS", {"none": scripted(-1.0, none), "all": scripted(1.0, all_of_them)})
    mlp = random_mlp(0)
    tried, cases = Screen(graph_of(mlp)), 5 * cases_of(mlp, 2, 0)
    for _ in range(3):
        assert tried.prove(cases, 10.0).engine == ["all"] * 10
    assert none == [PROBE] and all_of_them == [PROBE, 6, 10, 10]


def test_a_bound_dearer_than_the_solver_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(screen, "BOUNDS", {"all": scripted(1.0, calls)})
    mlp = random_mlp(0)
    tried = Screen(graph_of(mlp))
    tried.solver_s = 1e-9
    assert tried.prove(3 * cases_of(mlp, 2, 0), 10.0).engine == ["all"] * PROBE + [""] * 2 and calls == [PROBE]


def test_after_its_deadline_crown_keeps_intervals() -> None:
    mlp = random_mlp(1, (3, 8, 8, 8, 2))
    cases = cases_of(mlp, 3, 0, 0.5)
    late, early, between = (
        lowest_margins(graph_of(mlp), cases, lambda request, name=name, deadline=deadline: BOUNDS[name](request, deadline))
        for name, deadline in (("CROWN", Deadline.after(-1)), ("CROWN", LATER), ("CROWN-IBP", LATER))
    )
    assert torch.equal(late, between) and not torch.equal(early, between)


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
    assert all(row.verdict.seconds > 0 for row in rows if row.verdict.status is Status.VERIFIED)
    assert ball(x[0], int(y[0]), around, 0.05, 10).cases[0].polytopes
