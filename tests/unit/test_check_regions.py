"""Balls, thin inputs, and the arithmetics that the checker knows."""
from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from onnx.helper import make_node as N

from tests.mlp import random_mlp
from tests.onnx_models import model, saved
from tests.small_certificates import as_bytes, case, check_case, done, head
from verifier.certificate.arithmetic import FLOAT16, FLOAT32, FLOAT64, ROUNDED, Arithmetic, Exact, Rounded, Runtime
from verifier.certificate.bound import Problem, bound
from verifier.certificate.check import check
from verifier.certificate.reduce import FEW_INPUTS, Statement, free_inputs, reduce
from verifier.certificate.schema import CertificateError, Record
from verifier.errors import UnsupportedError
from verifier.graph.ir import Graph
from verifier.graph.onnx_load import load_onnx
from verifier.graph.onnx_run import OnnxRunner

Ball = tuple[np.ndarray, float, int]


def statement(lower: np.ndarray, upper: np.ndarray, ball: Ball | None, n_out: int = 2) -> Statement:
    rows = np.concatenate([np.eye(n_out), -np.eye(n_out)])
    return Statement(lower, upper, rows, np.zeros((len(rows), len(lower))), np.zeros(len(rows)), {}, frozenset(), ball)


def in_ball(random: np.random.Generator, center: np.ndarray, radius: float, norm: int, count: int) -> np.ndarray:
    """Points of its surface, corners among them."""
    way = np.concatenate([random.normal(size=(count, len(center))), np.eye(len(center)), -np.eye(len(center))])
    return center + radius * way / np.linalg.norm(way, norm, 1, keepdims=True)


def lower_bounds(problem: Problem, inputs: tuple | None = None) -> np.ndarray:
    return np.asarray(bound(problem, problem.rows, problem.lower, problem.upper, inputs=inputs), float)


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize("kind", [Rounded(), Exact()], ids=["rounded", "exact"])
def test_a_ball_is_bounded_and_closely(norm: int, shift: float, kind: Arithmetic) -> None:
    """A ball around the box's centre, and one beside it: no point of ball and box is below; a linear row's bound is its minimum over the ball."""
    random, net = np.random.default_rng(norm), random_mlp(norm, (3, 6, 4, 2))
    center, size = random.normal(size=3), np.array([0.5, 0.5, 4.0])
    ball = center + shift, 0.5, norm
    problem = reduce(net.graph(), statement(center - size, center + size, ball), kind, None)
    x = in_ball(random, *ball, 2000)
    x = x[(abs(x - center) <= size).all(1)]
    y = net(x)
    least = lower_bounds(problem)
    assert (least <= np.concatenate([y, -y], 1).min(0) + 1e-12).all()
    whole = lower_bounds(reduce(net.graph(), statement(center - size, center + size, None), kind, None))
    assert (least > whole).all()
    assert (np.asarray(problem.upper - problem.lower, float) > 0).all()
    line = random_mlp(5, (3, 2))
    one = lower_bounds(reduce(line.graph(), statement(ball[0] - 9, ball[0] + 9, ball), kind, None))
    weight, bias = line.layers[0]
    dual = np.linalg.norm(weight, 2 if norm == 2 else np.inf, 1) * ball[1]
    exact = np.concatenate([weight @ ball[0] + bias - dual, -(weight @ ball[0] + bias) - dual])
    assert (one <= exact + 1e-15).all() and (exact - one <= 1e-8).all()


@pytest.mark.parametrize("norm", [1, 2])
def test_a_part_of_the_box_keeps_the_ball(norm: int) -> None:
    random, net = np.random.default_rng(0), random_mlp(3, (2, 5, 2))
    ball = np.zeros(2), 1.0, norm
    problem = reduce(net.graph(), statement(-np.ones(2), np.ones(2), ball), ROUNDED, None)
    x = in_ball(random, *ball, 4000)
    x = x[(x >= 0.25).all(1)]
    y = net(x)
    part = np.full((1, 2), 0.625), np.full((1, 2), 0.375)
    assert (lower_bounds(problem, part)[0] <= np.concatenate([y, -y], 1).min(0)).all()


@pytest.mark.parametrize("values", [[3.0, 4.0], [0.0, 0.0], [1e-200, 1e-200], [1e150, 1e150], [1e-300, 0.0]])
def test_norms_are_rounded_up(values: list[float]) -> None:
    exact = sum(Fraction(v) ** 2 for v in values)
    for kind in (Rounded(), Exact()):
        found = Fraction(kind.norm(kind.array([values]))[0])
        assert found**2 >= exact and (found**2 <= exact * (1 + Fraction(1, 2**28)) or found <= Fraction(1, 2**700))


def test_a_ball_of_a_certificate_and_what_it_lacks(tmp_path: Path) -> None:
    """|x|_2 <= 1 in a box of radius 1: x_0 + x_1 reaches sqrt 2, not 1.5. A property's file states no ball, so `check` takes none."""
    net = model([N("MatMul", ["x", "w"], ["y"])], (1, 2), {"w": np.ones((2, 1), np.float32)})
    path = saved(net, tmp_path)
    stated = case([-1, -1], [1, 1], [[-1.0]], [-1.5])
    with_ball = Record("CASE", stated.fields | {"norm": 2}, stated.arrays | {"center": np.zeros(2), "radius": np.ones(1)})
    assert check_case(load_onnx(path), [stated], "float32") and not check_case(load_onnx(path), [with_ball], "float32")
    for wrong in ({"norm": 3}, {"norm": 0}):
        with pytest.raises(CertificateError, match="l1 and l2"):
            check_case(load_onnx(path), [Record("CASE", with_ball.fields | wrong, with_ball.arrays)], "real")
    with pytest.raises(CertificateError, match="no radius below 0"):
        check_case(load_onnx(path), [Record("CASE", with_ball.fields, with_ball.arrays | {"radius": -np.ones(1)})], "real")
    prop = tmp_path / "p.vnnlib"
    prop.write_text("(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(assert (>= Y_0 1.5))"
                    + "".join(f"(assert (<= X_{i} 1))(assert (>= X_{i} -1))" for i in (0, 1)))
    (tmp_path / "c").write_bytes(as_bytes(head(path, prop), with_ball, done(1)))
    with pytest.raises(CertificateError, match="states none"):
        check(path, prop, tmp_path / "c")


@pytest.mark.parametrize("runtime", [None, FLOAT32, FLOAT16])
def test_fixed_inputs_are_symbols_while_they_are_few(runtime: Runtime | None) -> None:
    """Hulls of a value and its nearest float: columns up to FEW_INPUTS, errors beyond, and never with a ball; what is exactly fixed is no column."""
    for count, kept in ((FEW_INPUTS, FEW_INPUTS), (FEW_INPUTS + 1, 0)):
        value = np.linspace(1, 2, count + 2)
        width = value * (runtime or FLOAT32).u
        width[0], width[1] = 0.5, 0.0
        asked = statement(value - width, value, None)
        assert free_inputs(asked, runtime).sum() == kept + 1 and free_inputs(asked, runtime)[0]
        assert free_inputs(statement(value - width, value, (value, 1.0, 2)), runtime).sum() == 1


@pytest.mark.parametrize("count", [3, 100])
def test_bounds_cover_thin_inputs(count: int) -> None:
    random, net = np.random.default_rng(count), random_mlp(count, (count, 6, 2))
    lower = random.normal(size=count)
    upper = lower + abs(lower) * 2.0**-24
    for kind in (Rounded(), Exact()):
        problem = reduce(net.graph(), statement(lower, upper, None), kind, None)
        y = net(np.where(random.random((500, count)) < 0.5, lower, upper))
        assert (lower_bounds(problem) <= np.concatenate([y, -y], 1).min(0) + 1e-14).all()


TYPES = {"float16": (TensorProto.FLOAT16, np.float16), "float32": (TensorProto.FLOAT, np.float32), "float64": (TensorProto.DOUBLE, np.float64)}


def typed(name: str, folder: Path, size: float = 1.0) -> Path:
    kind, number = TYPES[name]
    weight = (np.random.default_rng(0).normal(size=(30, 4)) * size).astype(number)
    return saved(model([N("MatMul", ["x", "w"], ["a"]), N("Relu", ["a"], ["y"])], (1, 30), {"w": weight}, kind=kind), folder)


@pytest.mark.parametrize("name", TYPES)
def test_the_arithmetic_of_a_file_and_no_other(name: str, tmp_path: Path) -> None:
    path = typed(name, tmp_path)
    assert load_onnx(path).arithmetic == name
    prop = tmp_path / "p.vnnlib"
    declared = "".join(f"(declare-const X_{i} Real)(assert (<= X_{i} 1))(assert (>= X_{i} 0))" for i in range(30))
    prop.write_text(declared + "".join(f"(declare-const Y_{i} Real)" for i in range(4)) + "(assert (<= Y_0 -1))")
    for spoken in (*TYPES, "real"):
        (tmp_path / "c").write_bytes(as_bytes(head(path, prop, spoken), case(np.zeros(30), np.ones(30), [[1.0, 0, 0, 0]], [-1.0]), done(1)))
        report = check(path, prop, tmp_path / "c")
        assert report.accepted == (spoken in (name, "real")), report


@pytest.mark.parametrize(("name", "runtime"), [("float64", FLOAT64), ("float32", FLOAT32), ("float16", FLOAT16)])
def test_onnxruntime_stays_within_each_arithmetic(name: str, runtime: Runtime, tmp_path: Path) -> None:
    path, random = typed(name, tmp_path), np.random.default_rng(1)
    run = OnnxRunner(path)
    graph, number = load_onnx(path), TYPES[name][1]
    for _ in range(20):
        x = random.normal(size=30).astype(number)
        problem = reduce(graph, statement(x.astype(float), x.astype(float), None, 4), ROUNDED, runtime)
        y = run(x).astype(float)
        assert (lower_bounds(problem) <= np.concatenate([y, -y])).all()


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh"])
def test_transcendentals_of_float64(op: str, tmp_path: Path) -> None:
    run = OnnxRunner(saved(model([N(op, ["x"], ["y"])], (1, 2**16), kind=TensorProto.DOUBLE), tmp_path))
    random = np.random.default_rng(0)
    worst = 0.0
    for x in (np.linspace(-40, 40, 2**16), random.uniform(-3, 3, 2**16), random.normal(size=2**16) * 10.0 ** random.uniform(-300, 3, 2**16)):
        wide = x.astype(np.longdouble)
        with np.errstate(over="ignore"):
            true = np.tanh(wide) if op == "Tanh" else 1 / (1 + np.exp(-wide))
        worst = max(worst, float(abs(run(x) - true).max()))
    assert worst < FLOAT64.transcendental / 8


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    graph = load_onnx(typed("float16", tmp_path, 100.0))
    big = statement(np.zeros(30), np.full(30, 400.0), None, 4)
    with pytest.raises(UnsupportedError, match="may exceed 65504"):
        reduce(graph, big, ROUNDED, FLOAT16)
    assert reduce(graph, big, ROUNDED, FLOAT32)


def test_a_mean_of_values_whose_sum_overflows_is_refused(tmp_path: Path) -> None:
    path = saved(model([N("GlobalAveragePool", ["x"], ["y"])], (1, 1, 10, 10), kind=TensorProto.FLOAT16), tmp_path)
    graph: Graph = load_onnx(path)
    for most, refused in ((600.0, False), (700.0, True)):
        asked = statement(np.zeros(100), np.full(100, most), None, 1)
        if refused:
            with pytest.raises(UnsupportedError, match="may exceed"):
                reduce(graph, asked, ROUNDED, FLOAT16)
        else:
            assert reduce(graph, asked, ROUNDED, FLOAT16)


FACTORS = {
    "alpha": [N("Gemm", ["x", "w"], ["y"], alpha=2.0**80)],
    "a product before": [N("Mul", ["x", "s"], ["z"]), N("MatMul", ["z", "w"], ["y"])],
    "a quotient before": [N("Div", ["x", "t"], ["z"]), N("MatMul", ["z", "w"], ["y"])],
    "a product before many matrices": [N("Mul", ["x", "s"], ["z"]), N("MatMul", ["z", "v"], ["y"])],
}


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_that_a_runtime_keeps_for_the_sum(name: str, tmp_path: Path) -> None:
    """2^-80 2^80 2^-80 is 0 where the smallest are multiplied first, as onnxruntime does it."""
    small = np.float32(2.0**-80)
    weights = {"w": np.full((1, 1), small), "v": np.full((2, 1, 1), small), "s": 1 / small, "t": small}
    used = {k: np.array(v) for k, v in weights.items() if any(k in node.input for node in FACTORS[name])}
    n, shape = (2, (1, 2, 1, 1)) if "v" in used else (1, (1, 1))
    path, x = saved(model(FACTORS[name], shape, used), tmp_path), np.full(n, 2.0**-80)
    assert (OnnxRunner(path)(x.astype(np.float32)) == 0).all()
    stated = case(x, x, np.eye(1, n), [2.0**-81])
    try:
        assert check_case(load_onnx(path), [stated], "float32")
    except UnsupportedError as error:
        assert "before they are scaled" in str(error)
    assert not check_case(load_onnx(path), [stated], "real")
    large = 2.0**40 * x
    assert not check_case(load_onnx(path), [case(large, large, np.eye(1, n), [2.0**-41])], "float32")


def test_weights_times_several_scales_may_overflow(tmp_path: Path) -> None:
    """-2^-60 2^40 2^50 2^45 is -2^75, and infinite where a runtime multiplies the weights by both scales."""
    sizes = {"w": ((1, 1, 1, 1), -2.0**40), "s": ((1, 1, 1), 2.0**50), "t": ((1, 1, 1), 2.0**45)}
    scales = {name: np.full(shape, value, np.float32) for name, (shape, value) in sizes.items()}
    nodes = [N("Conv", ["x", "w"], ["a"]), N("Mul", ["a", "s"], ["b"]), N("Mul", ["b", "t"], ["y"])]
    path, x = saved(model(nodes, (1, 1, 1, 1), scales), tmp_path), np.full(1, 2.0**-60)
    assert OnnxRunner(path)(x.astype(np.float32)) == -np.inf
    stated = case(x, x, [[1.0]], [-(2.0**80)])
    assert not check_case(load_onnx(path), [stated], "real")
    with pytest.raises(UnsupportedError, match="times the weights before it"):
        check_case(load_onnx(path), [stated], "float32")
