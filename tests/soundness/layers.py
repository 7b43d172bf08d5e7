"""Layers of random networks: what each computes, as steps of `exact_truth`, and the ONNX nodes that it is written as.

Every value has a shape without its batch of one. A layer may be several steps that one node writes: steps with `form["hidden"]` write nothing, and
the one that does names the values that its nodes read in `form["of"]`.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.soundness.exact_truth import Net, Step

Shape = tuple[int, ...]
Writer = Callable[[str, list[str], dict[str, np.ndarray]], list[NodeProto]]
OPSET = 14


def node(op: str, sources: Sequence[str], out: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, list(sources), [out], name=out, **attributes)


def simple(op: str, **attributes: Any) -> Writer:
    """One node without constants."""
    return lambda name, sources, constants: [node(op, sources, name, **attributes)]


def with_constants(op: str, *values: np.ndarray, **attributes: Any) -> Writer:
    """One node whose later inputs are constants."""

    def write(name: str, sources: list[str], constants: dict[str, np.ndarray]) -> list[NodeProto]:
        names = [f"{name}.c{k}" for k in range(len(values))]
        constants.update(zip(names, values))
        return [node(op, [*sources, *names], name, **attributes)]

    return write


class Builder:
    """A network as it grows: `steps`, and the `shapes` of its values."""

    def __init__(self, shape: Shape) -> None:
        self.steps: list[Step] = []
        self.shapes: list[Shape] = [shape]

    @property
    def last(self) -> int:
        return len(self.steps)

    def net(self) -> Net:
        return Net(prod(self.shapes[0]), tuple(self.steps))

    def add(self, kind: str, sources: Sequence[int], shape: Shape, write: Writer | None, **more: Any) -> int:
        """One step; without a writer it is hidden. `of`: what its nodes read, its sources where that is left out."""
        form = {"write": write, "out": shape, "of": more.pop("of", tuple(sources))}
        self.steps.append(Step(kind, tuple(sources), form=form, **more))
        self.shapes.append(shape)
        return self.last

    def affine(self, source: int, f: Callable[[np.ndarray], np.ndarray], write: Writer | None, bias: np.ndarray | float = 0.0, **more: Any) -> int:
        """The step y = f(x) + bias for a linear f of arrays `shape` to arrays of the new shape."""
        n = prod(self.shapes[source])
        out = [f(row.reshape(self.shapes[source])) for row in np.eye(n)]
        shape = out[0].shape
        matrix = np.stack([column.reshape(-1) for column in out], 1)
        full = np.broadcast_to(np.asarray(bias, float), shape).reshape(-1).copy()
        return self.add("affine", (source,), shape, write, matrix=matrix, bias=full, **more)

    def dense(self, source: int, weight: np.ndarray, bias: np.ndarray, variant: int = 0) -> int:
        """Gemm in several spellings, or MatMul and Add; a source that is no vector is flattened first."""
        weight, bias = (np.asarray(a, np.float32) for a in (weight, bias))
        if len(self.shapes[source]) != 1:
            source = self.affine(source, lambda v: v.reshape(-1), simple("Flatten"))
        f, wide = (lambda v: weight.astype(float) @ v), bias.astype(float)
        halves = np.all(weight / 2 * 2 == weight) and np.all(bias * 2 / 2 == bias) and np.isfinite(bias * 2).all()
        if variant % 5 == 1 or not halves:
            def write(name: str, sources: list[str], constants: dict[str, np.ndarray]) -> list[NodeProto]:
                constants.update({f"{name}.w": np.ascontiguousarray(weight.T), f"{name}.b": bias})
                return [node("MatMul", [*sources, f"{name}.w"], f"{name}.p"), node("Add", [f"{name}.p", f"{name}.b"], name)]
            return self.affine(source, f, write, wide)
        if variant % 5 == 2:
            return self.affine(source, f, with_constants("Gemm", weight / 2, bias * 2, transB=1, alpha=2.0, beta=0.5), wide)
        if variant % 5 == 3 and not bias.any():
            return self.affine(source, f, with_constants("MatMul", np.ascontiguousarray(weight.T)), wide)
        if variant % 5 == 4:
            return self.affine(source, f, with_constants("Gemm", np.ascontiguousarray(weight.T), bias[None]), wide)
        return self.affine(source, f, with_constants("Gemm", weight, bias, transB=1), wide)

    def activation(self, source: int, kind: str, numbers: tuple[float, ...] = (), variant: int = 0) -> int:
        """relu, leaky, clip, abs, sigmoid, tanh, in several spellings."""
        shape, single = self.shapes[source], [np.array(v, np.float32) for v in numbers]
        write = {
            "relu": [simple("Relu"), with_constants("Max", np.array(0, np.float32)), with_constants("Clip", np.array(0, np.float32))],
            "leaky": [simple("LeakyRelu", alpha=numbers[0] if numbers else 0.0), with_constants("PRelu", *(s.reshape(1) for s in single))],
            "clip": [with_constants("Clip", *single)], "abs": [simple("Abs")], "sigmoid": [simple("Sigmoid")], "tanh": [simple("Tanh")],
        }[kind]
        return self.add(kind, (source,), shape, write[variant % len(write)], numbers=tuple(float(np.float32(v)) for v in numbers))

    def hard_sigmoid(self, source: int) -> int:
        inner = self.affine(source, lambda v: v * 0.25, None, 0.5)
        return self.add("clip", (inner,), self.shapes[source], simple("HardSigmoid", alpha=0.25, beta=0.5), numbers=(0.0, 1.0), of=(source,))

    def pair(self, op: str, a: int, b: int) -> int:
        """Add, Sub, Sum, Mean, Max, Min or Mul of two values of one shape."""
        shape = self.shapes[a]
        if op in ("Add", "Sum"):
            return self.add("add", (a, b), shape, simple(op))
        if op in ("Max", "Mul"):
            return self.add({"Max": "larger", "Mul": "mul"}[op], (a, b), shape, simple(op))
        if op == "Sub":
            return self.add("add", (a, self.affine(b, lambda v: -v, None)), shape, simple("Sub"), of=(a, b))
        if op == "Mean":
            return self.affine(self.add("add", (a, b), shape, None), lambda v: v / 2, simple("Mean"), of=(a, b))
        minus = [self.affine(s, lambda v: -v, None) for s in (a, b)]
        return self.affine(self.add("larger", minus, shape, None), lambda v: -v, simple("Min"), of=(a, b))

    def concat(self, sources: Sequence[int]) -> int:
        """Along the first axis behind the batch."""
        shapes = [self.shapes[s] for s in sources]
        return self.add("concat", sources, (sum(s[0] for s in shapes), *shapes[0][1:]), simple("Concat", axis=1))

    def conv(self, source: int, weight: np.ndarray, bias: np.ndarray, stride: int = 1, pad: int = 0) -> int:
        """`weight (O, C, K, K)`."""
        wide = np.asarray(weight, np.float32).astype(float)

        def f(v: np.ndarray) -> np.ndarray:
            padded, k = np.pad(v, ((0, 0), (pad, pad), (pad, pad))), wide.shape[2]
            windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), (1, 2))[:, ::stride, ::stride]
            return np.einsum("ochw,cijhw->oij", wide, windows)

        write = with_constants("Conv", wide.astype(np.float32), np.asarray(bias, np.float32), strides=[stride] * 2, pads=[pad] * 4)
        return self.affine(source, f, write, np.asarray(bias, np.float32).astype(float)[:, None, None])

    def conv_transpose(self, source: int, weight: np.ndarray, stride: int = 1) -> int:
        """`weight (C, O, K, K)`, no bias."""
        wide = np.asarray(weight, np.float32).astype(float)

        def f(v: np.ndarray) -> np.ndarray:
            (_, h, w), k = v.shape, wide.shape[2]
            out = np.zeros((wide.shape[1], (h - 1) * stride + k, (w - 1) * stride + k))
            for i, j in np.ndindex(h, w):
                out[:, i * stride:i * stride + k, j * stride:j * stride + k] += np.einsum("c,cohw->ohw", v[:, i, j], wide)
            return out

        return self.affine(source, f, with_constants("ConvTranspose", wide.astype(np.float32), strides=[stride] * 2))

    def max_pool(self, source: int, size: int = 0) -> int:
        """Windows of `size` and stride 1; 0 is the global one."""
        c, h, w = self.shapes[source]
        kernel = (size, size) if size else (h, w)
        out = (c, h - kernel[0] + 1, w - kernel[1] + 1)
        groups = tuple(tuple((k * h + i + a) * w + j + b for a, b in np.ndindex(*kernel)) for k, i, j in np.ndindex(*out))
        return self.add("max", (source,), out, simple("MaxPool", kernel_shape=[size] * 2) if size else simple("GlobalMaxPool"), groups=groups)


def _batch_norm(b: Builder, s: int, random: np.random.Generator) -> int:
    """Variances that are powers of four and no epsilon, so that the scale is exact."""
    c = b.shapes[s][0]
    shift, mean = (random.integers(-2, 3, c) / 4 for _ in range(2))
    gain, root = random.choice([0.5, 1.0, 2.0, -1.0], c), 2.0 ** random.integers(-1, 2, c)
    wide = lambda a: a.reshape(-1, *(1,) * (len(b.shapes[s]) - 1))  # noqa: E731
    values = (np.asarray(a, np.float32) for a in (gain, shift, mean, root**2))
    return b.affine(s, lambda v: v * wide(gain / root), with_constants("BatchNormalization", *values, epsilon=0.0), wide(shift - mean * gain / root))


def _moved(f: Callable, op: str, *values: np.ndarray, **attributes: Any) -> Callable[[Builder, int, np.random.Generator], int]:
    return lambda b, s, random: b.affine(s, f, with_constants(op, *values, **attributes))


def _reordered(b: Builder, s: int, random: np.random.Generator) -> int:
    """Split in two and joined the other way round."""
    n = b.shapes[s][0]
    cut = int(random.integers(1, n)) if n > 1 else 0
    if not cut:
        return b.affine(s, lambda v: v, simple("Identity"))

    def write(name: str, sources: list[str], constants: dict[str, np.ndarray]) -> list[NodeProto]:
        constants[f"{name}.n"] = np.array([cut, n - cut])
        parts = [f"{name}.a", f"{name}.b"]
        return [helper.make_node("Split", [*sources, f"{name}.n"], parts, axis=1, name=f"{name}.s"), node("Concat", parts[::-1], name, axis=1)]

    return b.affine(s, lambda v: np.concatenate([v[cut:], v[:cut]]), write)


def _same_shape(name: str, sources: list[str], constants: dict[str, np.ndarray]) -> list[NodeProto]:
    """A Reshape whose shape the file computes from the value's."""
    return [node("Shape", sources, f"{name}.s"), node("Reshape", [*sources, f"{name}.s"], name)]


def _there_and_back(name: str, sources: list[str], constants: dict[str, np.ndarray]) -> list[NodeProto]:
    constants[f"{name}.a"] = np.array([1])
    return [node("Unsqueeze", [*sources, f"{name}.a"], f"{name}.u"), node("Squeeze", [f"{name}.u", f"{name}.a"], name)]


VECTOR: dict[str, Callable[[Builder, int, np.random.Generator], int]] = {
    "Identity": _moved(lambda v: v, "Identity"), "Dropout": _moved(lambda v: v, "Dropout"), "Cast": _moved(lambda v: v, "Cast", to=TensorProto.FLOAT),
    "Neg": _moved(lambda v: -v, "Neg"), "BatchNormalization": _batch_norm, "Split": _reordered,
    "Shape": lambda b, s, random: b.affine(s, lambda v: v, _same_shape),
    "Unsqueeze": lambda b, s, random: b.affine(s, lambda v: v, _there_and_back),
    "Mul": lambda b, s, random: b.affine(s, lambda v: v * 1.5, with_constants("Mul", np.array(1.5, np.float32))),
    "Div": lambda b, s, random: b.affine(s, lambda v: v / 4, with_constants("Div", np.array(4, np.float32))),
    "Add": lambda b, s, random: b.affine(s, lambda v: v, with_constants("Add", np.array([0.25], np.float32)), 0.25),
    "Sub": lambda b, s, random: b.affine(s, lambda v: v, with_constants("Sub", np.array([0.5], np.float32)), -0.5),
    "Slice": _moved(lambda v: v[::-1], "Slice", np.array([-1]), np.array([-1000]), np.array([1]), np.array([-1])),
    "Gather": lambda b, s, random: b.affine(s, lambda v: v[[0, -1, 0]], with_constants("Gather", np.array([0, -1, 0]), axis=1)),
    "Pad": lambda b, s, random: b.affine(
        s, lambda v: np.pad(v, (1, 0)), with_constants("Pad", np.array([0, 1, 0, 0]), np.array(0.5, np.float32)),
        np.eye(1, b.shapes[s][0] + 1)[0] / 2),
    "Tile": _moved(lambda v: np.tile(v, 2), "Tile", np.array([1, 2])),
    "Expand": lambda b, s, random: b.affine(
        s, lambda v: v, lambda name, sources, constants: with_constants("Expand", np.array([1, b.shapes[s][0]]))(name, sources, constants)),
    "Transpose": lambda b, s, random: b.affine(s, lambda v: v, lambda name, sources, constants: [
        node("Transpose", sources, f"{name}.t", perm=[1, 0]), node("Transpose", [f"{name}.t"], name, perm=[1, 0])]),
    "ReduceSum": lambda b, s, random: b.affine(s, lambda v: v.sum(keepdims=True), with_constants("ReduceSum", np.array([1]), keepdims=1)),
}
"""Layers of vectors that move or scale their values."""

IMAGE: dict[str, Callable[[Builder, int, np.random.Generator], int]] = {
    "BatchNormalization": _batch_norm, "Split": _reordered, "Shape": VECTOR["Shape"], "Neg": VECTOR["Neg"], "Dropout": VECTOR["Dropout"],
    "Transpose": _moved(lambda v: v.transpose(0, 2, 1), "Transpose", perm=[0, 1, 3, 2]),
    "Slice": _moved(lambda v: v[:, 1:], "Slice", np.array([1]), np.array([1000]), np.array([2])),
    "Pad": _moved(lambda v: np.pad(v, ((0, 0), (1, 0), (0, 1))), "Pad", np.array([0, 0, 1, 0, 0, 0, 0, 1])),
    "ReduceSum": _moved(lambda v: v.sum(2, keepdims=True), "ReduceSum", np.array([3]), keepdims=1),
    "Resize": _moved(lambda v: v.repeat(2, 1).repeat(2, 2), "Resize", np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32), mode="nearest",
                     coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "AveragePool": lambda b, s, random: b.affine(
        s, lambda v: (v[:, :-1, :-1] + v[:, 1:, :-1] + v[:, :-1, 1:] + v[:, 1:, 1:]) / 4, simple("AveragePool", kernel_shape=[2, 2])),
    "GlobalAveragePool": lambda b, s, random: b.affine(s, lambda v: v.mean((1, 2), keepdims=True), simple("GlobalAveragePool")),
    "ReduceMean": lambda b, s, random: b.affine(s, lambda v: v.mean(1, keepdims=True), simple("ReduceMean", axes=[2], keepdims=1)),
    "ConvTranspose": lambda b, s, random: b.conv_transpose(s, random.integers(-2, 3, (b.shapes[s][0], 1, 2, 2)) / 2, int(random.integers(1, 3))),
    "MaxPool": lambda b, s, random: b.max_pool(s, 2), "GlobalMaxPool": lambda b, s, random: b.max_pool(s),
}
"""Layers of images of at least 2 x 2."""


def write_model(net: Net, shape: Shape, kind: int = TensorProto.FLOAT) -> bytes:
    """The network as an ONNX file's bytes: input `x`, value k of the network is `v<k>`."""
    nodes: list[NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    for number, step in enumerate(net.steps, 1):
        if step.form["write"] is not None:
            nodes += step.form["write"](f"v{number}", ["x" if s == 0 else f"v{s}" for s in step.form["of"]], constants)
    out = net.steps[-1].form["out"]
    whole = net.steps[-1].form.get("whole", (1, *out))
    ends = [helper.make_tensor_value_info(name, kind, size) for name, size in (("x", (1, *shape)), (f"v{len(net.steps)}", whole))]
    graph = helper.make_graph(nodes, "battery", ends[:1], ends[1:], [numpy_helper.from_array(v, k) for k, v in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8).SerializeToString()
