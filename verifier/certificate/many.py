"""Lower bounds of rows over many boxes of one network at once: an interval of every value, then one pass backwards, each rounding a worst case.

    forwards     v = L u + shift + e:  an interval of every value, for all boxes together; |e| <= off, what a runtime rounds
    backwards    <c, v> = <L' c, u> + <c, shift> + <c, e>;   a ReLU over [l, u] lies between alpha z and s z + max(0, -s l, (1 - s) u)

Wherever all that is left is one value, the interval of it ends the pass; the best of these ends counts. Whatever alpha in [0, 1] and s are, that
holds: slopes are no part of the proof. A sum of k products in the pass is off by gamma_k of the sum of their absolute values, and those sum to
<|c|, |L| |u|>, which the pass forwards has. What is positive proves as a CASE without trees does.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from verifier.certificate.affine import Affine, Fused
from verifier.certificate.arithmetic import LARGEST, LONGEST, Arithmetic, Runtime
from verifier.certificate.bound import RELU, activation
from verifier.errors import UnsupportedError
from verifier.graph.ir import Graph, Node

EXTRA = 8
"""Roundings of a sum beside its products: a shift, a slope, a difference of two ends."""


@dataclass(frozen=True, slots=True)
class Range:
    """lower <= value <= upper of each box, `(B, *shape)`; the value is off by at most `off` from L u + shift; `size` >= |L| |u| + |shift|."""

    lower: np.ndarray
    upper: np.ndarray
    off: Any = 0
    size: Any = 0

    @property
    def most(self) -> np.ndarray:
        return np.maximum(abs(self.lower), abs(self.upper))


def bounds_of_many(
    graph: Graph, box: tuple[np.ndarray, np.ndarray], rows: tuple[np.ndarray, np.ndarray], arithmetic: Arithmetic, runtime: Runtime | None
) -> np.ndarray:
    """min over each box of output @ y - offset, from below, `(B, S)`; not a number where a value overflows.

    Args:
        graph: numpy constants.
        box: lower and upper ends `(B, n_in)`.
        rows: output `(B, S, n_out)` and offset `(B, S)`.
        runtime: how the network is computed, or None over the reals.

    Raises:
        UnsupportedError: an operation is none of Linear, Conv, Scale, Add, Sub, Reshape, Transpose, Relu, or numbers may overflow.
    """
    if graph.computed:
        raise UnsupportedError(f"Node {graph.computed[0]!r} computes a constant in floating point, which runtimes may round otherwise.")
    return _Pass(graph, arithmetic, runtime).bounds(box, rows)


class _Pass:
    def __init__(self, graph: Graph, arithmetic: Arithmetic, runtime: Runtime | None) -> None:
        self.graph, self.arithmetic, self.runtime = graph, arithmetic, runtime
        self.fused = None if runtime is None else Fused(runtime, arithmetic)
        self.limit, self.largest = LARGEST if runtime is None else min(LARGEST, runtime.largest), 0.0
        self.ranges: dict[str, Range] = {}
        self.held: dict[str, np.ndarray] = {}

    def bounds(self, box: tuple[np.ndarray, np.ndarray], rows: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        array, graph = self.arithmetic.array, self.graph
        lower, upper = (array(end).reshape(-1, *graph.input_shape) for end in box)
        self.ranges[graph.input.name] = Range(lower, upper)
        self.largest = self.ranges[graph.input.name].most.max(initial=0)
        for node in graph.nodes[1:]:
            found = self.ranges[node.name] = self._forward(node, [self.ranges[name] for name in node.inputs])
            self.largest = max(self.largest, found.most.max(initial=0))
        output, offset = map(array, rows)
        self.held[graph.output] = c = output.reshape(*output.shape[:2], *graph.output_shape)
        total, error = -offset, self._stated(c, offset)
        best = self._least(total, error)
        for node in reversed(graph.nodes[1:]):
            if node.name in self.held:
                more, off = self._backward(node, self.held.pop(node.name))
                error = self.arithmetic.up(error + off + self._sum(1, abs(total) + abs(more)))
                total = total + more
                if len(self.held) == 1:
                    best = np.fmax(best, self._least(total, error))
        return best

    def _stated(self, c: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """What decimals of the property and the floats nearest to them differ by."""
        return self.arithmetic.up(self.arithmetic.array(2.0**-52) * (_dot(abs(c), self.ranges[self.graph.output].most) + abs(offset)))

    def _least(self, total: np.ndarray, error: np.ndarray) -> np.ndarray:
        """The least of `total` and the one value that is held, over its range."""
        ((name, c),) = self.held.items()
        value = self.ranges[name]
        least = _dot(np.maximum(c, 0), value.lower) + _dot(np.minimum(c, 0), value.upper)
        own = self._sum(2 * prod(value.lower.shape[1:]), abs(total) + _dot(abs(c), value.most))
        return total + least - self.arithmetic.up(error + own)

    def _shape(self, node: Node) -> tuple[int, ...]:
        """Of its first input."""
        return self.ranges[node.inputs[0]].lower.shape[1:]

    def _sum(self, k: int, terms: np.ndarray) -> np.ndarray:
        """What sums of k products of these absolute values are off by."""
        return self.arithmetic.room(k + EXTRA, self.arithmetic.up(terms))

    def _forward(self, node: Node, inputs: list[Range]) -> Range:
        if node.op not in _ADJOINTS and node.op != "Relu":
            raise UnsupportedError(f"Node {node.name!r}: bounds of many boxes do not cover the operation {node.op!r}.")
        if node.op == "Relu":
            return Range(*activation(RELU, inputs[0].lower, inputs[0].upper))
        affine, up = Affine(node, self.arithmetic), self.arithmetic.up
        k = affine.products(self._shape(node))
        if k == 0:
            if self.fused is not None:
                self.fused.moved(affine)
            return Range(*(affine.linear([end(value) for value in inputs]) for end in (_lower, _upper)))
        if len(inputs) > 1 and any(value.lower.shape[1:] != node.shape for value in inputs):
            raise UnsupportedError(f"Node {node.name!r}: bounds of many boxes do not cover inputs of several shapes.")
        if max(k, 2 * prod(node.shape)) > LONGEST:
            raise UnsupportedError(f"Node {node.name!r} sums {max(k, 2 * prod(node.shape)):,} products: up to {LONGEST:,} are followed.")
        middles = [(value.lower + value.upper) / 2 for value in inputs]
        radii = [up(np.maximum(value.upper - m, m - value.lower)) for value, m in zip(inputs, middles)]
        size = up(affine.absolute([value.most for value in inputs]) + affine.shift_terms())
        off = self.arithmetic.array(2.0**-48 if affine.is_rounded() else 0.0) * size
        if self.fused is not None:
            more = self.fused.room(affine, [value.most for value in inputs], affine.shift_terms(), self.largest)
            summed = np.stack([affine.terms(list(sizes)) for sizes in zip(*((value.most != 0) * 1.0 for value in inputs))])
            off = up(off + self.runtime.room(summed, size, self.arithmetic) + (0 if more is None else more))
        middle = affine.linear(middles) + affine.shift()
        radius = up(affine.absolute(radii) + off + self._sum(k, size))
        found = Range(middle - radius - self._sum(1, size), middle + radius + self._sum(1, size), off, size)
        if not np.all(up(size + off) < self.limit):  # nor does a part of a sum
            raise UnsupportedError(f"Node {node.name!r}: its values may exceed {self.limit:.6g}, which the checker does not follow.")
        return found

    def _backward(self, node: Node, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """<c, node> in terms of the node's inputs, which are held: a constant `(B, S)`, and what it is off by."""
        if node.op == "Relu":
            return self._through_relu(node, c)
        affine, own, error = Affine(node, self.arithmetic), self.ranges[node.name], 0
        for name, given in zip(node.inputs, _ADJOINTS[node.op](node, c, self.arithmetic, self._shape(node))):
            error = error + self._hold(name, given)
        if affine.products(self._shape(node)) == 0:
            return 0 * c.reshape(*c.shape[:2], -1)[..., 0], error
        error = error + _dot(abs(c), own.off) + self._sum(2 * prod(node.shape), _dot(abs(c), own.size))
        return _dot(c, np.broadcast_to(affine.shift(), own.size.shape)), error

    def _through_relu(self, node: Node, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = self.ranges[node.inputs[0]]
        lower, upper = z.lower, z.upper
        slope = np.maximum(upper, 0) / np.maximum(np.maximum(upper, 0) - np.minimum(lower, 0), self.arithmetic.array(2.0**-1000))
        slope = np.where(lower >= 0, self.arithmetic.array(1.0), slope)
        ends = [np.maximum(end, 0) - slope * end for end in (lower, upper)]  # relu(z) - slope z is convex
        above = np.maximum(*ends) + self._sum(2, z.most * (1 + slope))
        through = np.where(c > 0, np.where((upper >= -lower)[:, None], c, 0 * c), c * slope[:, None])
        error = self._sum(1, _dot(abs(through), z.most)) + self._sum(prod(node.shape), _dot(abs(c), above))
        return _dot(np.minimum(c, 0), above), error + self._hold(node.inputs[0], through)

    def _hold(self, name: str, c: np.ndarray) -> np.ndarray | int:
        """Adds coefficients of a value; what their sum is off by."""
        if name not in self.held:
            self.held[name] = c
            return 0
        self.held[name] = self.held[name] + c
        return self._sum(1, _dot(abs(self.held[name]), self.ranges[name].most))


def _lower(value: Range) -> np.ndarray:
    return value.lower


def _upper(value: Range) -> np.ndarray:
    return value.upper


def _dot(c: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Sums of products, `(B, S, *shape)` and `(B, *shape)` to `(B, S)`."""
    return (c.reshape(*c.shape[:2], -1) @ value.reshape(len(value), -1, 1))[..., 0]


def _conv(node: Node, c: np.ndarray, arithmetic: Arithmetic, shape: tuple[int, ...]) -> np.ndarray:
    """The adjoint of a convolution is the transposed one by the same weights."""
    turned = Node(node.name, "ConvTranspose", node.inputs, shape, {"weight": node.constants["weight"]}, node.attributes)
    return Affine(turned, arithmetic).linear([c.reshape(-1, *c.shape[2:])]).reshape(*c.shape[:2], *shape)


def _transpose(node: Node, c: np.ndarray) -> np.ndarray:
    return c.transpose(0, 1, *(2 + int(axis) for axis in np.argsort(node.attributes["perm"])))


Adjoint = Callable[[Node, np.ndarray, Arithmetic, tuple[int, ...]], list[np.ndarray]]
_ADJOINTS: dict[str, Adjoint] = {
    "Linear": lambda node, c, arithmetic, shape: [(c @ arithmetic.array(node.constants["weight"])).reshape(*c.shape[:2], *shape)],
    "Conv": lambda node, c, arithmetic, shape: [_conv(node, c, arithmetic, shape)],
    "Scale": lambda node, c, arithmetic, shape: [c * arithmetic.array(node.constants["scale"])],
    "Add": lambda node, c, arithmetic, shape: [c, c],
    "Sub": lambda node, c, arithmetic, shape: [c, -c],
    "Reshape": lambda node, c, arithmetic, shape: [c.reshape(*c.shape[:2], *shape)],
    "Transpose": lambda node, c, arithmetic, shape: [_transpose(node, c)],
}
"""L' applied to coefficients `(B, S, *node.shape)`: those of each input."""
