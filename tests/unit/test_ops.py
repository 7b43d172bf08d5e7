"""Rules of operations: semantics, linear parts, adjoints, intervals and planes, each against a slow or independent way to the same value."""
from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from tests.cases import GRAPHS, Builder
from tests.tolerances import EXACT, PLANE_FLOAT32
from verifier.box import Box
from verifier.errors import UnsupportedError
from verifier.graph.ir import Node
from verifier.ops import AffineOp, ElementwiseOp, Rule, register, rule_for
from verifier.ops.conv import Conv

DOUBLE = torch.float64


def conv_nodes() -> list[tuple[Node, tuple[tuple[int, ...], ...]]]:
    """Convolutions in one to three dimensions: strides, dilations, groups, uneven pads, and pads wider than the kernel."""
    rows = []
    settings = itertools.product([1, 2, 3], [1, 2, 3], [1, 2], [1, 2], [(0, 0), (1, 0), (2, 0), (0, 2), (3, 3)])
    for rank, stride, dilation, group, (before, after) in settings:
        size = ((9,), (7, 6), (5, 3, 4))[rank - 1]
        out = tuple((n + before + after - 2 * dilation - 1) // stride + 1 for n in size)
        if min(out) < 1 or (rank == 3 and (stride == 3 or dilation + group > 3 or before == 2)):
            continue
        b = Builder((1, 4, *size), 0)
        constants = {"weight": b.weights(6, 4 // group, *(3,) * rank), "bias": b.weights(6)}
        attributes = {"strides": (stride,) * rank, "dilations": (dilation,) * rank, "group": group, "pads": (before,) * rank + (after,) * rank}
        rows.append((Node("conv", "Conv", ("x",), (1, 6, *out), constants, attributes), ((1, 4, *size),)))
    return rows


def transposed_nodes() -> list[tuple[Node, tuple[tuple[int, ...], ...]]]:
    rows = []
    for rank, stride, group, pads, more in itertools.product([1, 2], [1, 2, 3], [1, 2], [(0, 0), (1, 0), (2, 0), (1, 2)], [0, 1]):
        if more >= stride:
            continue
        size = (4, 3)[:rank]
        out = tuple((n - 1) * stride + 3 - sum(pads) + more for n in size)
        b = Builder((1, 4, *size), 0)
        constants = {"weight": b.weights(4, 6 // group, *(3,) * rank), "bias": b.weights(6)}
        attributes = {"strides": (stride,) * rank, "dilations": (1,) * rank, "group": group, "output_padding": (more,) * rank,
                      "pads": (pads[0],) * rank + (pads[1],) * rank}
        rows.append((Node("up", "ConvTranspose", ("x",), (1, 6, *out), constants, attributes), ((1, 4, *size),)))
    return rows


def pool_nodes(op: str) -> list[tuple[Node, tuple[tuple[int, ...], ...]]]:
    """Windows over (8, 9) with every mixture of strides, dilations, pads, ceil_mode and counted pads; sizes as onnxruntime has them."""
    rows = []
    pads = [(0, 0, 0, 0), (1, 0, 1, 1), (0, 1, 1, 0), (1, 1, 1, 1)]
    for ceil, counted, pad, stride, dilation in itertools.product([0, 1], [0, 1], pads, [(1, 1), (2, 2), (2, 3)], [(1, 1), (2, 1)]):
        attributes: dict[str, Any] = {"kernel_shape": (3, 2), "strides": stride, "pads": pad, "ceil_mode": ceil, "dilations": dilation}
        if op == "AveragePool":
            attributes["count_include_pad"] = counted
        elif counted:
            continue
        shape = onnxruntime_value(op, attributes, np.zeros((1, 2, 8, 9), np.float32)).shape
        rows.append((Node("pool", op, ("x",), shape, {}, attributes), ((1, 2, 8, 9),)))
    return rows


def onnxruntime_value(op: str, attributes: dict[str, Any], x: np.ndarray) -> np.ndarray:
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    model = helper.make_model(helper.make_graph([node], "one", *ends), opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its shape inference and its kernels disagree about the last window of ceil_mode; the kernels count
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


def graph_nodes() -> list[tuple[Node, tuple[tuple[int, ...], ...]]]:
    """Every affine node of the table of small graphs."""
    rows = []
    for graph in GRAPHS.values():
        shapes = {n.name: n.shape for n in graph.nodes}
        rows += [(n, tuple(shapes[i] for i in n.inputs)) for n in graph.nodes[1:] if isinstance(rule_for(n), AffineOp)]
    return rows


def more_nodes() -> list[tuple[Node, tuple[tuple[int, ...], ...]]]:
    weights = Builder((1,), 5).weights
    return [
        (Node("a", "Add", ("x", "y"), (2, 3, 4), {}), ((3, 1), (2, 1, 4))),
        (Node("s", "Sub", ("x", "y"), (2, 3, 4), {}), ((4,), (2, 3, 4))),
        (Node("s", "Slice", ("x",), (3, 2), {}, {"axes": (0, 1), "starts": (1, 3), "ends": (7, 0), "steps": (2, -2)}), ((7, 4),)),
        (Node("g", "Gather", ("x",), (3,), {"indices": np.array(1)}, {"axis": 1}), ((3, 4),)),
        (Node("g", "Gather", ("x",), (3, 2, 2), {"indices": np.array([[0, -1], [2, 0]])}, {"axis": 1}), ((3, 4),)),
        (Node("p", "Pad", ("x",), (2, 6), {}, {"pads": (-1, 2, 0, 1), "value": -1.5}), ((3, 3),)),
        (Node("c", "Concat", ("x", "y", "x"), (2, 8), {}, {"axis": 1}), ((2, 3), (2, 2), (2, 3))),
        (Node("r", "ReduceSum", ("x",), (3,), {}, {"axes": (0, 2)}), ((2, 3, 4),)),
        (Node("m", "ReduceMean", ("x",), (2, 1, 4), {}, {"axes": (1,)}), ((2, 3, 4),)),
        (Node("e", "Expand", ("x",), (5, 2, 4), {}), ((2, 1),)),
        (Node("l", "Linear", ("x",), (3, 2), {"weight": weights(2, 4)}), ((3, 4),)),
        (Node("w", "LeftMatMul", ("x",), (2, 5, 3), {"weight": weights(5, 4)}), ((2, 4, 3),)),
        (Node("k", "Scale", ("x",), (2, 3), {"scale": weights(3), "offset": weights(2, 1)}), ((2, 3),)),
    ]


AFFINE = [*conv_nodes(), *transposed_nodes(), *pool_nodes("AveragePool"), *graph_nodes(), *more_nodes()]


def ready(node: Node) -> Node:
    """The node with float64 torch constants."""
    constants = {k: torch.as_tensor(v) for k, v in node.constants.items()}
    return Node(node.name, node.op, node.inputs, node.shape, constants, node.attributes)


def draw(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize("row", AFFINE, ids=lambda row: row[0].op)
def test_affine_rules_are_consistent(row: tuple[Node, tuple[tuple[int, ...], ...]]) -> None:
    """forward = linear + shift; the adjoint is linear's own; intervals are those of the matrix pushed out column by column."""
    node, shapes = ready(row[0]), row[1]
    rule = rule_for(node)
    inputs = [draw((3, *shape), k) for k, shape in enumerate(shapes)]
    value = rule.forward(node, *inputs)
    assert value.shape == (3, *node.shape)
    assert torch.allclose(rule.linear(node, *inputs), AffineOp.linear(rule, node, *inputs), atol=EXACT)
    shift = rule.shift(node, inputs[0], shapes)
    assert torch.allclose(value - rule.linear(node, *inputs), torch.zeros(()).double() if shift is None else shift, atol=EXACT)
    coeff = draw((2, *node.shape), 9)
    for ours, own in zip(rule.adjoint(node, coeff, shapes), AffineOp.adjoint(rule, node, coeff, shapes), strict=True):
        assert torch.allclose(ours, own, atol=EXACT)
    boxes = [Box(x, x + draw(tuple(x.shape), 7).abs()) for x in inputs]
    ours, slow = rule.interval(node, *boxes), AffineOp.interval(rule, node, *boxes)
    assert torch.allclose(ours.lower, slow.lower, atol=EXACT)
    assert torch.allclose(ours.upper, slow.upper, atol=EXACT)


@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
def test_pools_count_windows_as_onnxruntime_does(op: str) -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, 8, 9)).astype(np.float32)
    for node, _ in pool_nodes(op):
        ours = rule_for(node).forward(node, torch.tensor(x)[None])[0].numpy()
        np.testing.assert_allclose(ours, onnxruntime_value(op, dict(node.attributes), x), atol=1e-6, err_msg=str(node.attributes))


ACTIVATIONS = [
    ("Relu", {}), ("LeakyRelu", {"slope": 0.1}), ("LeakyRelu", {"slope": -0.5}), ("LeakyRelu", {"slope": 2.0}),
    ("Clip", {"lower": -0.5, "upper": 1.0}), ("Clip", {"lower": 0.0, "upper": float("inf")}), ("Clip", {"lower": -float("inf"), "upper": 0.3}),
    ("Sigmoid", {}), ("Tanh", {}),
]


def activation(op: str, attributes: dict[str, float]) -> tuple[Node, ElementwiseOp]:
    node = Node("a", op, ("x",), (400,), {}, attributes)
    rule = rule_for(node)
    assert isinstance(rule, ElementwiseOp)
    return node, rule


def intervals(width: float, dtype: torch.dtype) -> Box:
    """400 intervals of about this width around about three, the first a point."""
    random = torch.Generator().manual_seed(1)
    center = torch.randn(400, generator=random, dtype=DOUBLE) * 3 * min(width, 10) ** 0.5
    sides = torch.rand(2, 400, generator=random, dtype=DOUBLE) * width
    lower, upper = (center - sides[0]).to(dtype), (center + sides[1]).to(dtype)
    return Box(torch.cat([upper[:1], lower[1:]]), upper)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float32", "float64"])
@pytest.mark.parametrize(("op", "attributes"), ACTIVATIONS)
def test_planes_and_intervals_hold_on_a_dense_grid(op: str, attributes: dict[str, float], dtype: torch.dtype) -> None:
    """For every alpha. The S-shaped ones hold in float32 as they stand, the piecewise linear ones to an ulp."""
    node, rule = activation(op, attributes)
    slack = 0.0 if op in ("Sigmoid", "Tanh") else PLANE_FLOAT32 if dtype == torch.float32 else EXACT
    for width in (1e-9, 1e-3, 0.3, 3.0, 30.0, 1e4, 1e6):
        box = intervals(width, dtype)
        share = torch.linspace(0, 1, 201, dtype=DOUBLE)[:, None]
        x = torch.minimum(torch.maximum(box.lower + share * (box.upper.double() - box.lower), box.lower.double()), box.upper.double())
        y, room = rule.forward(node, x), slack * (1 + x.abs())
        image = rule.interval(node, box)
        assert (y >= image.lower - PLANE_FLOAT32 * (1 + x.abs())).all()
        assert (y <= image.upper + PLANE_FLOAT32 * (1 + x.abs())).all()
        for alpha in (None, 0.0, 0.3, 1.0):
            planes = rule.relax(node, box, None if alpha is None else torch.full_like(box.lower, alpha))
            assert (planes.lower_slope.double() * x + planes.lower_offset.double() <= y + room).all()
            assert (planes.upper_slope.double() * x + planes.upper_offset.double() >= y - room).all()


@pytest.mark.parametrize(("op", "attributes"), ACTIVATIONS)
def test_planes_touch_and_stable_neurons_are_exact(op: str, attributes: dict[str, float]) -> None:
    """Each plane meets the function somewhere; where no coordinate is unstable the two planes are the function."""
    node, rule = activation(op, attributes)
    box = intervals(3.0, DOUBLE)
    x = box.lower + torch.linspace(0, 1, 2001, dtype=DOUBLE)[:, None] * (box.upper - box.lower)
    planes, y = rule.relax(node, box), rule.forward(node, x)
    below, above = planes.lower_slope * x + planes.lower_offset, planes.upper_slope * x + planes.upper_offset
    assert float((y - below).amin(0).max()) < 1e-5
    assert float((above - y).amin(0).max()) < 1e-5
    stable = ~rule.unstable(node, box)[0]
    assert torch.allclose(below[:, stable], y[:, stable], atol=EXACT)
    assert torch.allclose(above[:, stable], y[:, stable], atol=EXACT)


@pytest.mark.parametrize(("op", "attributes"), ACTIVATIONS)
def test_the_start_gives_the_adaptive_planes(op: str, attributes: dict[str, float]) -> None:
    node, rule = activation(op, attributes)
    box = intervals(3.0, DOUBLE)
    adaptive, started = rule.relax(node, box), rule.relax(node, box, rule.start(node, box))
    for name in ("lower_slope", "lower_offset", "upper_slope", "upper_offset"):
        assert torch.allclose(getattr(adaptive, name), getattr(started, name), atol=EXACT)


def test_relu_planes_are_those_of_the_paper() -> None:
    node, rule = activation("Relu", {})
    planes = rule.relax(node, Box(torch.tensor([-2.0, -1.0, 1.0, -3.0, -1.0]), torch.tensor([1.0, 3.0, 2.0, -1.0, 1.0])))
    assert planes.lower_slope.tolist() == [0, 1, 1, 0, 0]
    assert planes.upper_slope.tolist() == pytest.approx([1 / 3, 0.75, 1, 0, 0.5])
    assert planes.upper_offset.tolist() == pytest.approx([2 / 3, 0.75, 0, 0, 0.5])


def test_products_lie_between_mccormicks_planes() -> None:
    node = Node("m", "Mul", ("x", "y"), (4, 5), {})
    left = Box(draw((2, 4, 1), 0), draw((2, 4, 1), 0) + draw((2, 4, 1), 1).abs())
    right = Box(draw((2, 5), 2), draw((2, 5), 2) + draw((2, 5), 3).abs())
    rule = rule_for(node)
    image = rule.interval(node, left, right)
    for alpha in (None, torch.zeros(()).double(), torch.full((), 0.3).double(), (torch.zeros(()).double(), torch.ones(()).double())):
        planes = rule.relax(node, left, right, alpha)
        for s, t in itertools.product(torch.linspace(0, 1, 7), repeat=2):
            x, y = left.lower + s * (left.upper - left.lower), (right.lower + t * (right.upper - right.lower))[:, None]
            assert (planes.lower_left * x + planes.lower_right * y + planes.lower_offset <= x * y + EXACT).all()
            assert (planes.upper_left * x + planes.upper_right * y + planes.upper_offset >= x * y - EXACT).all()
            assert (image.lower - EXACT <= x * y).all()
            assert (x * y <= image.upper + EXACT).all()


def test_a_maximum_lies_between_its_planes_and_dominance_is_exact() -> None:
    node, _ = next(row for row in pool_nodes("MaxPool") if row[0].attributes["pads"] == (1, 0, 1, 1))
    rule = rule_for(node)
    lower = draw((2, 1, 2, 8, 9), 0)
    box = Box(lower, lower + 0.5 * draw((2, 1, 2, 8, 9), 1).abs())
    planes, undecided = rule.relax(node, box), rule.unstable(node, box)[0]
    assert planes.exact.any()
    assert not planes.exact.all()
    for seed in range(20):
        x = box.lower + torch.rand(box.lower.shape, generator=torch.Generator().manual_seed(seed)) * (box.upper - box.lower)
        value, chosen = rule.forward(node, x), x.flatten(1).gather(1, planes.index.flatten(1)).reshape(planes.index.shape)
        assert (chosen <= value).all()
        assert torch.equal(chosen[planes.exact], value[planes.exact])
        assert (value <= torch.where(planes.exact, chosen, planes.upper_offset)).all()
        moved = torch.where(undecided, x, box.lower)  # what can decide nothing moves nothing in undecided windows
        assert torch.equal(rule.forward(node, moved)[~planes.exact], value[~planes.exact])


def test_a_rule_needs_only_its_forward() -> None:
    """An affine operation defined by `forward` alone has linear part, shift, adjoint and interval."""

    class Half(AffineOp):
        def forward(self, node: Node, *inputs: torch.Tensor) -> torch.Tensor:
            return 1 - inputs[0].flip(-1) / 2

    node, rule = Node("h", "Half", ("x",), (2, 3), {}), Half()
    x, coeff = draw((4, 2, 3), 0), draw((5, 2, 3), 1)
    assert torch.allclose(rule.linear(node, x), -x.flip(-1) / 2)
    assert torch.allclose(rule.shift(node, x, ((2, 3),)), torch.ones(1, 2, 3).double())
    assert torch.allclose(rule.adjoint(node, coeff, ((2, 3),))[0], -coeff.flip(-1) / 2)
    image = rule.interval(node, Box(x, x + 1))
    assert torch.allclose(image.lower, 1 - (x + 1).flip(-1) / 2)
    assert torch.allclose(image.upper, 1 - x.flip(-1) / 2)


def test_an_unknown_operation_and_a_second_rule_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"'odd' has operation 'Erf'.*@register"):
        rule_for(Node("odd", "Erf", ("x",), (1,)))
    with pytest.raises(ValueError, match="two rules"):
        register("Conv")(Rule)
    assert isinstance(rule_for(Node("c", "Conv", ("x",), (1,))), Conv)
