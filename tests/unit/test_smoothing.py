"""Randomised smoothing against what is known exactly: a linear classifier's smoothed radius is its distance to the boundary."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, norm
from torch import nn

import verifier
from certprune.smoothing import (
    SmoothedRow,
    SmoothedSummary,
    SmoothingConfig,
    certify_smoothed,
    lower_probability,
    module_classifier,
    onnx_classifier,
)

NORMAL = np.array([3.0, -4.0], np.float32)  # of length 5


def half_plane(x: np.ndarray) -> np.ndarray:
    """Class 1 where <NORMAL, x> > 0."""
    return (x.reshape(len(x), -1) @ NORMAL > 0).astype(np.int64)


def at_distance(distance: float) -> np.ndarray:
    return (distance * NORMAL / 5).reshape(1, 2, 1)


@pytest.mark.parametrize(("successes", "draws"), [(1, 1), (3, 10), (10, 10), (990, 1000), (1000, 1000), (99_000, 100_000)])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_the_lower_probability_is_clopper_and_pearsons(successes: int, draws: int, alpha: float) -> None:
    p = lower_probability(successes, draws, alpha)
    assert binom.sf(successes - 1, draws, p) == pytest.approx(alpha, rel=1e-6)
    assert p == pytest.approx(binomtest(successes, draws, alternative="greater").proportion_ci(1 - alpha, "exact").low, rel=1e-9)
    assert lower_probability(0, draws, alpha) == 0


@pytest.mark.parametrize("distance", [-0.4, 0.1, 0.3])
def test_a_linear_classifiers_radius_comes_close_to_its_distance_from_below(distance: float) -> None:
    (row,) = certify_smoothed(half_plane, at_distance(distance)[None], np.array([1]), SmoothingConfig(0.25, draws=20_000))
    assert row.predicted == int(distance > 0)
    assert abs(distance) - 0.03 < row.radius <= abs(distance)
    assert row.certified(0.05) == (distance > 0)
    assert not row.certified(0.5)


def test_certificates_are_wrong_no_more_often_than_they_may() -> None:
    """200 images at distance sigma, alpha = 0.2: about 40 radii exceed it, and an upper confidence bound in its place would exceed 4 in 5 times."""
    images = np.repeat(at_distance(0.25)[None], 200, 0)
    rows = list(certify_smoothed(half_plane, images, np.ones(200, int), SmoothingConfig(0.25, draws=400, alpha=0.2)))
    wrong = sum(row.radius > 0.25 for row in rows)
    assert 10 < wrong <= 40 + 3 * (200 * 0.2 * 0.8) ** 0.5


def test_a_coin_is_abstained_from() -> None:
    random = np.random.default_rng(0)
    rows = list(certify_smoothed(lambda x: random.integers(0, 2, len(x)), np.zeros((5, 1, 2, 2)), np.zeros(5, int), SmoothingConfig(0.5, draws=1000)))
    assert all(row.predicted is None and row.radius == 0 and not row.certified(0.0) for row in rows)
    summary = SmoothedSummary.of(rows, 0.0)
    assert (summary.images, summary.correct, summary.certified, summary.abstained) == (5, 0, 0, 5)


def test_a_row_depends_on_neither_batches_nor_other_images() -> None:
    images, labels = np.stack([at_distance(d) for d in (0.1, -0.2, 0.3)]), np.array([1, 1, 0])

    def plain(batch: int, count: int = 3, seed: int = 0) -> list[tuple]:
        config = SmoothingConfig(0.25, pilot=33, draws=501, batch=batch, seed=seed)
        return [(r.index, r.label, r.predicted, r.radius, r.votes) for r in certify_smoothed(half_plane, images[:count], labels[:count], config)]

    assert plain(7) == plain(1000) == plain(500)
    assert plain(100, count=2) == plain(100)[:2]
    assert plain(100) != plain(100, seed=1)


def test_a_class_that_the_draws_never_show_is_no_error() -> None:
    calls = iter([4, 0])
    (row,) = certify_smoothed(lambda x: np.full(len(x), next(calls)), np.zeros((1, 1, 1, 1)), np.array([4]), SmoothingConfig(0.1, pilot=10, draws=10))
    assert (row.predicted, row.votes, row.radius) == (None, 0, 0.0)


def test_summary_counts_at_one_radius() -> None:
    outcomes = [(3, 0.5), (3, 0.1), (4, 0.9), (None, 0.0)]
    rows = [SmoothedRow(k, 3, predicted, radius, 90, 0.1) for k, (predicted, radius) in enumerate(outcomes)]
    summary = SmoothedSummary.of(rows, 0.25)
    assert (summary.images, summary.correct, summary.certified, summary.abstained) == (4, 2, 1, 1)
    assert summary.seconds == pytest.approx(0.4)


def test_a_module_and_the_file_of_digits(digits: Path) -> None:
    x, y = verifier.load_images(digits / "images.npz")
    x, y = x[:4], y[:4]
    graph = verifier.load_onnx(digits / "digits.onnx").to("cpu", torch.float32)

    class Network(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return verifier.execute(graph, images.reshape(-1, *graph.input_shape)).flatten(1)

    config = SmoothingConfig(0.03, pilot=20, draws=300)
    ours, files = (list(certify_smoothed(c, x, y, config)) for c in (module_classifier(Network().eval()), onnx_classifier(digits / "digits.onnx")))
    assert [row.predicted for row in files] == list(y)
    assert [(row.predicted, row.votes) for row in ours] == [(row.predicted, row.votes) for row in files]
    assert all(row.radius > 0.03 * norm.ppf(0.95) for row in files)


@pytest.mark.parametrize(
    "values", [{"sigma": 0.0}, {"sigma": float("nan")}, {"sigma": 0.1, "draws": 0}, {"sigma": 0.1, "alpha": 1.0}, {"sigma": 0.1, "seed": -1}], ids=str
)
def test_impossible_settings_are_refused(values: dict) -> None:
    with pytest.raises(verifier.VerifierError, match=f"{list(values)[-1]} is|{list(values)[-1]} 0"):
        SmoothingConfig(**values)


def test_a_module_in_training_is_refused() -> None:
    with pytest.raises(verifier.VerifierError, match="call eval"):
        module_classifier(nn.BatchNorm1d(2))
