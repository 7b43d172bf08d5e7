"""The checker's bounds of many boxes at once: below the truth for every rounding and every order of summation, and red without any of their terms."""
from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx.helper import make_node as N

from tests.mlp import Mlp, near_truth, random_mlp, smallest_margin
from tests.onnx_models import model, saved
from verifier.bounds.crown import IbpOnly, crown
from verifier.certificate import many
from verifier.certificate.arithmetic import FLOAT16, FLOAT32, Exact, Rounded, Runtime
from verifier.certificate.many import bounds_of_many
from verifier.errors import UnsupportedError
from verifier.graph.ir import Graph, Node
from verifier.graph.onnx_load import load_onnx
from verifier.measure.screen import margin_request
from verifier.spec.spec import Case, Polytope

Box = tuple[np.ndarray, np.ndarray]


def boxes(cases: list[Case]) -> tuple[Box, Box]:
    """Boxes and rows of cases that have one polytope of one row."""
    rows = [np.stack([getattr(case.polytopes[0], part) for case in cases]) for part in ("output", "offset")]
    return (np.stack([case.lower for case in cases]), np.stack([case.upper for case in cases])), (rows[0], rows[1])


def lower_bounds(graph: Graph, cases: list[Case], arithmetic=Rounded(), runtime: Runtime | None = None) -> np.ndarray:  # noqa: B008
    return bounds_of_many(graph, *boxes(cases), arithmetic, runtime)[:, 0]


def cases_of(mlp: Mlp, count: int, seed: int, gap: float = 0.5) -> list[Case]:
    return [near_truth(mlp, 3 * (seed + k) + 1, gap) for k in range(count)]


@pytest.mark.parametrize("runtime", [None, FLOAT32])
@pytest.mark.parametrize("seed", range(8))
def test_bounds_are_below_the_milps_minima(seed: int, runtime: Runtime | None) -> None:
    mlp = random_mlp(seed)
    cases = cases_of(mlp, 4, seed)
    for case, found in zip(cases, lower_bounds(mlp.graph(), cases, runtime=runtime)):
        assert found <= smallest_margin(mlp, case.lower, case.upper, case.polytopes[0])[0] + 1e-6


@pytest.mark.parametrize("seed", range(6))
def test_rationals_give_no_less_and_almost_the_same(seed: int) -> None:
    """The same rule without any rounding is the oracle of what rounding takes."""
    mlp = random_mlp(seed)
    cases = cases_of(mlp, 2, seed)
    for runtime in (None, FLOAT32):
        exact, rounded = (lower_bounds(mlp.graph(), cases, arithmetic, runtime) for arithmetic in (Exact(), Rounded()))
        assert all(r <= e for r, e in zip(rounded, exact))
        np.testing.assert_allclose(rounded, exact.astype(float), rtol=1e-6, atol=1e-6)


def exactly(mlp: Mlp, x: np.ndarray, row: np.ndarray) -> Fraction:
    """row @ mlp(x) in rational arithmetic."""
    value = [Fraction(v) for v in x.tolist()]
    for k, (weight, bias) in enumerate(mlp.layers):
        value = [sum((Fraction(w) * v for w, v in zip(line, value)), Fraction(b)) for line, b in zip(weight.tolist(), bias.tolist())]
        value = [max(v, Fraction(0)) for v in value] if k + 1 < len(mlp.layers) else value
    return sum((Fraction(r) * v for r, v in zip(row.tolist(), value)), Fraction(0))


def point(x: list[float] | np.ndarray, row: list[float], offset: float = 0.0) -> Case:
    return Case(np.asarray(x, float), np.asarray(x, float), (Polytope(np.array([row]), np.array([offset])),))


BIG = 2.0**60
CANCEL = np.array([[BIG, -1.0, -BIG]])  # at (1, 1, 1) it is -1, and 0 where the sum loses its middle


def linear(name: str, source: str, weight: np.ndarray, bias: np.ndarray | None = None) -> Node:
    return Node(name, "Linear", (source,), (1, len(weight)), {"weight": weight, "bias": np.zeros(len(weight)) if bias is None else bias})


def chain(n_in: int, *nodes: Node) -> Graph:
    return Graph((Node("x", "Input", (), (1, n_in)), *nodes), nodes[-1].name)


def check_range() -> None:
    """z = 2^60 + 1 - 2^60 - 1/4 is on; summed without the 1 it is off, and then no later sum knows of it: 5 - 8 relu(z) = -1."""
    z = linear("z", "x", np.array([[BIG, 1.0, -BIG]]), np.array([-0.25]))
    graph = chain(3, z, Node("h", "Relu", ("z",), (1, 1)), linear("y", "h", np.array([[-8.0]]), np.array([5.0])))
    assert lower_bounds(graph, [point([1.0, 1.0, 1.0], [1.0])])[0] <= -1


def check_coefficients() -> None:
    """Two maps one after the other: backwards, the coefficient of x is 2^60 - 1 - 2^60."""
    assert lower_bounds(chain(1, linear("h", "x", np.ones((3, 1))), linear("y", "h", CANCEL)), [point([1.0], [1.0])])[0] <= -1


def check_shifts() -> None:
    """2^60 - 1 - 2^60 in shifts alone."""
    graph = chain(1, linear("h", "x", np.zeros((3, 1)), np.ones(3)), linear("y", "h", CANCEL))
    assert lower_bounds(graph, [point([0.0], [1.0])])[0] <= -1


def check_inputs() -> None:
    """The row itself cancels, over a network that does nothing; so does its offset."""
    nothing = chain(3, Node("y", "Reshape", ("x",), (3,)))
    assert lower_bounds(nothing, [point([1.0, 1.0, 1.0], CANCEL[0].tolist())])[0] <= -1
    assert lower_bounds(nothing, [point([BIG, -1.0, 0.0], [1.0, 1.0, 0.0], BIG)])[0] <= -1


def check_planes() -> None:
    """-f relu(x) over [low, high] is -f high at its least, whatever slope of its plane was rounded to."""
    random, alone = np.random.default_rng(0), chain(1, Node("h", "Relu", ("x",), (1, 1)), Node("y", "Reshape", ("h",), (1,)))
    for low, high in np.sort(random.normal(size=(200, 2)), 1):
        factor = abs(random.normal())
        case = Case(np.array([low]), np.array([high]), (Polytope(np.array([[-factor]]), np.zeros(1)),))
        assert Fraction(float(lower_bounds(alone, [case])[0])) <= -Fraction(factor) * max(Fraction(high), 0)


def check_random_cancelling() -> None:
    random = np.random.default_rng(0)
    for seed in range(5):
        (w0, b0), (w1, b1), (w2, b2) = random_mlp(seed, (6, 24, 24, 2)).layers
        twins = np.concatenate([w1 + 1e7, -w1 - 1e7 + random.normal(size=w1.shape)], 1), b1
        mlp = Mlp(((np.concatenate([w0, w0]), np.concatenate([b0, b0])), twins, (w2, b2)))
        for x in random.normal(size=(8, 6)):
            found = lower_bounds(mlp.graph(), [point(x, [1.0, -1.0])])[0]
            assert Fraction(float(found)) <= exactly(mlp, x, np.array([1.0, -1.0]))


TINY = 2.0**-25
"""Half of what float32 can add to 1."""


def check_fused(last: Node, count: int = 4000) -> None:
    """1 + a sum of many: a runtime that begins the sum with the 1 adds half an ulp at a time, and arrives at 1."""
    ones, rest = linear("one", "x", np.ones((1, 1))), linear("r", "x", np.full((count, 1), TINY))
    graph = chain(1, ones, rest, linear("s", "r", np.ones((1, count))), last)
    total = np.float32(1)
    for _ in range(count):
        total += np.float32(TINY)
    assert total == 1
    assert lower_bounds(graph, [point([1.0], [1.0], 1 + 0.9 * count * TINY)])[0] > 0
    assert lower_bounds(graph, [point([1.0], [1.0], 1.0)], runtime=FLOAT32)[0] <= 0


def check_fused_sums() -> None:
    check_fused(Node("y", "Add", ("s", "one"), (1, 1)))
    check_fused(Node("y", "Scale", ("s",), (1, 1), {"scale": np.ones(1), "offset": np.ones(1)}))


BATTERY = (check_fused_sums, check_range, check_coefficients, check_shifts, check_inputs, check_planes, check_random_cancelling)


def test_sums_that_float16_cannot_hold_are_refused() -> None:
    """300 * 300 - 300 * 300, of which neither is a number there."""
    graph = chain(1, linear("h", "x", np.full((2, 1), 300.0)), linear("y", "h", np.array([[300.0, -300.0]])))
    case = point([1.0], [1.0], -1e4)
    assert lower_bounds(graph, [case], runtime=FLOAT32)[0] > 0
    with pytest.raises(UnsupportedError, match="may exceed 65504"):
        lower_bounds(graph, [case], runtime=FLOAT16)


@pytest.mark.parametrize("check", BATTERY)
def test_what_rounding_hides_is_not_proved(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("places", [("_forward",), ("_backward",), ("_stated", "_least"), ("_stated", "_least", "_through_relu")], ids=" and ".join)
def test_without_one_of_its_terms_the_battery_is_red(places: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: the roundings that a function subtracts are taken for nothing. What is small beside another's room goes with that other."""
    right = many._Pass._sum

    def missing(self: many._Pass, k: int, terms: np.ndarray) -> np.ndarray:
        return 0 * terms if sys._getframe(1).f_code.co_name in places else right(self, k, terms)

    monkeypatch.setattr(many._Pass, "_sum", missing)
    if "_stated" in places:
        monkeypatch.setattr(many._Pass, "_stated", lambda self, c, offset: 0 * offset)
    assert any(fails(check) for check in BATTERY)


def fails(check: Callable[[], None]) -> bool:
    try:
        check()
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("side", [0, 1])
def test_a_plane_that_is_one_percent_too_tight_is_red(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = many._Pass._forward

    def narrowed(self: many._Pass, node: Node, inputs: list[many.Range]) -> many.Range:
        found = right(self, node, inputs)
        room = 0.01 * (found.upper - found.lower)
        return replace(found, lower=found.lower + room * (side == 0), upper=found.upper - room * (side == 1))

    monkeypatch.setattr(many._Pass, "_forward", narrowed)
    assert fails(check_tight)


def check_tight() -> None:
    """Where bounds come near the truth, at either end: one neuron beside one that is on."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        weight, bias = random.normal(size=(1, 2)), random.normal(size=1) / 4
        for sign in (1.0, -1.0):
            # sign relu(z) + (z + 10)/2
            mlp = Mlp(((np.concatenate([weight, weight]), np.concatenate([bias, bias + 10])), (np.array([[sign, 0.5]]), np.zeros(1))))
            case = Case(-np.ones(2), np.ones(2), (Polytope(np.ones((1, 1)), np.zeros(1)),))
            truth, _ = smallest_margin(mlp, case.lower, case.upper, case.polytopes[0])
            assert lower_bounds(mlp.graph(), [case])[0] <= truth + 1e-7


def test_tight_bounds_are_below_the_truth() -> None:
    check_tight()


def orders(mlp: Mlp, x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The network in float32, each sum in a random order, each term rounded."""
    value = x.astype(np.float32)
    for k, (weight, bias) in enumerate(mlp.layers):
        sums = []
        for line, b in zip(weight.astype(np.float32), bias.astype(np.float32)):
            terms, total = np.append(line * value, b), np.float32(0)
            for term in random.permutation(terms):
                total = np.float32(total + term)
            sums.append(total)
        value = np.array(sums, np.float32)
        value = np.maximum(value, 0) if k + 1 < len(mlp.layers) else value
    return value.astype(float)


def check_float32(runtime: Runtime) -> None:
    """No evaluation in any order at points of a thin box is below the bound."""
    random = np.random.default_rng(1)
    for seed in range(6):
        (w0, b0), (w1, b1), (w2, b2) = random_mlp(seed, (4, 12, 12, 2)).layers
        single = lambda a: a.astype(np.float32).astype(float)  # noqa: E731
        twins = single(np.concatenate([w1 + 1e4, -w1 - 1e4 + random.normal(size=w1.shape)], 1)), b1
        mlp = Mlp(((np.concatenate([w0, w0]), np.concatenate([b0, b0])), twins, (w2, b2)))
        x = single(random.normal(size=4))
        found = lower_bounds(mlp.graph(), [point(x, [1.0, -1.0])], runtime=runtime)[0]
        assert all(found <= y[0] - y[1] for y in (orders(mlp, x, random) for _ in range(60)))


def test_every_order_of_summation_in_float32_is_above_the_bound() -> None:
    check_float32(FLOAT32)


@pytest.mark.parametrize("share", [0.0, 2.0**-8])
def test_a_runtime_that_rounds_less_than_float32_is_red(share: float) -> None:
    with pytest.raises(AssertionError):
        check_float32(Runtime(u=2.0**-24 * share))


def _constant(name: str, *shape: int, seed: int = 0) -> tuple[str, np.ndarray]:
    return name, np.random.default_rng(seed + len(name)).normal(size=shape).astype(np.float32)


NETWORKS = {
    "strides, pads and groups": ((1, 4, 7, 6), [
        N("Conv", ["x", "w"], ["a"], strides=[2, 1], pads=[1, 0, 2, 1], group=2), N("Relu", ["a"], ["b"]), N("Flatten", ["b"], ["f"]),
        N("MatMul", ["f", "m"], ["y"]),
    ], [_constant("w", 6, 2, 3, 2), _constant("m", 144, 2)]),
    "dilations and a residual": ((1, 2, 6, 6), [
        N("Conv", ["x", "w", "c"], ["a"], dilations=[2, 1], pads=[2, 1, 2, 1]), N("Relu", ["a"], ["b"]), N("Add", ["b", "x"], ["s"]),
        N("Relu", ["s"], ["t"]), N("Sub", ["t", "a"], ["u"]), N("Reshape", ["u", "shape"], ["f"]), N("MatMul", ["f", "m"], ["y"]),
    ], [_constant("w", 2, 2, 3, 3), _constant("c", 2), _constant("m", 72, 2), ("shape", np.array([1, 72]))]),
    "axes and scales": ((1, 5, 4, 3), [
        N("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), N("Mul", ["t", "s"], ["p"]), N("Relu", ["p"], ["r"]),
        N("Transpose", ["r"], ["q"], perm=[0, 2, 3, 1]), N("Reshape", ["q", "shape"], ["f"]), N("MatMul", ["f", "m"], ["y"]),
    ], [_constant("s", 3, 1, 1), _constant("m", 60, 2), ("shape", np.array([1, 60]))]),
}  # fmt: skip


def network(name: str, folder: Path) -> Graph:
    shape, nodes, constants = NETWORKS[name]
    return load_onnx(saved(model(nodes, shape, dict(constants)), folder))


def some_cases(graph: Graph, count: int = 3, radius: float = 0.2) -> list[Case]:
    random, n = np.random.default_rng(5), int(np.prod(graph.input_shape))
    centers = random.normal(size=(count, n))
    return [Case(x - radius, x + radius, (Polytope(random.normal(size=(1, 2)), random.normal(size=1)),)) for x in centers]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_operation_goes_backwards_as_torch_has_it(name: str, tmp_path: Path) -> None:
    """The same rule by other code gives the same number; and no point of a box is below it."""
    graph = network(name, tmp_path)
    cases, double = some_cases(graph), graph.to("cpu", torch.float64)
    found = lower_bounds(graph, cases)
    with torch.no_grad():
        expected = crown(margin_request(double, cases), IbpOnly()).lower[:, 0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (lower_bounds(graph, cases, runtime=FLOAT32) < found).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_of_points_the_bound_is_the_value(name: str, tmp_path: Path) -> None:
    from verifier.graph.execute import execute

    graph = network(name, tmp_path)
    cases = some_cases(graph, radius=0.0)
    y = execute(graph.to("cpu", torch.float64), torch.tensor(np.stack([case.lower for case in cases])).reshape(-1, *graph.input_shape))
    value = [float(case.polytopes[0].output[0] @ row - case.polytopes[0].offset[0]) for case, row in zip(cases, y.reshape(3, -1).numpy())]
    np.testing.assert_allclose(lower_bounds(graph, cases), value, rtol=1e-9, atol=1e-9)


def test_what_it_does_not_cover_is_refused(tmp_path: Path) -> None:
    graph = random_mlp(0).graph()
    cases = cases_of(random_mlp(0), 1, 0)
    for broken, said in (
        (replace(graph, nodes=(*graph.nodes, Node("s", "Sigmoid", (graph.output,), (1, 2))), output="s"), "Sigmoid"),
        (replace(graph, computed=("c",)), "computes a constant"),
        (Mlp(((np.full((2, 3), 2.0**99), np.zeros(2)),)).graph(), "may exceed 1.26765e"),
        (Mlp(((np.full((2, 3), np.nan), np.zeros(2)),)).graph(), "may exceed 1.26765e"),
        (replace(graph, nodes=(*graph.nodes, Node("a", "Add", (graph.output, "h1"), (1, 2))), output="a"), "several shapes"),
    ):
        with pytest.raises(UnsupportedError, match=said), np.errstate(all="ignore"):
            lower_bounds(broken, cases)
