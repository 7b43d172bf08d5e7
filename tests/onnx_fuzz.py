"""Random models of one operation that depends on the input, with every attribute and form that ONNX knows of it: what the loader is compared on."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, helper

OPSETS = (7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)


@dataclass(slots=True)
class Draw:
    """One model as it is drawn: nodes from x to y, constants by name."""

    random: np.random.Generator
    opset: int
    shape: tuple[int, ...] = ()
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def number(self, low: int, high: int) -> int:
        """An integer of [low, high]."""
        return int(self.random.integers(low, high + 1))

    def numbers(self, count: int, low: int, high: int) -> list[int]:
        return [self.number(low, high) for _ in range(count)]

    def choice(self, *options: object) -> object:
        return options[self.number(0, len(options) - 1)]

    def axis(self, rank: int, negative_from: int = 11) -> int:
        """An axis of a value of that rank, negative ones from some opset on."""
        axis = self.number(0, rank - 1)
        return axis - rank if self.opset >= negative_from and self.chance(0.5) else axis

    def sizes(self, low: int, high: int) -> tuple[int, ...]:
        return tuple(self.numbers(self.number(low, high), 1, 5))

    def floats(self, *shape: int, size: float = 1.0) -> np.ndarray:
        return np.asarray(size * self.random.standard_normal(shape), np.float32)

    def keep(self, value: np.ndarray | list | float, kind: type = np.int64) -> str:
        """A new constant; its name."""
        name = f"c{len(self.constants)}"
        self.constants[name] = value if isinstance(value, np.ndarray) else np.array(value, kind)
        return name

    def broadcastable(self) -> np.ndarray:
        """Floats of a shape that broadcasts with x's, perhaps beyond it."""
        kept = self.shape[self.number(0, len(self.shape)):]
        shape = tuple(1 if self.chance(0.3) else size for size in kept)
        if len(kept) == len(self.shape) and self.chance(0.3):
            shape = tuple(self.numbers(self.number(1, 2), 1, 3)) + shape
        return self.floats(*shape)


Made = list[NodeProto]
N = helper.make_node


def pair(d: Draw, op: str) -> Made:
    """x with a constant on either side, or with a function of itself."""
    d.shape = d.sizes(0, 4)
    if d.chance(0.2):
        return [N("Neg", ["x"], ["n"]), N(op, ["x", "n"] if d.chance(0.5) else ["n", "x"], ["y"])]
    c = d.keep(np.abs(d.broadcastable()) + np.float32(0.5) if op == "Div" else d.broadcastable())
    return [N(op, [c, "x"] if op != "Div" and d.chance(0.5) else ["x", c], ["y"])]


def several(d: Draw, op: str) -> Made:
    """Sum, Mean, Max, Min of up to four."""
    d.shape = d.sizes(0, 3)
    names = ["x", *(d.keep(d.broadcastable()) for _ in range(d.number(0, 2))), *(["n"] if d.chance(0.5) else [])]
    d.random.shuffle(names)
    return [N("Neg", ["x"], ["n"]), N(op, names, ["y"])]


def alone(d: Draw, op: str) -> Made:
    d.shape = d.sizes(0, 4)
    given = {"LeakyRelu": {"alpha": float(d.random.uniform(-2, 3))}, "HardSigmoid": {"alpha": float(d.random.uniform(0, 1)), "beta": 0.3}}
    attributes = given.get(op, {}) if d.chance(0.7) else {}
    return [N(op, ["x"], ["y"], **attributes)]


def clip(d: Draw, op: str) -> Made:
    d.shape = d.sizes(0, 3)
    low, high = np.sort(d.floats(2))
    with_low, with_high = d.chance(0.6), d.chance(0.6)
    if d.opset < 11:
        return [N(op, ["x"], ["y"], **({"min": float(low)} if with_low else {}), **({"max": float(high)} if with_high else {}))]
    names = ["x", d.keep(np.array(low)) if with_low else "", *([d.keep(np.array(high))] if with_high else [])]
    return [N(op, names, ["y"])]


def prelu(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 4)
    slope = tuple(1 if d.chance(0.4) else size for size in d.shape[d.number(0, len(d.shape)):])
    return [N(op, ["x", d.keep(d.floats(*slope))], ["y"])]


def power(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    exponent = d.choice(np.float32(2), np.full(d.shape[-1:], 2, np.float32), np.float32(1))
    return [N(op, ["x", d.keep(np.asarray(exponent))], ["y"])]


def gemm(d: Draw, op: str) -> Made:
    m, k, n = d.numbers(3, 1, 5)
    trans = {"transA": d.number(0, 1), "transB": d.number(0, 1)}
    a, b = (k, m) if trans["transA"] else (m, k), (n, k) if trans["transB"] else (k, n)
    c = d.choice((n,), (1, n), (m, n), (m, 1), (1,), (), (1, 1))
    attributes = {key: value for key, value in trans.items() if value or d.chance(0.3)}
    attributes |= {key: float(d.random.uniform(-2, 2)) for key in ("alpha", "beta") if d.chance(0.5)}
    left = d.chance(0.3)
    d.shape = b if left else a
    other = d.keep(d.floats(*(a if left else b)))
    bias = [d.keep(d.floats(*c))] if d.opset < 11 or d.chance(0.8) else []
    return [N(op, [other, "x", *bias] if left else ["x", other, *bias], ["y"], **attributes)]


def matmul(d: Draw, op: str) -> Made:
    m, k, n = d.numbers(3, 1, 4)
    batch = d.sizes(0, 2)
    a = d.choice((k,), (m, k), (*batch, m, k))
    b = d.choice((k,), (k, n), (*(1 if d.chance(0.3) else size for size in batch), k, n))
    left = d.chance(0.4)
    d.shape = b if left else a
    if a == b and d.chance(0.5):
        return [N("Neg", ["x"], ["n"]), N(op, ["x", "n"], ["y"])]
    other = d.keep(d.floats(*(a if left else b)))
    return [N(op, [other, "x"] if left else ["x", other], ["y"])]


def norm(d: Draw, op: str) -> Made:
    d.shape = (1, d.number(1, 4), *d.sizes(0, 3))
    c = d.shape[1]
    names = [d.keep(d.floats(c)), d.keep(d.floats(c)), d.keep(d.floats(c)), d.keep(np.abs(d.floats(c)) + np.float32(0.1))]
    return [N(op, ["x", *names], ["y"], **({"epsilon": float(10.0 ** -d.number(1, 7))} if d.chance(0.6) else {}))]


def window(d: Draw, n: int, pooled: bool) -> dict[str, object]:
    """Strides, dilations and pads of n axes, each perhaps left out."""
    found: dict[str, object] = {}
    if d.chance(0.6):
        found["strides"] = d.numbers(n, 1, 3)
    if d.chance(0.4) and (not pooled or d.opset >= 10):
        found["dilations"] = d.numbers(n, 1, 2)
    mode = d.choice("NOTSET", "NOTSET", "none", "VALID", "SAME_UPPER", "SAME_LOWER")
    if mode != "none":
        found["auto_pad"] = mode
    if mode in ("none", "NOTSET") and d.chance(0.7):
        found["pads"] = d.numbers(2 * n, 0, 2)
    return found


def conv(d: Draw, op: str) -> Made:
    n, group = d.number(1, 3), d.number(1, 3)
    kernel = d.numbers(n, 1, 3)
    inner, outer = d.number(1, 2), d.number(1, 2)
    d.shape = (1, inner * group, *d.numbers(n, 3, 7))
    weight = (outer * group, inner, *kernel) if op == "Conv" else (inner * group, outer, *kernel)
    attributes = window(d, n, False) | ({"group": group} if group > 1 or d.chance(0.3) else {})
    if d.chance(0.4):
        attributes["kernel_shape"] = kernel
    if op == "ConvTranspose" and d.chance(0.4):
        attributes["output_padding"] = [d.number(0, max(0, s - 1)) for s in attributes.get("strides", [1] * n)]
    if op == "ConvTranspose" and d.chance(0.3):
        attributes["output_shape"] = d.numbers(n, 4, 12)
    bias = [d.keep(d.floats(outer * group))] if d.chance(0.5) else []
    return [N(op, ["x", d.keep(d.floats(*weight)), *bias], ["y"], **attributes)]


def pool(d: Draw, op: str) -> Made:
    n = d.number(1, 3)
    d.shape = (1, d.number(1, 2), *d.numbers(n, 3, 8))
    if op.startswith("Global"):
        return [N(op, ["x"], ["y"])]
    attributes = window(d, n, True) | {"kernel_shape": d.numbers(n, 1, 4)}
    if op == "AveragePool" and d.opset < 19:
        attributes.pop("dilations", None)
    if d.opset >= 10 and d.chance(0.5):
        attributes["ceil_mode"] = d.number(0, 1)
    if op == "AveragePool" and d.chance(0.5):
        attributes["count_include_pad"] = d.number(0, 1)
    return [N(op, ["x"], ["y"], **attributes)]


def reshape(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 4)
    total = int(np.prod(d.shape))
    cut = d.number(0, len(d.shape))
    target = d.choice([-1], [total], [int(np.prod(d.shape[:cut])), -1], [0, -1], [*d.shape[::-1]], [1, *d.shape, 1], [0] * len(d.shape))
    return [N(op, ["x", d.keep(target)], ["y"], **({"allowzero": 0} if d.opset >= 14 and d.chance(0.3) else {}))]


def flatten(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 4)
    axis = d.number(-len(d.shape) if d.opset >= 11 else 0, len(d.shape))
    return [N(op, ["x"], ["y"], **({"axis": axis} if d.chance(0.8) else {}))]


def ones(d: Draw, op: str) -> Made:
    """Squeeze and Unsqueeze."""
    d.shape = tuple(1 if d.chance(0.5) else size for size in d.sizes(1, 4))
    if op == "Squeeze":
        places, rank = [i for i, size in enumerate(d.shape) if size == 1 and d.chance(0.7)], len(d.shape)
    else:
        rank = len(d.shape) + d.number(1, 2)
        places = sorted(d.random.permutation(rank)[:rank - len(d.shape)].tolist())
    axes = [p - rank if d.opset >= 11 and d.chance(0.5) else p for p in places]
    if not axes:
        return [N(op, ["x"], ["y"])] if op == "Squeeze" and 1 in d.shape else [N("Identity", ["x"], ["y"])]
    d.random.shuffle(axes)
    return [N(op, ["x"], ["y"], axes=axes)] if d.opset < 13 else [N(op, ["x", d.keep(axes)], ["y"])]


def transpose(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 4)
    return [N(op, ["x"], ["y"], **({"perm": d.random.permutation(len(d.shape)).tolist()} if d.chance(0.8) else {}))]


def expand(d: Draw, op: str) -> Made:
    d.shape = tuple(1 if d.chance(0.5) else size for size in d.sizes(0, 3))
    kept = [d.number(1, 3) if size == 1 else int(d.choice(size, 1)) for size in d.shape]
    return [N(op, ["x", d.keep([*d.numbers(d.number(0, 2), 1, 3), *kept][d.number(0, 1) * d.number(0, 2):])], ["y"])]


def tile(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    return [N(op, ["x", d.keep(d.numbers(len(d.shape), 1, 3))], ["y"])]


def concat(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 4)
    axis, names = d.axis(len(d.shape)), ["x"]
    for _ in range(d.number(1, 3)):
        shape = [*d.shape]
        shape[axis] = d.number(0, 3)
        names.append(d.keep(d.floats(*shape)) if d.chance(0.6) else "n")
    d.random.shuffle(names)
    return [N("Neg", ["x"], ["n"]), N(op, names, ["y"], axis=axis)]


def split(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    axis = d.axis(len(d.shape))
    size = d.shape[axis]
    parts = d.number(1, min(3, size))
    cuts = np.sort(d.random.permutation(np.arange(1, size))[:parts - 1])
    sizes = np.diff([0, *cuts, size]).tolist()
    attributes: dict[str, object] = {"axis": axis}
    inputs = ["x"]
    if (d.opset >= 18 or size % parts == 0) and d.chance(0.4):
        attributes |= {"num_outputs": parts} if d.opset >= 18 else {}
    elif d.opset < 13:
        attributes["split"] = sizes
    else:
        inputs.append(d.keep(sizes))
    outputs = [f"p{i}" for i in range(parts)]
    last = d.number(0, parts - 1)
    read = [name for i, name in enumerate(outputs) if i != last or parts == 1]
    return [N(op, inputs, outputs, **attributes), N("Concat", read[::-1], ["y"], axis=axis)]


def slice_(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 4)
    rank = len(d.shape)
    axes = d.random.permutation(rank)[:d.number(1, rank)].tolist()
    starts, ends, steps = [], [], []
    for axis in axes:
        size, step = d.shape[axis], d.number(1, 3) * (d.choice(1, -1) if d.opset >= 10 else 1)
        first, last = sorted(d.numbers(2, 0, size - 1))
        start, end = (first, last + 1) if step > 0 else (last, first - 1)
        end = int(d.choice(end, 2**31 - 1)) if step > 0 else int(d.choice(end, -(2**31))) if end >= 0 else -size - d.number(1, 9)
        starts.append(start - size if d.chance(0.3) else start)
        ends.append(end - size if 0 <= end < size and d.chance(0.3) else end)
        steps.append(step)
    axes = [a - rank if d.opset >= 10 and d.chance(0.3) else a for a in axes]
    if d.opset < 10:
        return [N(op, ["x"], ["y"], axes=axes, starts=starts, ends=ends)]
    return [N(op, ["x", *(d.keep(v, np.int64) for v in (starts, ends, axes, steps))], ["y"])]


def gather(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 3)
    axis = d.axis(len(d.shape))
    size = d.shape[axis]
    indices = d.random.integers(-size if d.opset >= 11 else 0, size, d.sizes(0, 2))
    return [N(op, ["x", d.keep(np.asarray(indices, d.choice(np.int32, np.int64)))], ["y"], axis=axis)]


def pad(d: Draw, op: str) -> Made:
    d.shape = d.sizes(1, 4)
    rank, axes = len(d.shape), list(range(len(d.shape)))
    some = d.opset >= 18 and d.chance(0.5)
    if some:
        axes = d.random.permutation(rank)[:d.number(1, rank)].tolist()
    low = [-1 if d.shape[a] > 2 and d.chance(0.3) else 0 for a in axes]
    pads = [d.number(v, 2) for v in low] + [d.number(v, 2) for v in low]
    mode = {"mode": d.choice("constant", "constant", "constant", "edge", "reflect")} if d.chance(0.6) else {}
    value = float(d.floats())
    if d.opset < 11:
        return [N(op, ["x"], ["y"], pads=pads, **mode, **({"value": value} if d.chance(0.5) else {}))]
    names = ["x", d.keep(pads), d.keep(np.array(value, np.float32)) if d.chance(0.5) else ""]
    if some:
        names.append(d.keep([a - rank if d.chance(0.5) else a for a in axes]))
    return [N(op, names, ["y"], **mode)]


def reduce(d: Draw, op: str) -> Made:
    d.shape = d.sizes(0, 4)
    rank = len(d.shape)
    chosen = d.random.permutation(rank)[:d.number(0, rank)].tolist()
    axes = [a - rank if d.opset >= 11 and d.chance(0.5) else a for a in chosen]
    attributes = {"keepdims": d.number(0, 1)} if d.chance(0.7) else {}
    as_input = d.opset >= (13 if op == "ReduceSum" else 18)
    if as_input and d.chance(0.4):
        attributes["noop_with_empty_axes"] = d.number(0, 1)
    if not axes and (not as_input or d.chance(0.5)):
        return [N(op, ["x"], ["y"], **attributes)]
    return [N(op, ["x", d.keep(axes)], ["y"], **attributes)] if as_input else [N(op, ["x"], ["y"], axes=axes, **attributes)]


COORDINATES = ("half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners", "tf_half_pixel_for_nn", "half_pixel_symmetric")


def resize(d: Draw, op: str) -> Made:
    d.shape = (1, d.number(1, 2), *d.numbers(d.number(1, 2), 1, 13))
    rank = len(d.shape)
    attributes: dict[str, object] = {"mode": "nearest"}
    spatial = range(2, rank)

    def scale() -> float:
        least = 1.0 if op == "Upsample" else 0.3
        return max(least, float(np.float32(d.choice(d.number(1, 4), d.number(1, 40) / d.number(1, 20), d.random.uniform(0.3, 4), 1.0))))

    scales = [scale() if i in spatial else 1.0 for i in range(rank)]
    if op == "Upsample" and d.opset < 9:
        return [N(op, ["x"], ["y"], scales=scales, **attributes)]
    if d.opset < 11:
        return [N(op, ["x", d.keep(scales, np.float32)], ["y"], **attributes)]
    if d.chance(0.8):
        attributes["coordinate_transformation_mode"] = d.choice(*COORDINATES[:5 if d.opset < 19 else 6])
    if d.chance(0.7):
        attributes["nearest_mode"] = d.choice("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    chosen = list(range(rank))
    if d.opset >= 18 and d.chance(0.3):
        attributes["axes"] = chosen = d.random.permutation(list(spatial)).tolist()
    empty = d.keep(np.zeros(0, np.float32)) if d.opset < 13 else ""
    if d.chance(0.6):
        return [N(op, ["x", empty, d.keep([scales[i] for i in chosen], np.float32)], ["y"], **attributes)]
    if d.opset >= 18 and d.chance(0.3):
        attributes["keep_aspect_ratio_policy"] = d.choice("stretch", "not_larger", "not_smaller")
    sizes = [d.number(1, 24) if i in spatial else d.shape[i] for i in chosen]
    return [N(op, ["x", empty, empty, d.keep(sizes)], ["y"], **attributes)]


def shapes(d: Draw, op: str) -> Made:
    """Shape and Size, their value added to x."""
    d.shape = d.sizes(1, 4)
    ends = {"start": d.number(-6, 2), "end": d.number(-2, 6)} if op == "Shape" and d.opset >= 15 and d.chance(0.6) else {}
    ends = {key: value for key, value in ends.items() if d.chance(0.7)}
    summed = {} if d.opset >= 13 else {"axes": [0]}
    tail = [N("Cast", ["s"], ["f"], to=1), N("ReduceSum", ["f"], ["r"], **summed), N("Add", ["x", "r"], ["y"])]
    return [N(op, ["x"], ["s"], **ends), *tail] if op == "Shape" else [N(op, ["x"], ["s"]), tail[0], N("Add", ["x", "f"], ["y"])]


def dropout(d: Draw, op: str) -> Made:
    d.shape = d.sizes(0, 3)
    return [N(op, ["x"], ["y"])]


def cast(d: Draw, op: str) -> Made:
    d.shape = d.sizes(0, 3)
    return [N(op, ["x"], ["z"], to=d.choice(1, 11)), N(op, ["z"], ["y"], to=1)]


MAKERS: dict[str, Callable[[Draw, str], Made]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), pair), **dict.fromkeys(("Sum", "Mean", "Max", "Min"), several),
    **dict.fromkeys(("Abs", "Neg", "Relu", "LeakyRelu", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh", "Identity"), alone),
    **dict.fromkeys(("Conv", "ConvTranspose"), conv), **dict.fromkeys(("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"), pool),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), ones), **dict.fromkeys(("ReduceMean", "ReduceSum"), reduce),
    **dict.fromkeys(("Resize", "Upsample"), resize), **dict.fromkeys(("Shape", "Size"), shapes),
    "BatchNormalization": norm, "Cast": cast, "Clip": clip, "Concat": concat, "Dropout": dropout, "Expand": expand, "Flatten": flatten,
    "Gather": gather, "Gemm": gemm, "MatMul": matmul, "PRelu": prelu, "Pad": pad, "Pow": power, "Reshape": reshape, "Slice": slice_,
    "Split": split, "Tile": tile, "Transpose": transpose,
}
KNOWN = {  # the opsets of an operation that is not in all of them
    "Upsample": (7, 9), "Resize": (10, 99), "Expand": (8, 99), "HardSwish": (14, 99),
}


def drawn(op: str, random: np.random.Generator) -> tuple[Made, Draw]:
    """A random model of `op`: its nodes and what else it is made of."""
    first, last = KNOWN.get(op, (7, 99))
    d = Draw(random, int(random.choice([o for o in OPSETS if first <= o <= last])))
    return MAKERS[op](d, op), d
