"""The gate: what it lets through, and above all what it does not."""
from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.formulas import unsafe
from tests.small_models import absolute_value
from verifier.attack.confirm import confirm, numbers_box, replay_graph, replay_onnx, witness_text
from verifier.errors import ShapeError
from verifier.spec.spec import Ball, Case, Polytope, Spec
from verifier.verdict import Counterexample

ALWAYS = Polytope(np.zeros((1, 2)), np.zeros(1))


def identity(x: np.ndarray) -> np.ndarray:
    return x.copy()


def case(lower, upper, *polytopes: Polytope, ball: Ball | None = None) -> Case:
    return Case(np.array(lower, float), np.array(upper, float), polytopes or (ALWAYS,), ball)


def at_most(*offset: float, rows=((1.0, 0.0),), inputs=None) -> Polytope:
    return Polytope(np.array(rows), np.array(offset), None if inputs is None else np.array(inputs))


# numbers that are no float32, far apart and close together
EDGES = [0.1, 0.3, 1 / 3, -0.1, -1e-9, 1e-40, -1e-46, 7.0, 16777217.0, -3.3e38, 1e20, 0.0]


@pytest.mark.parametrize("edge", EDGES)
def test_the_numbers_box_is_the_largest_inside(edge: float) -> None:
    width = max(abs(edge), 1e-30) * 1e-3
    lower, upper = np.array([edge]), np.array([edge + width])
    low, high = numbers_box(lower, upper)
    assert low.dtype == high.dtype == np.float32
    assert lower[0] <= float(low[0]) <= float(high[0]) <= upper[0]
    assert float(np.nextafter(low[0], np.float32(-np.inf))) < lower[0] and float(np.nextafter(high[0], np.float32(np.inf))) > upper[0]


@pytest.mark.parametrize(("lower", "upper"), [(0.1, 0.1), (-0.1, -0.1), (1 + 1e-9, 1 + 2e-9), (1 + 9e-8, 1 + 1e-7), (1e-50, 1e-49)])
def test_without_a_float32_between_the_nearest_stands(lower: float, upper: float) -> None:
    low, high = numbers_box(np.array([lower]), np.array([upper]))
    assert low[0] == high[0]
    around = [np.float32(lower), *(np.nextafter(np.float32(lower), np.float32(s * np.inf)) for s in (-1, 1))]
    assert float(low[0]) == min((float(v) for v in around), key=lambda v: max(lower - v, v - upper))


def test_points_outside_of_the_box_are_drawn_in() -> None:
    region = case([0.1, -1], [0.2, 1])
    found = confirm(np.array([0.0, 5.0]), region, ALWAYS, identity)
    assert found.x.dtype == np.float32 and 0.1 <= float(found.x[0]) <= 0.2 and found.x[1] == 1
    assert unsafe(Spec((region,), 2, 2), [Fraction(float(v)) for v in found.x], [Fraction(float(v)) for v in found.y])


@pytest.mark.parametrize("norm", [1, 2])
def test_the_ball_holds_exactly(norm: int) -> None:
    """A hundred points on and outside of the surface: each comes out inside, by exact arithmetic."""
    rng = np.random.default_rng(0)
    center = np.full(5, 0.1)
    ball = Ball(center, 0.25, norm)
    region = case(center - 0.25, center + 0.25, Polytope(np.zeros((1, 5)), np.zeros(1)), ball=ball)
    spec = Spec((region,), 5, 5)
    for _ in range(100):
        away = rng.normal(size=5)
        x = center + away / np.linalg.norm(away, norm) * 0.25 * rng.choice([1, 1.5])
        found = confirm(x, region, region.polytopes[0], identity)
        assert found is not None and unsafe(spec, [Fraction(float(v)) for v in found.x], [Fraction(0)] * 5)
        assert np.linalg.norm(found.x - center, norm) > 0.249


def test_the_surface_of_the_ball_is_decided_exactly() -> None:
    """||(1, 2^-30)||_2 is 1 in float64 and more in truth: moved inwards; (1, 0) touches and stays."""
    region = case([-1, -1], [1, 1], ball=Ball(np.zeros(2), 1.0, 2))
    assert confirm(np.array([1.0, 0.0]), region, ALWAYS, identity).x.tolist() == [1.0, 0.0]
    outside = confirm(np.array([1.0, 2.0**-30]), region, ALWAYS, identity)
    assert sum(Fraction(float(v)) ** 2 for v in outside.x) <= 1


def test_a_ball_without_float32_points_lets_nothing_through() -> None:
    region = case([0.1, 0.1], [0.1, 0.1], ball=Ball(np.array([0.1, 0.1]), 0.0, 2))
    assert confirm(np.array([0.1, 0.1]), region, ALWAYS, identity) is None


@pytest.mark.parametrize(("offset", "passes"), [(0.5, True), (np.nextafter(0.5, 0), False), (np.nextafter(0.5, 1), True), (0.4, False)])
def test_tolerance_is_zero(offset: float, passes: bool) -> None:
    found = confirm(np.array([0.5, 0.0]), case([0, 0], [1, 1]), at_most(offset), identity)
    assert (found is not None) == passes
    if found:
        assert found.margin == offset - 0.5


def test_margins_below_float64_are_seen() -> None:
    """1e17 + 1 - 1e17 is 0 in float64 and 1 in truth: the sum must be exact on both sides of the edge."""
    big = at_most(0.5, rows=((1.0, 1.0),), inputs=((-1.0, 0.0),))
    region = case([1e17, 1], [1.1e17, 1])
    x = np.array([1.0e17, 1.0])
    assert confirm(x, region, big, identity) is None
    assert confirm(x, region, at_most(1.0, rows=((1.0, 1.0),), inputs=((-1.0, 0.0),)), identity).margin == 0


def test_every_row_counts_and_the_margin_is_the_smallest() -> None:
    region = case([0, 0], [1, 1])
    two = at_most(0.75, 0.5, rows=((1.0, 0.0), (0.0, 1.0)))
    assert confirm(np.array([0.5, 0.375]), region, two, identity).margin == 0.125
    assert confirm(np.array([0.5, 0.75]), region, two, identity) is None


def test_input_rows_use_the_rounded_point() -> None:
    """x1 <= 0.1 - y0 with x clamped to the box: the clamped value decides."""
    mixed = at_most(0.1, rows=((1.0, 0.0),), inputs=((0.0, 1.0),))
    region = case([0, 0.25], [1, 1])
    assert confirm(np.array([0.0, 0.0]), region, mixed, identity) is None
    assert confirm(np.array([0.0, 0.0]), case([0, 0], [1, 1]), mixed, identity) is not None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_no_numbers_prove_nothing(bad: float) -> None:
    assert confirm(np.zeros(2), case([0, 0], [1, 1]), ALWAYS, lambda x: np.array([0, bad], np.float32)) is None


def test_a_candidate_with_nan_is_refused() -> None:
    assert confirm(np.array([np.nan, 0]), case([0, 0], [1, 1]), ALWAYS, identity) is None


def test_wrong_sizes_are_one_sentence() -> None:
    with pytest.raises(ShapeError, match="candidate has 3 numbers but the property has 2"):
        confirm(np.zeros(3), case([0, 0], [1, 1]), ALWAYS, identity)
    with pytest.raises(ShapeError, match="network has 1 outputs but the property has 2"):
        confirm(np.zeros(2), case([0, 0], [1, 1]), ALWAYS, lambda x: x[:1])


def test_onnxruntime_and_the_graph_replay_alike(tmp_path: Path) -> None:
    from verifier.graph.onnx_load import load_onnx

    path = absolute_value(tmp_path / "abs.onnx")
    by_file, by_graph = replay_onnx(path), replay_graph(load_onnx(path))
    for value in (-0.75, 0.0, 0.3):
        x = np.array([value], np.float32)
        assert by_file(x).tolist() == by_graph(x).tolist() == [abs(float(np.float32(value)))]
    region = case([-1], [1])
    half = Polytope(np.array([[-1.0]]), np.array([-0.5]))
    assert confirm(np.array([-0.75]), region, half, by_file).margin == 0.25
    assert confirm(np.array([0.25]), region, half, by_file) is None


def test_witness_text_reads_back_exactly() -> None:
    x = np.array([0.1, -1e-30, 3e38, 0.0], np.float32)
    y = np.array([1 / 3], np.float32)
    text = witness_text(Counterexample(x, y, 0.0))
    assert text.startswith("sat\n((X_0 ") and text.endswith("))\n")
    pairs = re.findall(r"\(([XY]_\d+) ([^\s()]+)\)", text)
    assert [name for name, _ in pairs] == ["X_0", "X_1", "X_2", "X_3", "Y_0"] and len(text.splitlines()) == 6
    assert [float(v) for _, v in pairs] == [float(v) for v in (*x, *y)]
    assert np.array([v for _, v in pairs], dtype=np.float64).astype(np.float32).tolist() == [*x.tolist(), *y.tolist()]
