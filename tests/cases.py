"""One table of small graphs, and the boxes that every engine is run on. Weights are drawn from a fixed seed; inputs are about 1 in size."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from verifier.box import Box
from verifier.graph.ir import Graph, Node

WINDOW = {"strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1), "group": 1}


class Builder:
    """Writes a graph node by node; each method returns the new node's name."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes = [Node("x", "Input", (), shape)]

    def shape(self, name: str) -> tuple[int, ...]:
        return next(n.shape for n in self.nodes if n.name == name)

    def add(self, op: str, inputs: tuple[str, ...], shape: tuple[int, ...], constants: dict[str, Any] | None = None, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(Node(name, op, inputs, shape, constants or {}, attributes))
        return name

    def weights(self, *shape: int) -> np.ndarray:
        return self.random.normal(size=shape) / np.sqrt(max(1, prod(shape[1:])))

    def linear(self, x: str, size: int) -> str:
        shape = self.shape(x)
        constants = {"weight": self.weights(size, shape[-1]), "bias": self.weights(size) / 2}
        return self.add("Linear", (x,), (*shape[:-1], size), constants)

    def same(self, op: str, x: str, **attributes: Any) -> str:
        return self.add(op, (x,), self.shape(x), **attributes)

    def conv(self, x: str, channels: int, kernel: int, stride: int = 1, pads: tuple[int, int, int, int] = (0, 0, 0, 0), group: int = 1) -> str:
        _, inside, height, width = self.shape(x)
        shape = (1, channels, *((n + p - kernel) // stride + 1 for n, p in ((height, pads[0] + pads[2]), (width, pads[1] + pads[3]))))
        constants = {"weight": self.weights(channels, inside // group, kernel, kernel), "bias": self.weights(channels) / 2}
        return self.add("Conv", (x,), shape, constants, strides=(stride, stride), dilations=(1, 1), pads=pads, group=group)

    def flat(self, x: str) -> str:
        return self.add("Reshape", (x,), (1, prod(self.shape(x))))

    def graph(self, output: str) -> Graph:
        return Graph(tuple(self.nodes), output, "case")


def dense(activation: str, **attributes: Any) -> Graph:
    b = Builder((1, 3), 1)
    h = b.same(activation, b.linear("x", 6), **attributes)
    h = b.same(activation, b.linear(h, 5), **attributes)
    return b.graph(b.linear(h, 2))


def residual() -> Graph:
    """A value read three times, a difference, two chained sums."""
    b = Builder((1, 3), 2)
    first = b.same("Relu", b.linear("x", 4))
    inner = b.same("Relu", b.linear(first, 4))
    total = b.add("Add", (first, inner), (1, 4))
    less = b.add("Sub", (b.same("Relu", total), b.linear(first, 4)), (1, 4))
    return b.graph(b.linear(b.same("Relu", less), 2))


def convolutional() -> Graph:
    """Strides, uneven pads, groups, per-channel scaling: rows that stay windows for three layers."""
    b = Builder((1, 2, 7, 8), 3)
    h = b.same("Relu", b.conv("x", 4, 3, 2, (1, 0, 0, 1)))
    h = b.add("Scale", (h,), b.shape(h), {"scale": b.weights(4, 1, 1), "offset": b.weights(4, 1, 1)})
    h = b.same("Relu", b.conv(h, 4, 2, 1, (0, 1, 1, 0), group=2))
    h = b.same("Relu", b.conv(h, 3, 2, 2))
    return b.graph(b.linear(b.same("Relu", b.linear(b.flat(h), 5)), 2))


def residual_convolutional() -> Graph:
    """A residual block whose branches see windows of different sizes, and an average pool with counted pads."""
    b = Builder((1, 1, 9, 9), 4)
    h = b.same("Relu", b.conv("x", 2, 3, 1, (1, 1, 1, 1)))
    left = b.conv(b.same("Relu", b.conv(h, 2, 3, 2, (1, 1, 1, 1))), 2, 3, 1, (1, 1, 1, 1))
    h = b.same("Relu", b.add("Add", (left, b.conv(h, 2, 1, 2)), (1, 2, 5, 5)))
    h = b.add("AveragePool", (h,), (1, 2, 3, 3), kernel_shape=(2, 2), strides=(2, 2), dilations=(1, 1), pads=(0, 1, 1, 0),
              ceil_mode=0, count_include_pad=0)
    h = b.same("Relu", b.conv(h, 2, 2))
    return b.graph(b.linear(b.flat(h), 2))


def pooled() -> Graph:
    b = Builder((1, 1, 6, 6), 5)
    h = b.conv("x", 2, 3, 1, (1, 1, 1, 1))
    h = b.add("MaxPool", (h,), (1, 2, 3, 3), kernel_shape=(3, 3), strides=(2, 2), dilations=(1, 1), pads=(1, 1, 0, 0), ceil_mode=0)
    return b.graph(b.linear(b.flat(b.same("Relu", h)), 2))


def pool_alone() -> Graph:
    """Six inputs, so that every corner is tried: the upper bound is attained."""
    b = Builder((1, 1, 2, 3), 12)
    return b.graph(b.add("MaxPool", ("x",), (1, 1, 1, 2), kernel_shape=(2, 2), strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0), ceil_mode=0))


def products() -> Graph:
    """A gate, a square and a broadcast product."""
    b = Builder((1, 3), 6)
    gate, value = b.same("Sigmoid", b.linear("x", 4)), b.linear("x", 4)
    gated = b.add("Mul", (gate, value), (1, 4))
    square = b.add("Mul", (gated, gated), (1, 4))
    return b.graph(b.linear(b.add("Mul", (square, b.linear("x", 1)), (1, 4)), 2))


def shapes() -> Graph:
    """Every operation that only moves, repeats, drops or sums, around activations."""
    b = Builder((1, 2, 3), 7)
    h = b.add("Transpose", ("x",), (1, 3, 2), perm=(0, 2, 1))
    h = b.same("Relu", b.add("LeftMatMul", (h,), (1, 4, 2), {"weight": b.weights(4, 3)}))
    wide = b.add("Concat", (h, b.add("Transpose", ("x",), (1, 3, 2), perm=(0, 2, 1))), (1, 7, 2), axis=1)
    back = b.add("Slice", (wide,), (1, 4, 2), axes=(1,), starts=(6,), ends=(-8,), steps=(-2,))
    some = b.add("Gather", (back,), (1, 3, 2), {"indices": np.array([3, 0, 3])}, axis=1)
    some = b.add("Pad", (b.same("Relu", some),), (1, 4, 2), pads=(0, 1, 0, 0, 0, 0), value=0.5)
    mean = b.add("ReduceMean", (some,), (1, 4, 1), axes=(2,))
    wide = b.add("Expand", (b.add("ReduceSum", (mean,), (4,), axes=(0, 2)),), (3, 4))
    summed = b.add("Add", (wide, b.add("Reshape", (mean,), (1, 4))), (3, 4))
    return b.graph(b.linear(b.same("LeakyRelu", b.flat(summed), slope=0.1), 2))


def transposed() -> Graph:
    b = Builder((1, 2, 3, 3), 8)
    constants = {"weight": b.weights(2, 3, 3, 3), "bias": b.weights(3)}
    h = b.add("ConvTranspose", ("x",), (1, 3, 6, 6), constants, strides=(2, 2), dilations=(1, 1), pads=(1, 1, 0, 0), group=1,
              output_padding=(0, 0))
    return b.graph(b.linear(b.flat(b.same("Relu", b.conv(b.same("Relu", h), 2, 3, 3))), 2))


def ends_in_relu() -> Graph:
    b = Builder((1, 2), 9)
    return b.graph(b.same("Relu", b.linear(b.same("Relu", b.linear("x", 3)), 2)))


def affine_only() -> Graph:
    b = Builder((1, 2), 10)
    return b.graph(b.linear(b.linear("x", 3), 2))


RELU_GRAPHS = {
    "dense": dense("Relu"), "residual": residual(), "convolutional": convolutional(), "residual_convolutional": residual_convolutional(),
    "transposed": transposed(), "ends_in_relu": ends_in_relu(), "affine_only": affine_only(),
}
GRAPHS = RELU_GRAPHS | {
    "leaky": dense("LeakyRelu", slope=0.2), "clip": dense("Clip", lower=-0.3, upper=0.4), "sigmoid": dense("Sigmoid"), "tanh": dense("Tanh"),
    "pooled": pooled(), "pool_alone": pool_alone(), "products": products(), "shapes": shapes(),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A graph in float64 and a batch of boxes over its input."""

    name: str
    graph: Graph
    box: Box


def boxes(shape: tuple[int, ...]) -> Iterator[tuple[str, Box]]:
    """Boxes `(B, *shape)` of every kind that has fooled a bound: off-centre, one-sided, thin, huge, a different width for each input."""
    random = torch.Generator().manual_seed(0)

    def draw(batch: int) -> torch.Tensor:
        return torch.rand(batch, *shape, generator=random, dtype=torch.float64)

    center, radius = 2 * draw(3) - 1, 0.3 * draw(3)
    yield "different widths", Box(center - radius, center + radius)
    yield "off centre", Box(3 + 0 * center, 3.5 + center.abs())
    yield "one-sided", Box(0 * center, 0.4 * draw(3))
    yield "point", Box(center, center)
    some = draw(3) < 0.5
    yield "partly point", Box(center, torch.where(some, center, center + 0.5))
    yield "width 1e-9", Box(center, center + 1e-9)
    yield "width 1e6", Box(center - 5e5, center + 5e5)


CASES = [Case(f"{name}, {kind}", graph, box) for name, graph in GRAPHS.items() for kind, box in boxes(graph.input_shape)]
KINDS = [kind for kind, _ in boxes((1,))]
