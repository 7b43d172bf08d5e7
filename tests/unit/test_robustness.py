"""Robustness properties from an image, and the VNN-LIB writer."""
from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.formulas import unsafe
from verifier.errors import SpecError
from verifier.spec.normal import normalize
from verifier.spec.robustness import parse_eps, robustness
from verifier.spec.spec import Case, Polytope, Spec
from verifier.spec.vnnlib1 import parse_vnnlib1
from verifier.spec.write import to_vnnlib

IMAGE = np.linspace(0.05, 0.95, 12).reshape(3, 2, 2)


def test_linf_box_is_clipped_and_flat() -> None:
    (case,) = robustness(IMAGE, 1, 0.1, 3).cases
    np.testing.assert_array_equal(case.lower, np.maximum(IMAGE.ravel() - 0.1, 0))
    np.testing.assert_array_equal(case.upper, np.minimum(IMAGE.ravel() + 0.1, 1))
    assert case.ball is None and [p.output.tolist() for p in case.polytopes] == [[[-1, 1, 0]], [[0, 1, -1]]]


def test_unsafe_exactly_where_another_class_is_as_large() -> None:
    spec = robustness(np.array([0.5]), 0, 0.25, 3)

    def is_unsafe(x: float, *y: float) -> bool:
        return unsafe(spec, [Fraction(x)], [Fraction(v) for v in y])

    assert not is_unsafe(0.5, 2, 1, 1) and is_unsafe(0.5, 2, 1, 2) and is_unsafe(0.75, 2, 3, 1)
    assert not is_unsafe(0.8, 2, 3, 1)


def test_eps_and_clip_are_in_raw_units() -> None:
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 0.125]
    (case,) = robustness(IMAGE, 0, 0.1, 2, mean=mean, std=std).cases
    by_channel = np.array(std).reshape(3, 1, 1)
    shift = np.array(mean).reshape(3, 1, 1)
    np.testing.assert_allclose(case.lower.reshape(3, 2, 2), (np.maximum(IMAGE - 0.1, 0) - shift) / by_channel, rtol=1e-15)
    np.testing.assert_allclose(case.upper.reshape(3, 2, 2), (np.minimum(IMAGE + 0.1, 1) - shift) / by_channel, rtol=1e-15)


def test_channels_last_where_only_the_last_axis_fits() -> None:
    image = np.full((4, 4, 3), 0.5)
    (case,) = robustness(image, 0, 0.0, 2, mean=[0.0, 0.25, 0.5]).cases
    np.testing.assert_array_equal(case.lower.reshape(4, 4, 3)[1, 2], [0.5, 0.25, 0.0])


@pytest.mark.parametrize(("norm", "p"), [("l2", 2), ("l1", 1)])
def test_balls_scale_with_one_std(norm: str, p: int) -> None:
    (case,) = robustness(IMAGE, 0, 0.5, 2, norm=norm, mean=0.5, std=[0.25, 0.25, 0.25]).cases
    assert case.ball.norm == p and case.ball.radius == 2.0
    np.testing.assert_allclose(case.ball.center, (IMAGE.ravel() - 0.5) / 0.25)
    np.testing.assert_allclose(case.lower, (np.maximum(IMAGE.ravel() - 0.5, 0) - 0.5) / 0.25)


def test_no_clip() -> None:
    (case,) = robustness(np.array([0.0, 1.0]), 0, 0.5, 2, clip=None).cases
    assert case.lower.tolist() == [-0.5, 0.5] and case.upper.tolist() == [0.5, 1.5]


@pytest.mark.parametrize(("text", "value"), [("2/255", 2 / 255), ("0.1", 0.1), ("1e-3", 1e-3), ("0", 0.0), (" 8 / 255 ", 8 / 255)])
def test_eps_is_read(text: str, value: float) -> None:
    assert parse_eps(text) == value


@pytest.mark.parametrize("text", ["", "x", "1/0", "1/2/3", "-1", "nan", "inf", "1/-2", "1e300/1e-300", "/"])
def test_bad_eps_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"^eps = "):
        parse_eps(text)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"label": 3}, "label = 3 is not a class"),
        ({"label": -1}, "label = -1 is not a class"),
        ({"eps": float("nan")}, "eps = nan"),
        ({"eps": -0.1}, "eps = -0.1"),
        ({"norm": "l3"}, "norm = 'l3'"),
        ({"n_out": 1, "label": 0}, "at least two"),
        ({"std": 0.0}, "std = 0 is not positive"),
        ({"mean": [0.1] * 5}, "mean has 5 channels but the image has shape"),
        ({"std": [0.1, float("nan"), 0.2]}, "std has a NaN"),
        ({"norm": "l2", "std": [0.1, 0.2, 0.3]}, "std differs between channels"),
        ({"x": IMAGE * 255}, "Pixel 0 is .*scaled"),
        ({"x": IMAGE * np.nan}, "NaN"),
        ({"x": np.zeros(0)}, "empty"),
    ],
)
def test_bad_arguments_are_one_sentence(change: dict, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        robustness(**{"x": IMAGE, "label": 1, "eps": 0.1, "n_out": 3, **change})


def same(a: Spec, b: Spec) -> bool:
    """Equal cases, numbers and order included; an input matrix of zeros equals none."""

    def inputs(p: Polytope) -> np.ndarray:
        return np.zeros((len(p.offset), a.n_in)) if p.input is None else p.input

    def pairs(p: Polytope, q: Polytope) -> bool:
        return all(np.array_equal(u, v) for u, v in ((p.output, q.output), (p.offset, q.offset), (inputs(p), inputs(q))))

    return (a.n_in, a.n_out, len(a.cases)) == (b.n_in, b.n_out, len(b.cases)) and all(
        np.array_equal(c.lower, d.lower) and np.array_equal(c.upper, d.upper) and len(c.polytopes) == len(d.polytopes)
        and all(pairs(p, q) for p, q in zip(c.polytopes, d.polytopes, strict=True))
        for c, d in zip(a.cases, b.cases, strict=True)
    )


def many_cases() -> Spec:
    rng = np.random.default_rng(3)

    def polytope(with_input: bool) -> Polytope:
        return Polytope(rng.normal(size=(2, 3)), rng.normal(size=2) * 1e-5, rng.normal(size=(2, 2)) if with_input else None)

    boxes = [np.sort(rng.normal(size=(2, 2)), axis=0) for _ in range(3)]
    return Spec(tuple(Case(low, high, (polytope(True), polytope(False))) for low, high in boxes), 2, 3)


SPECS = {
    "linf": robustness(IMAGE, 2, 2 / 255, 4, mean=0.1307, std=0.3081),
    "many cases": many_cases(),
    "always true": Spec((Case(np.zeros(1), np.ones(1), (Polytope(np.zeros((1, 2)), np.zeros(1)),)),), 1, 2),
    "no case": Spec((), 2, 1),
}


@pytest.mark.parametrize("name", SPECS)
def test_what_is_written_is_read_back(name: str) -> None:
    assert same(SPECS[name], normalize(parse_vnnlib1(to_vnnlib(SPECS[name]))))


def test_the_comparison_of_specs_sees_a_changed_number() -> None:
    spec = SPECS["linf"]
    case = spec.cases[0]
    moved = Case(case.lower, np.nextafter(case.upper, 9), case.polytopes)
    assert not same(spec, Spec((moved,), spec.n_in, spec.n_out))


def test_a_ball_cannot_be_written() -> None:
    with pytest.raises(SpecError, match="l2 or l1 ball"):
        to_vnnlib(robustness(IMAGE, 0, 0.1, 2, norm="l2"))


def test_large_pixels_lose_nothing_of_a_small_eps() -> None:
    """The ends are within an ulp of the exact ones, which is what a proof adds."""
    random = np.random.default_rng(0)
    for _ in range(200):
        size = 10.0 ** random.uniform(-3, 9)
        image = random.normal(size=3) * size
        mean, std = image + random.normal(size=3) * 10.0 ** random.uniform(-9, 1), 10.0 ** random.uniform(-2, 2, 3)
        eps, clip = 10.0 ** random.uniform(-6, 0), [None, (float(image.min()), float(image.max()))][random.integers(2)]
        case = robustness(image, 0, eps, 2, clip=clip, mean=mean, std=std).cases[0]
        low, high = (Fraction(v) for v in clip or (-(10**30), 10**30))
        lower, upper = case.received()
        for i, (v, m, s) in enumerate(zip(image.tolist(), mean.tolist(), std.tolist())):
            ends = [(min(max(Fraction(v) + side * Fraction(eps), low), high) - Fraction(m)) / Fraction(s) for side in (-1, 1)]
            assert Fraction(float(lower[i])) <= ends[0] and ends[1] <= Fraction(float(upper[i]))
            assert Fraction(float(np.nextafter(case.lower[i], np.inf))) > ends[0] and ends[1] > Fraction(float(np.nextafter(case.upper[i], -np.inf)))


@pytest.mark.parametrize(("norm", "p"), [("l1", 1), ("l2", 2)])
def test_a_proof_covers_the_ball_that_is_meant(norm: str, p: int) -> None:
    random = np.random.default_rng(1)
    for _ in range(100):
        image, mean, std = random.normal(size=4), random.normal(), 10.0 ** random.uniform(-1, 1)
        ball = robustness(image, 0, 0.1, 2, norm=norm, clip=None, mean=mean, std=std).cases[0].ball
        assert ball is not None
        away = sum(abs((Fraction(v) - Fraction(mean)) / Fraction(std) - Fraction(c)) ** p for v, c in zip(image.tolist(), ball.center.tolist()))
        more = Fraction(ball.covering) - Fraction(0.1) / Fraction(std)
        assert more >= 0 and more**p >= away and ball.covering <= ball.radius + 1e-13
    assert robustness(image, 0, 0.1, 2, norm=norm, clip=None).cases[0].ball.covering == 0.1
