"""Every line of the error accounting: the worst that a runtime may compute, node by node, lies within what the checker proves; without the line not.

The runtime is simulated: each node's value is moved by all that docs/certificate.md allows, with the signs that lower the output most.
The networks mix what hides errors: huge terms that cancel, dead neurons beside active ones, summands worked into long sums.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import verifier.ops  # noqa: F401  (registers the rules)
from verifier.certificate import affine, reduce
from verifier.certificate.arithmetic import Exact, Rounded, Runtime
from verifier.certificate.bound import Problem, bound
from verifier.certificate.reduce import Statement
from verifier.graph.ir import Graph, Node
from verifier.ops.rule import rule_for

COARSE = Runtime(2.0**-12, 2.0**-100, 2.0**100, 2.0**-9)
"""So coarse that errors of errors count."""


@dataclass
class Net:
    """Nodes added one by one; `random` float32 weights."""

    nodes: list[Node]
    random: np.random.Generator

    @staticmethod
    def of(shape: tuple[int, ...], seed: int) -> Net:
        return Net([Node("x", "Input", (), shape)], np.random.default_rng(seed))

    def floats(self, *shape: int, size: float = 1.0) -> np.ndarray:
        return (self.random.normal(size=shape) * size).astype(np.float32).astype(np.float64)

    def add(self, op: str, shape: tuple[int, ...], *inputs: str, constants: dict | None = None, **attributes: Any) -> str:
        self.nodes.append(Node(f"n{len(self.nodes)}", op, inputs or (self.nodes[-1].name,), shape, constants or {}, attributes))
        return self.nodes[-1].name

    def linear(self, size: int, *inputs: str, scale: float = 1.0, bias: float = 1.0) -> str:
        before = next(n for n in self.nodes if n.name == (inputs or (self.nodes[-1].name,))[0]).shape
        constants = {"weight": self.floats(size, before[-1], size=scale), "bias": self.floats(size, size=bias)}
        return self.add("Linear", (*before[:-1], size), *inputs, constants=constants)

    def graph(self) -> Graph:
        return Graph(tuple(self.nodes), self.nodes[-1].name)


def layers(net: Net, *between: tuple[str, dict]) -> Graph:
    """Linear, each operation, Linear."""
    shape = (1, net.linear(9) and 9)
    for op, attributes in between:
        net.add(op, shape, **attributes)
    net.linear(2)
    return net.graph()


def dead_and_active(net: Net) -> Graph:
    """relu of huge terms that cancel, beside neurons that are dead by so little that their error may wake them."""
    weight = np.array([[1000.0, -1000.0, 1], [-1000, 1000, -0.001], [1000, -1000, -0.001], [1, 1, 1]])
    net.add("Linear", (1, 4), constants={"weight": weight, "bias": np.zeros(4)})
    net.add("Relu", (1, 4))
    net.linear(3)
    return net.graph()


def residual(net: Net) -> Graph:
    """A long sum that a huge summand is added to."""
    skip = net.linear(40, bias=1e3)
    net.add("Relu", (1, 40))
    small = net.linear(40, scale=1e-3, bias=0.0)
    net.add("Sub", (1, 40), skip, small)
    net.add("Add", (1, 40), net.nodes[-1].name, skip)
    net.linear(2)
    return net.graph()


def normalised(net: Net) -> Graph:
    """A convolution and a normalisation whose mean is huge beside what is summed."""
    weight = net.floats(4, 3, 3, 3, size=1e-2)
    net.add("Conv", (1, 4, 6, 6), constants={"weight": weight}, pads=(1, 1, 1, 1), strides=(1, 1), dilations=(1, 1), group=1)
    offset, terms = net.floats(4, 1, 1, size=10), np.full((4, 1, 1), 100.0)
    net.add("Scale", (1, 4, 6, 6), constants={"scale": net.floats(4, 1, 1), "offset": offset, "terms": np.maximum(abs(offset), terms)})
    net.add("Relu", (1, 4, 6, 6))
    net.add("AveragePool", (1, 4, 3, 3), kernel_shape=(3, 3), strides=(2, 2), dilations=(1, 1), pads=(1, 1, 1, 1), ceil_mode=0, count_include_pad=0)
    net.add("ReduceMean", (1, 4, 1, 1), axes=(2, 3))
    net.add("Reshape", (1, 4))
    net.linear(2)
    return net.graph()


def moved(net: Net) -> Graph:
    """Everything that moves values: errors move with them."""
    a = net.linear(8, scale=30.0)
    b = net.add("Reshape", (1, 2, 4), a)
    b = net.add("Transpose", (1, 4, 2), b, perm=(0, 2, 1))
    b = net.add("Pad", (1, 5, 3), b, pads=(0, 1, 0, 0, 0, 1), value=0.5)
    b = net.add("Slice", (1, 3, 3), b, axes=(1,), starts=(4,), ends=(-6,), steps=(-2,))
    b = net.add("Gather", (1, 3, 2), b, constants={"indices": np.array([2, 1])}, axis=2)
    c = net.add("Expand", (1, 3, 2), net.add("Reshape", (1, 1, 2), net.linear(2, a)))
    b = net.add("Concat", (1, 6, 2), b, c, axis=1)
    net.add("LeftMatMul", (1, 3, 2), b, constants={"weight": net.floats(3, 6)})
    net.add("ReduceSum", (1, 3), axes=(2,))
    net.linear(2)
    return net.graph()


def pooled(net: Net) -> Graph:
    net.add("ConvTranspose", (1, 2, 6, 6), constants={"weight": net.floats(1, 2, 4, 4)}, pads=(1, 1, 1, 1), strides=(2, 2), dilations=(1, 1), group=1)
    net.add("MaxPool", (1, 2, 3, 3), kernel_shape=(2, 2), strides=(2, 2), dilations=(1, 1), pads=(0, 0, 0, 0), ceil_mode=0)
    net.add("Reshape", (1, 18))
    net.linear(2)
    return net.graph()


def product(net: Net) -> Graph:
    a = net.linear(5, scale=3.0)
    b = net.linear(5, "x", scale=3.0)
    net.add("Mul", (1, 5), a, b)
    net.linear(2)
    return net.graph()


NETS: dict[str, tuple[tuple[int, ...], Callable[[Net], Graph]]] = {
    "relu": ((1, 7), lambda net: layers(net, ("Relu", {}))),
    "clip": ((1, 7), lambda net: layers(net, ("Clip", {"lower": -1.0, "upper": 0.75}))),
    "leaky": ((1, 7), lambda net: layers(net, ("LeakyRelu", {"slope": 0.125}))),
    "sigmoid": ((1, 7), lambda net: layers(net, ("Sigmoid", {}))),
    "tanh": ((1, 7), lambda net: layers(net, ("Tanh", {}))),
    "dead": ((1, 3), dead_and_active), "residual": ((1, 7), residual), "normalised": ((1, 3, 6, 6), normalised), "moved": ((1, 7), moved),
    "pooled": ((1, 1, 3, 3), pooled), "product": ((1, 4), product),
}
MAKE = [(name, seed) for name in NETS for seed in range(3)]


def gamma(k: int | Tensor) -> float | Tensor:
    return (k + 8) * COARSE.u / (1 - (k + 8) * COARSE.u)


def _count(node: Node, given: list[Tensor]) -> int:
    """How many products an output sums."""
    c = node.constants
    if node.op in ("Linear", "LeftMatMul"):
        return c["weight"].shape[1]
    if node.op in ("Conv", "ConvTranspose"):
        return prod(c["weight"].shape) // c["weight"].shape[node.op == "ConvTranspose"]
    if node.op in ("AveragePool", "ReduceMean", "ReduceSum"):
        return prod(node.attributes["kernel_shape"]) if node.op == "AveragePool" else given[0].numel() // prod(node.shape)
    return int(node.op in ("Scale", "Add", "Sub", "Mul", "LeakyRelu"))


def _rounded(node: Node, given: list[Tensor]) -> int | Tensor:
    """How many of an output's products are not zero: only these are rounded."""
    count, there = _count(node, given), [(value != 0).double() for value in given]
    if "weight" in node.constants:
        return rule_for(node).forward(replace(node, constants={"weight": (node.constants["weight"] != 0).double()}), *there)
    if node.op in ("ReduceMean", "ReduceSum"):
        return there[0].sum([axis + 1 for axis in node.attributes["axes"]]).reshape(1, *node.shape)
    if node.op == "AveragePool":
        a = node.attributes
        return torch.nn.functional.avg_pool2d(there[0][0], a["kernel_shape"], a["strides"], a["pads"][:2], bool(a["ceil_mode"]), True, 1)[None]
    return count


def _room(node: Node, given: list[Tensor], summed: dict[str, int]) -> Tensor | float:
    """What a runtime may be off by at one node; `summed`: products in the sums that its inputs are."""
    if node.op in ("Sigmoid", "Tanh"):
        return COARSE.transcendental
    k = _count(node, given)
    if not k:
        return 0.0
    if node.op == "LeakyRelu":
        return gamma(1) * abs(node.attributes["slope"]) * given[0].abs()
    constants = {key: value.abs() for key, value in node.constants.items()}
    if "terms" in constants:
        constants["offset"] = constants["terms"]
    sizes = replace(node, op="Add" if node.op == "Sub" else node.op, constants=constants)
    room = gamma(_rounded(node, given)) * rule_for(sizes).forward(sizes, *(value.abs() for value in given))
    counts = [summed.get(name, 0) for name in node.inputs]
    if node.op == "Scale" and counts[0]:
        room = room + gamma(counts[0]) * constants["offset"]
    if node.op in ("Add", "Sub"):
        room = room + sum(gamma(count) * other.abs() for count, other in zip(counts, reversed(given)) if count)
    summed[node.name] = max(counts) + 1 if node.op in ("Scale", "Add", "Sub") else k
    return room


def run(graph: Graph, x: Tensor, signs: dict[str, Tensor] | None, direction: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """direction @ y as a runtime computes it that errs by all it may with the given signs, and the signs that lower it (to first order)."""
    values, errors, summed = {graph.input.name: x}, {}, {}
    for node in graph.nodes[1:]:
        given = [values[name] for name in node.inputs]
        error = torch.zeros((1, *node.shape), dtype=x.dtype, requires_grad=True)
        room = _room(node, [value.detach() for value in given], summed)
        errors[node.name] = error
        values[node.name] = rule_for(node).forward(node, *given) + error + (0.0 if signs is None else signs[node.name] * room)
    result = (direction * values[graph.output].reshape(-1)).sum()
    gradients = torch.autograd.grad(result, list(errors.values()), allow_unused=True)
    return result.detach(), {name: -torch.sign(torch.zeros(()) if g is None else g) for name, g in zip(errors, gradients)}


def least(graph: Graph, x: np.ndarray, direction: np.ndarray) -> float:
    """The least value found that a runtime may compute of direction @ y at x."""
    graph, point, way = graph.to("cpu", torch.float64), torch.tensor(x).reshape(1, *graph.input_shape), torch.tensor(direction)
    _, signs = run(graph, point, None, way)
    found = []
    for _ in range(3):  # what errors change, the gradient changes with
        value, signs = run(graph, point, signs, way)
        found.append(float(value))
    return min(found)


def problem_of(graph: Graph, box: tuple[np.ndarray, np.ndarray], direction: np.ndarray, arithmetic: Any, runtime: Runtime | None) -> Problem:
    n_in, row = prod(graph.input_shape), direction[None]
    return reduce.reduce(graph, Statement(*box, row, np.zeros((1, n_in)), np.zeros(1), {}, frozenset()), arithmetic, runtime)


def shortfall(name: str, seed: int, radius: float) -> float:
    """How far the proved bound lies above what a runtime may compute, in units of what the errors make of it; positive is wrong."""
    shape, make = NETS[name]
    graph, random = make(Net.of(shape, seed)), np.random.default_rng(seed)
    center = random.normal(size=prod(shape))
    if name == "dead":
        center[1] = center[0]
    worst = -np.inf
    for direction in (np.eye(2, prod(graph.output_shape))[0], random.choice([-1.0, 1.0], prod(graph.output_shape))):
        problem = problem_of(graph, (center - radius, center + radius), direction, Rounded(), COARSE)
        proved = float(bound(problem, problem.rows, problem.lower, problem.upper)[0])
        for _ in range(1 if radius == 0 else 5):
            x = center + random.uniform(-radius, radius, len(center))
            exact = float(run(graph.to("cpu", torch.float64), torch.tensor(x).reshape(1, *shape), None, torch.tensor(direction))[0])
            below = least(graph, x, direction)
            worst = max(worst, (proved - below) / (exact - below + 1e-12))
    return worst


@pytest.mark.parametrize("radius", [0.0, 0.02])
@pytest.mark.parametrize(("name", "seed"), MAKE)
def test_no_runtime_computes_less_than_is_proved(name: str, seed: int, radius: float) -> None:
    assert shortfall(name, seed, radius) <= 1e-6


@pytest.mark.parametrize("name", [name for name in NETS if name not in ("sigmoid", "tanh")])
def test_rationals_lie_within_the_slack(name: str) -> None:
    """At one point the rows are numbers: that of the rationals differs from float64's by no more than its slack, and by something."""
    shape, make = NETS[name]
    graph = make(Net.of(shape, 0))
    point = np.random.default_rng(0).normal(size=prod(shape))
    for runtime in (None, COARSE):
        rounded, exact = (problem_of(graph, (point, point), np.ones(prod(graph.output_shape)), kind, runtime).rows for kind in (Rounded(), Exact()))
        if rounded.w.shape == exact.w.shape and not rounded.w.size:
            room = (rounded.slack - exact.slack).astype(float) + abs(rounded.a).sum(1) - abs(exact.a).sum(1).astype(float)
            assert (abs(Exact().array(rounded.b) - exact.b).astype(float) <= room + 1e-30).all()


# The accounting with one line dropped. Each names a network that must then be proved wrongly.


def no_rounding(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reduce._Builder, "computed", lambda self, value, k, terms: value)


def nonzero_terms_uncounted(patch: pytest.MonkeyPatch) -> None:
    right = affine.Affine.terms
    patch.setattr(affine.Affine, "terms", lambda self, inputs: right(self, inputs) // 2)


def nothing_fused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(affine.Fused, "room", lambda self, own, most, shift, largest: None)


def not_carried(patch: pytest.MonkeyPatch) -> None:
    right, parts = affine.Affine.absolute, np.array([0.0, 1, 1])  # of an error, a size and a most

    def absolute(self: affine.Affine, inputs: list[np.ndarray]) -> np.ndarray:
        found = right(self, inputs)
        return found * parts.reshape(-1, *(1,) * len(self.node.shape)) if len(inputs[0]) == 3 else found

    patch.setattr(affine.Affine, "absolute", absolute)


def values_without_errors(patch: pytest.MonkeyPatch) -> None:
    """`most` of the exact value: the next layer's rounding is relative to what a runtime has."""
    patch.setattr(reduce._Builder, "off", lambda self, value, room: value._replace(error=value.error + room, most=abs(value.columns).sum(0)))


def activations_without_errors(patch: pytest.MonkeyPatch) -> None:
    right = reduce._Builder.activate
    patch.setattr(reduce._Builder, "activate", lambda self, value, kind, node: (v := right(self, value, kind, node))._replace(error=0 * v.error))


def neurons_without_errors(patch: pytest.MonkeyPatch) -> None:
    right = Problem.appended
    patch.setattr(Problem, "appended", lambda self, rows, *rest: right(self, replace(rows, slack=0 * rows.slack), *rest))


def rows_without_errors(patch: pytest.MonkeyPatch) -> None:
    right = reduce._Builder.finish
    patch.setattr(reduce._Builder, "finish", lambda self, *v: (p := right(self, *v)) and replace(p, rows=replace(p.rows, slack=0 * p.rows.slack)))


def exact_smooth(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(reduce._NONLINEAR, "Tanh", lambda builder, node, inputs: builder.activate(inputs[0], "tanh", node))


def factors_of_errors(patch: pytest.MonkeyPatch) -> None:
    """Sums of values whose factors are left out for the errors."""
    right = reduce._Builder.combined

    def combined(self: Any, *parts: Any, shift: Any = 0.0) -> Any:
        return (v := right(self, *parts, shift=shift))._replace(error=0 * v.error + parts[-1][1].error)

    patch.setattr(reduce._Builder, "combined", combined)


SABOTAGE = [
    (nonzero_terms_uncounted, "relu", 0.0), (nonzero_terms_uncounted, "normalised", 0.0), (no_rounding, "relu", 0.0), (no_rounding, "leaky", 0.0),
    (no_rounding, "product", 0.0), (nothing_fused, "residual", 0.0),
    (nothing_fused, "normalised", 0.0), (not_carried, "moved", 0.0), (not_carried, "normalised", 0.0), (not_carried, "residual", 0.0),
    (values_without_errors, "dead", 0.0), (activations_without_errors, "dead", 0.0), (neurons_without_errors, "tanh", 0.0),
    (rows_without_errors, "relu", 0.0), (exact_smooth, "tanh", 0.0), (factors_of_errors, "leaky", 0.0),
]


@pytest.mark.parametrize(("drop", "name", "radius"), SABOTAGE, ids=lambda part: getattr(part, "__name__", str(part)))
def test_each_line_of_the_accounting_is_needed(drop: Callable, name: str, radius: float, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(monkeypatch)
    assert max(shortfall(name, seed, radius) for seed in range(8)) > 1e-3
