"""Tightness and stability over images, between a MILP's truth and counts of the engines' bounds."""
from __future__ import annotations

import numpy as np
import pytest

import verifier
from tests.mlp import Mlp, random_mlp, smallest_margin
from verifier.measure import tightness as module
from verifier.measure.certified import ImageRow, Summary, ball
from verifier.measure.tightness import ENGINES, tightness
from verifier.verdict import Reason, Status, Verdict

AROUND = verifier.Perturbation(0.3)
CONFIG = verifier.Config(timeout_s=10, attack=verifier.AttackConfig(restarts=4, steps=20))


def images(count: int, n_in: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).normal(size=(count, n_in)), np.arange(count) % 2


def truths(mlp: Mlp, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    cases = [ball(image, int(label), AROUND, AROUND.eps, 2).cases[0] for image, label in zip(x, y)]
    return np.array([smallest_margin(mlp, case.lower, case.upper, case.polytopes[0])[0] for case in cases])


def check_between(found: verifier.Tightness, truth: np.ndarray) -> None:
    assert (found.proved <= truth + 1e-6).all() and (found.attained >= truth - 1e-6).all()
    assert (found.attained - found.proved <= 0.01 + 1e-6).all()
    assert all((gap >= 0).all() for gap in found.gaps().values())
    assert all((bound <= truth + 1e-6).all() for bound in found.bounds.values())


def test_every_bound_is_below_the_truth_and_branch_and_bound_meets_it() -> None:
    mlp = random_mlp(2)
    x, y = images(5)
    found = tightness(mlp.graph(), x, y, AROUND, CONFIG)
    assert tuple(found.bounds) == ENGINES
    check_between(found, truths(mlp, x, y))
    assert found.gaps()["ibp"].max() > found.gaps()["alpha-crown"].max()


def test_a_margin_that_was_not_found_is_corrected_by_the_counterexample(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack that stops far above the minimum: the falsified m* moves to the counterexample's margin."""
    mlp = random_mlp(2)
    x, y = images(2)
    right = module.smallest_margins

    def careless(*args):
        found = right(*args)
        return type(found)(found.margin + 0.5, found.polytope, found.x)

    monkeypatch.setattr(module, "smallest_margins", careless)
    found = tightness(mlp.graph(), x, y, AROUND, CONFIG)
    truth = truths(mlp, x, y)
    assert (found.proved <= truth + 1e-6).all() and (found.attained < truth + 0.4).all()


def test_a_bound_one_percent_too_tight_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = random_mlp(2)
    x, y = images(3)
    right = module._bounds
    monkeypatch.setattr(module, "_bounds", lambda *args: right(*args) + 0.01 * np.abs(right(*args)) + 1e-3)
    with pytest.raises(AssertionError):
        check_between(tightness(mlp.graph(), x, y, verifier.Perturbation(1e-6), CONFIG), truths(mlp, x, y))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_without_a_number_leaves_the_others_theirs(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = random_mlp(2)
    x, y = images(2)
    right = module._bounds
    monkeypatch.setattr(module, "_bounds", lambda graph, specs, name: right(graph, specs, name) * (np.nan if name == engine else 1))
    gaps = tightness(mlp.graph(), x, y, AROUND, CONFIG).gaps()
    assert [name for name, gap in gaps.items() if np.isfinite(gap).all()] == [name for name in ENGINES if name != engine]
    assert all((gap >= 0).all() for name, gap in gaps.items() if name != engine)


def test_stability_is_the_mean_of_the_images() -> None:
    mlp = random_mlp(4, (3, 8, 6, 2))
    x, _ = images(5)
    graph = mlp.graph()
    together = verifier.stability_of_images(graph, x, AROUND, "ibp", batch=2)
    alone = [verifier.stability_of_images(graph, x[k:k + 1], AROUND, "ibp") for k in range(5)]
    assert together.names == ("h0", "h1") and together.neurons.tolist() == [8, 6]
    assert np.allclose(together.unstable, np.mean([one.unstable for one in alone], 0))
    assert np.allclose(together.unstable + together.active + together.inactive, together.neurons)
    weight, bias = mlp.layers[0]
    z = x @ weight.T + bias
    assert together.unstable[0] == pytest.approx((np.abs(z) < 0.3 * np.abs(weight).sum(1)).sum(1).mean())
    assert (verifier.stability_of_images(graph, x, AROUND, "crown").unstable <= together.unstable).all()


def test_stability_refuses_what_it_does_not_know() -> None:
    graph = random_mlp(0).graph()
    with pytest.raises(verifier.VerifierError, match="ibp or crown"):
        verifier.stability_of_images(graph, images(1)[0], AROUND, "magic")
    with pytest.raises(verifier.VerifierError, match="at least one"):
        verifier.stability_of_images(graph, images(0)[0], AROUND)


def test_a_summary_has_both_ends_and_the_attack() -> None:
    def row(predicted: int, status: Status, engine: str = "") -> ImageRow:
        margin = -0.5 if engine == "PGD" else 0.5
        return ImageRow(0, 1, predicted, Verdict(status, Reason.PROVED, "", 0.25, engine=engine), margin)

    falsified = Status.FALSIFIED
    rows = [row(1, Status.VERIFIED), row(1, falsified, "PGD"), row(1, falsified, "a corner of a bound"), row(2, falsified), row(1, Status.UNKNOWN)]
    shares = Summary.of(rows).as_dict()
    assert (shares["certified_accuracy"], shares["certified_accuracy_upper"]) == (0.2, 0.4)
    assert (shares["clean_accuracy"], shares["pgd_accuracy"]) == (0.8, 0.6)
