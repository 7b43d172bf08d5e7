"""Cheap proofs of many properties at once: below the truth for every bound, and no more work than pays."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

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
    """Identities between ReLUs change no number, but each plane's offset is a term of its own, and each box can be wrong."""
    first = (np.array([[1.0, -1.0], [2.0, 1.0]]), np.zeros(2))
    case = cases_of(Mlp((first, (np.eye(2), np.zeros(2)))), 1, 0, 0.5)[0]
    rooms = []
    for depth in (1, 5):
        mlp = Mlp((first, *[(np.eye(2), np.zeros(2))] * depth))
        rooms.append(float(rounding_room(margin_request(graph_of(mlp), [case])).max()))
    assert rooms[1] > (2**6 - 1) / (2**2 - 1) * rooms[0] > 0


def exactly(mlp: Mlp, x: np.ndarray, row: np.ndarray) -> Fraction:
    """row @ mlp(x) in rational arithmetic."""
    value = [Fraction(v) for v in x.tolist()]
    for k, (weight, bias) in enumerate(mlp.layers):
        value = [sum((Fraction(w) * v for w, v in zip(line, value)), Fraction(b)) for line, b in zip(weight.tolist(), bias.tolist())]
        value = [max(v, Fraction(0)) for v in value] if k + 1 < len(mlp.layers) else value
    return sum((Fraction(r) * v for r, v in zip(row.tolist(), value)), Fraction(0))


@pytest.mark.parametrize("name", list(BOUNDS))
def test_the_room_holds_the_roundings_of_large_constants_that_cancel(name: str) -> None:
    """On single points a bound is the network's value but for its roundings; the oracle has none."""
    random, worst = np.random.default_rng(0), 0.0
    for seed in range(5):
        (w0, b0), (w1, b1), (w2, b2) = random_mlp(seed, (6, 24, 24, 2)).layers
        twins = np.concatenate([w1 + 1e7, -w1 - 1e7 + random.normal(size=w1.shape)], 1), b1  # 1e7 h - 1e7 h
        mlp = Mlp(((np.concatenate([w0, w0]), np.concatenate([b0, b0])), twins, (w2, b2)))
        x, row = random.normal(size=6), np.array([1.0, -1.0])
        case = Case(x, x, (Polytope(row[None], np.zeros(1)),))
        request = margin_request(graph_of(mlp), [case])
        error = abs(float(Fraction(BOUNDS[name](request, LATER).lower.item()) - exactly(mlp, x, row)))
        assert error <= float(rounding_room(request))
        worst = max(worst, error)
    assert worst > 1e-9, "there were roundings to hold"


def lost_sum() -> tuple[Mlp, Case]:
    """1 + ... + 1 - t - ... - t with a t that every running sum loses: the margin is below zero by half of what is lost."""
    ones, lost, t = 256, 1_000_000, 2.0**-55
    weight = np.concatenate([np.ones(ones), np.full(lost, -t)])[None]
    x = np.ones(ones + lost)
    return Mlp(((weight, np.zeros(1)),)), Case(x, x, (Polytope(np.ones((1, 1)), np.array([ones - lost * t / 2])),))


def test_a_long_sum_that_loses_its_small_terms_proves_nothing() -> None:
    mlp, case = lost_sum()
    assert Screen(graph_of(mlp)).prove([case], 10.0).engine == [""]


def test_a_room_that_does_not_grow_with_the_length_of_sums_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, case = lost_sum()
    monkeypatch.setattr(screen, "gamma", lambda count: 16 * 2.0**-53)
    assert Screen(graph_of(mlp)).prove([case], 10.0).engine != [""], "a false proof"


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
    assert all(row.verdict.lower_bound > 0 for row in rows if row.verdict.engine in BOUNDS)
    assert all(row.verdict.seconds > 0 for row in rows if row.verdict.status is Status.VERIFIED)
    assert ball(x[0], int(y[0]), around, 0.05, 10).cases[0].polytopes
