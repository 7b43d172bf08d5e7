"""The strong attack: its margins are attained, reach the minimum of small networks, and survivors are those it leaves."""
from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import verifier
from tests.mlp import Mlp, near_truth, random_mlp, smallest_margin
from verifier.config import AttackConfig
from verifier.measure.certified import Perturbation
from verifier.measure.strong import smallest_margins, survives_attack

ATTACK = AttackConfig(restarts=6, steps=30)


def test_margins_are_attained_and_reach_the_minimum() -> None:
    """Never below the MILP's minimum, at its point in plain numpy, and within a thousandth of it in most of the cases."""
    reached = 0
    for seed in range(3):
        mlp = random_mlp(seed)
        cases = [near_truth(mlp, 3 * k + 1, 0.1) for k in range(3)]
        found = smallest_margins(mlp.graph(), cases, ATTACK, seed)
        for case, margin, polytope, x in zip(cases, found.margin, found.polytope, found.x):
            truth, _ = smallest_margin(mlp, case.lower, case.upper, case.polytopes[0])
            rows = case.polytopes[polytope]
            assert (x >= case.lower - 1e-6).all() and (x <= case.upper + 1e-6).all()
            assert margin == pytest.approx(float(mlp(x[None])[0] @ rows.output[0] - rows.offset[0]), abs=1e-5)
            assert margin >= truth - 1e-5
            reached += margin <= truth + 1e-3
    assert reached >= 7


@pytest.mark.parametrize("constant", [lambda x: x.new_ones(len(x), 2), lambda x: torch.ones(len(x), 2, requires_grad=True)])
def test_a_network_without_gradient_has_its_constant_margin(constant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output does not read the input: nothing to descend, and nothing to trip over."""
    mlp = random_mlp(0)
    case = near_truth(mlp, 1, 0.1)
    monkeypatch.setattr(sys.modules["verifier.graph.execute"], "execute", lambda graph, x: constant(x))
    rows = case.polytopes[0]
    found = smallest_margins(mlp.graph(), [case], ATTACK)
    assert found.margin == pytest.approx(float(rows.output[0].sum() - rows.offset[0]), abs=1e-5)


def test_a_case_that_has_enough_is_left_alone() -> None:
    mlp = random_mlp(0)
    case = near_truth(mlp, 1, -0.5)
    far, near = (smallest_margins(mlp.graph(), [case], ATTACK, 0, enough).margin[0] for enough in (-np.inf, 0.0))
    assert far <= near <= 0


def classes(gap: float) -> tuple[Mlp, np.ndarray, np.ndarray]:
    """Class 0 wins by x_0 - gap on an image of ones, and by gap at least on the ball of radius 1 - 2 gap."""
    return Mlp(((np.eye(2), np.zeros(2)), (np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([-gap, 0.0])))), np.ones((1, 2)), np.zeros(1, int)


def test_survivors() -> None:
    mlp, image, label = classes(0.1)
    survives = [survives_attack(mlp.graph(), image, label, Perturbation(eps), ATTACK).tolist() for eps in (0.8, 0.89, 0.91, 1.0)]
    assert survives == [[True], [True], [False], [False]]
    assert survives_attack(mlp.graph(), -image, label, Perturbation(0.01), ATTACK).tolist() == [False]


def test_verified_digits_survive(digits) -> None:
    graph = verifier.load_onnx(digits / "digits.onnx")
    x, y = verifier.load_images(digits / "images.npz")
    for eps, everyone in ((0.02, True), (0.5, False)):
        around = Perturbation(eps, clip=(0.0, 1.0))
        survives = survives_attack(graph, x[:6], y[:6], around, AttackConfig(restarts=2, steps=10))
        rows = list(verifier.certify(graph, x[:6], y[:6], around, verifier.Config(timeout_s=5)))
        verified = np.array([row.verdict.status is verifier.Status.VERIFIED for row in rows])
        assert (survives | ~verified).all() and survives.any() == everyone
