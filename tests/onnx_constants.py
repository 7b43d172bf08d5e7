"""Random models of operations that do not depend on the input: what the loader computes at loading is compared on them."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.onnx_fuzz import KNOWN, MAKERS, OPSETS, Draw, Made

N = helper.make_node
# Operations that the loader only ever computes: (opset from which they are there, how a random one is made).
Maker = Callable[[Draw, str], Made]


def _spread(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 4)
    return [N(op, ["x"], ["y"])]


def _positive(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    return [N("Abs", ["x"], ["p"]), N(op, ["p"], ["y"])]


def _alpha(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    return [N(op, ["x"], ["y"], **({"alpha": float(d.random.uniform(0.1, 2))} if d.chance(0.6) else {}))]


def _axis(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 4)
    return [N(op, ["x"], ["y"], **({"axis": d.axis(len(d.shape))} if d.chance(0.8) or len(d.shape) < 2 else {}))]


def _best(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 4)
    more = {"keepdims": d.number(0, 1)} | ({"select_last_index": d.number(0, 1)} if d.opset >= 12 and d.chance(0.5) else {})
    return [N(op, ["x"], ["i"], axis=d.axis(len(d.shape)), **more), N("Cast", ["i"], ["y"], to=1)]


def _compare(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    return [N(op, ["x", d.keep(d.floats(*d.shape[1:]))], ["b"]), N("Cast", ["b"], ["y"], to=1)]


def _logic(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    zero = d.keep(np.float32(0).reshape(1))
    nodes = [N("Greater", ["x", zero], ["a"]), N("Less", ["x", d.keep(d.floats(*d.shape))], ["b"])]
    return [*nodes, N(op, ["a"] if op == "Not" else ["a", "b"], ["c"]), N("Cast", ["c"], ["y"], to=1)]


def _where(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    zero = d.keep(np.float32(0).reshape(1))
    return [N("Greater", ["x", zero], ["a"]), N(op, ["a", "x", d.keep(d.floats(*d.shape[1:]))], ["y"])]


def _cast(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    through = d.choice(TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL, TensorProto.INT8)
    return [N(op, ["x"], ["z"], to=through), N(op, ["z"], ["y"], to=1)]


def _cumsum(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    return [N(op, ["x", d.keep(np.array(d.axis(len(d.shape))))], ["y"], exclusive=d.number(0, 1), reverse=d.number(0, 1))]


def _power(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    return [N("Abs", ["x"], ["p"]), N(op, ["p", d.keep(np.asarray(d.choice(np.float32(0.5), np.float32(2), np.float32(3)))) ], ["y"])]


def _dequantize(d: Draw, op: str) -> Made:
    d.shape = ()
    c, kind = d.number(1, 4), d.choice(np.int8, np.uint8)
    whole = d.random.integers(0, 100, (3, c, 2)).astype(kind)
    by_channel = d.opset >= 13 and d.chance(0.5)
    scale = d.keep(np.abs(d.floats(c)) if by_channel else np.asarray(np.abs(d.floats())))
    zero = d.keep(d.random.integers(0, 50, c).astype(kind) if by_channel else np.asarray(d.number(0, 50), kind))
    return [N(op, [d.keep(whole), scale, *([zero] if d.chance(0.7) else [])], ["y"], **({"axis": 1} if by_channel else {}))]


def _quantize(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    scale, zero = d.keep(np.asarray(np.abs(d.floats()) + np.float32(0.01))), d.keep(np.asarray(d.number(0, 50), np.uint8))
    return [N(op, ["x", scale, zero], ["q"]), N("DequantizeLinear", ["q", scale, zero], ["y"])]


def _layer_norm(d: Draw, op: str) -> Made:
    d.shape = (d.number(1, 3), d.number(1, 3), d.number(2, 5))
    if op == "InstanceNormalization":
        return [N(op, ["x", d.keep(d.floats(d.shape[1])), d.keep(d.floats(d.shape[1]))], ["y"])]
    axis = d.choice(-1, 2, 1)
    shape = d.shape[axis:]
    return [N(op, ["x", d.keep(d.floats(*shape)), d.keep(d.floats(*shape))], ["y"], axis=axis)]


def _blocks(d: Draw, op: str) -> Made:
    d.shape = (1, 4 * d.number(1, 2), 4, 2)
    mode = {"mode": d.choice("DCR", "CRD")} if op == "DepthToSpace" and d.opset >= 11 and d.chance(0.6) else {}
    return [N(op, ["x"], ["y"], blocksize=2, **mode)]


def _one_hot(d: Draw, op: str) -> Made:
    d.shape = ()
    depth = d.number(2, 5)
    indices = d.random.integers(-depth if d.opset >= 11 else 0, depth, d.sizes(1, 2))
    return [N(op, [d.keep(indices), d.keep(np.array(depth)), d.keep(d.floats(2))], ["y"], axis=d.choice(-1, 0))]


def _top(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    axis = d.axis(len(d.shape))
    k = d.number(1, d.shape[axis])
    if d.opset < 10:
        return [N(op, ["x"], ["y", "i"], k=k, axis=axis)]
    return [N(op, ["x", d.keep([k])], ["y", "i"], axis=axis, **({"largest": d.number(0, 1)} if d.opset >= 11 else {}))]


def _triangle(d: Draw, op: str) -> Made:
    d.shape = (*d.sizes(0, 1), *d.numbers(2, 1, 5))
    return [N(op, ["x", *([d.keep(np.array(d.number(-2, 2)))] if d.chance(0.6) else [])], ["y"], upper=d.number(0, 1))]


def _elements(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    axis = d.axis(len(d.shape))
    indices = d.keep(d.random.integers(0, d.shape[axis], d.shape))
    if op == "GatherElements":
        return [N(op, ["x", indices], ["y"], axis=axis)]
    order = np.argsort(d.random.random(d.shape), axis)
    return [N(op, ["x", d.keep(order.astype(np.int64)), d.keep(d.floats(*d.shape))], ["y"], axis=axis)]


def _einsum(d: Draw, op: str) -> Made:
    d.shape = (2, 3)
    return [N(op, ["x", d.keep(d.floats(3, 4))], ["y"], equation="ij,jk->ki")]


def _mod(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    return [N(op, ["x", d.keep(np.abs(d.floats(*d.shape)) + np.float32(0.1))], ["y"], fmod=1)]


def _range(d: Draw, op: str) -> Made:
    d.shape = ()
    start, step = d.floats(), np.asarray(d.choice(np.float32(0.3), np.float32(-0.25)))
    return [N(op, [d.keep(start), d.keep(np.asarray(start + np.float32(2.1) * np.sign(step), np.float32)), d.keep(step)], ["y"])]


def _filled(d: Draw, op: str) -> Made:
    d.shape = ()
    value = {"value": numpy_helper.from_array(d.floats(1))} if d.chance(0.7) else {}
    return [N(op, [d.keep(list(d.sizes(0, 3)))], ["y"], **value)]


def _pad(d: Draw, op: str) -> Made:
    d.shape = tuple(d.numbers(d.number(1, 3), 3, 6))
    pads, mode = d.numbers(2 * len(d.shape), 0, 2), d.choice("edge", "reflect", "constant")
    return [N(op, ["x"], ["y"], pads=pads, mode=mode)] if d.opset < 11 else [N(op, ["x", d.keep(pads)], ["y"], mode=mode)]


def _reduced(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 4)
    axes = d.random.permutation(len(d.shape))[:d.number(1, len(d.shape))].tolist()
    keep = {"keepdims": d.number(0, 1)}
    return [N(op, ["x"], ["y"], axes=axes, **keep)] if d.opset < 18 else [N(op, ["x", d.keep(axes)], ["y"], **keep)]


ONLY: dict[str, tuple[int, Maker]] = {
    **dict.fromkeys(("Exp", "Floor", "Ceil", "Softplus", "Softsign", "Selu", "Sin", "Cos", "Atan"), (7, _spread)),
    **dict.fromkeys(("Erf", "Sign", "Sinh"), (9, _spread)), "Round": (11, _spread), "Gelu": (20, _spread), "Mish": (18, _spread),
    "Sqrt": (7, _positive), "Log": (7, _positive), "Reciprocal": (7, _positive), "Elu": (7, _alpha), "ThresholdedRelu": (10, _alpha),
    "Celu": (12, _alpha),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), (7, _axis)), "LpNormalization": (7, _axis),
    "ArgMax": (7, _best), "ArgMin": (7, _best), "Greater": (9, _compare), "Less": (9, _compare), "Equal": (11, _compare),
    "GreaterOrEqual": (12, _compare), "LessOrEqual": (12, _compare), **dict.fromkeys(("And", "Or", "Xor", "Not"), (9, _logic)), "Where": (9, _where),
    "Cast": (9, _cast), "CumSum": (11, _cumsum), "Pow": (7, _power), "DequantizeLinear": (10, _dequantize), "QuantizeLinear": (10, _quantize),
    "LayerNormalization": (17, _layer_norm), "InstanceNormalization": (7, _layer_norm), "DepthToSpace": (7, _blocks), "SpaceToDepth": (7, _blocks),
    "OneHot": (9, _one_hot), "TopK": (7, _top), "Trilu": (14, _triangle), "GatherElements": (11, _elements), "ScatterElements": (11, _elements),
    "Einsum": (12, _einsum), "Mod": (10, _mod), "Range": (11, _range), "ConstantOfShape": (9, _filled), "Pad": (7, _pad),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
                     "ReduceLogSum", "ReduceLogSumExp"), (7, _reduced)),
}
NAMES = tuple(sorted({*ONLY, *MAKERS}))


def constant_model(op: str, random: np.random.Generator) -> tuple[ModelProto, Draw]:
    """out = x + y for a random y of the constants of one operation; x has one value."""
    both = op in ONLY and op in MAKERS
    from_only = op in ONLY and (not both or random.random() < 0.5)
    first, last = (ONLY[op][0], 99) if from_only else KNOWN.get(op, (7, 99))
    d = Draw(random, int(random.choice([o for o in OPSETS if first <= o <= last])))
    nodes = (ONLY[op][1] if from_only else MAKERS[op])(d, op)
    values = {**d.constants, "x": np.asarray(3 * random.standard_normal(d.shape), np.float32)}
    tail = [N("Identity", ["y"], ["y1"]), N("Add", ["input", "y1"], ["out"])]
    kinds = [helper.make_tensor_value_info("input", TensorProto.FLOAT, (1,)), helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    graph = helper.make_graph([*nodes, *tail], "constant", kinds[:1], kinds[1:], [numpy_helper.from_array(v, k) for k, v in values.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", d.opset)], ir_version=8), d
