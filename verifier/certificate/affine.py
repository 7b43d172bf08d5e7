"""The affine operations of a graph, y = L x + shift, by direct sums in numpy: for floats and for rationals alike.

`Affine` gives L (columns pushed through it, the batch first), |L|, the shift and the number of products in a sum; operations that only move values
have none. The vocabulary is that of graph/ir.py.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from verifier.certificate.arithmetic import Arithmetic, Runtime
from verifier.certificate.threads import spread
from verifier.errors import UnsupportedError
from verifier.graph.ir import Node

CHUNK = 2**18
"""Numbers in the patches of one matrix product: they stay in the cache, and neighbouring columns reach few outputs."""

Weigh = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Affine:
    """One affine node in one arithmetic."""

    node: Node
    arithmetic: Arithmetic

    def linear(self, inputs: list[np.ndarray]) -> np.ndarray:
        """L applied to columns `(B, *shape)` of each input."""
        return _MAPS[self.node.op](self.node, inputs, self.arithmetic.array)

    def absolute(self, inputs: list[np.ndarray]) -> np.ndarray:
        """|L| applied to columns that are not negative."""
        return _MAPS[self.node.op](self.node, inputs, lambda constant: np.abs(self.arithmetic.array(constant)))

    def shift(self) -> np.ndarray:
        """f(0), broadcastable to the node's shape."""
        return self.arithmetic.array(_shift(self.node))

    def shift_terms(self) -> np.ndarray:
        """The absolute values that a runtime may sum up to `shift`."""
        return np.abs(self.arithmetic.array(self.node.constants.get("terms", _shift(self.node))))

    def is_rounded(self) -> bool:
        """Whether the loader rounded the constants: those of a normalisation, and float64 ones that are no float32 numbers (1/c, say)."""
        floats = [c for c in self.node.constants.values() if isinstance(c, np.ndarray) and c.dtype == np.float64]
        with np.errstate(over="ignore"):
            return "terms" in self.node.constants or not all(np.array_equal(c, c.astype(np.float32)) for c in floats)

    def products(self, shape: tuple[int, ...]) -> int:
        """How many products an output sums for a first input of `shape`, 0 where values only move."""
        c, a = self.node.constants, self.node.attributes
        if self.node.op in ("Linear", "LeftMatMul"):
            return c["weight"].shape[1]
        if self.node.op in ("Conv", "ConvTranspose"):
            return int(c["weight"].size // (c["weight"].shape[0] if self.node.op == "Conv" else c["weight"].shape[1]))
        if self.node.op == "AveragePool":
            return prod(a["kernel_shape"])
        if self.node.op in ("ReduceSum", "ReduceMean"):
            return prod(shape[axis] for axis in a["axes"])
        return 1 if self.node.op in ("Scale", "Add", "Sub") else 0

    def terms(self, inputs: list[np.ndarray]) -> np.ndarray:
        """How many of an output's products are not zero for certain, where `inputs`, one of each, hold 1 for what may be no zero and else 0.

        A product of a zero is zero in every arithmetic, and adding it rounds nothing.
        """
        found = _MAPS[self.node.op](self.node, [part[None] for part in inputs], lambda constant: (np.asarray(constant) != 0) * 1.0)[0]
        return np.minimum(found, self.products(inputs[0].shape))


@dataclass(slots=True)
class Fused:
    """What a runtime rounds more that works a scale or a summand into the sum before it, or makes a number's product a factor of the sum behind it.

    What is added is then rounded as often as that sum has products, and weights times the scale may underflow, but must not overflow; nor must sums
    of what was to be scaled before, whose underflow is scaled too. `terms`: how many products were summed into a node's value; `weights`: a
    bound of the weights and factors of that sum, multiplied in any order; `sums`: of all sums of what was to be scaled up to now; `scaled`: of what
    has a number as a factor, the number and a bound of the rest.
    """

    runtime: Runtime
    arithmetic: Arithmetic
    terms: Counter = field(default_factory=Counter)
    weights: dict[str, float] = field(default_factory=dict)
    sums: Any = 0
    scaled: dict[str, tuple[float, np.ndarray]] = field(default_factory=dict)

    def moved(self, affine: Affine) -> None:
        """A node whose values only move."""
        node = affine.node
        self.terms[node.name] = max(self.terms[name] for name in node.inputs)
        self.weights[node.name] = self._before(node)
        if len(node.inputs) == 1 and node.inputs[0] in self.scaled:
            factor, rest = self.scaled[node.inputs[0]]
            self.scaled[node.name] = factor, affine.absolute([rest])

    def multiplied(self, node: Node, most: list[np.ndarray]) -> None:
        """A product of two values of these sizes, `(B, *node.shape)`."""
        if any(name in self.scaled for name in node.inputs):
            (one, x), (other, y) = (self.scaled.get(name, (1.0, own)) for name, own in zip(node.inputs, most))
            self.scaled[node.name] = one * other, np.broadcast_to(align(x, len(node.shape)) * align(y, len(node.shape)), most[0].shape)

    def room(self, affine: Affine, most: list[np.ndarray], shift: np.ndarray, largest: Any) -> np.ndarray | None:
        """By what the node is off beside `Runtime.room`, None where by nothing.

        Args:
            most: bounds of its inputs' sizes, `(B, *shape)`.
            shift: its shift's absolute terms.
            largest: a bound of the size of all values up to now.
        """
        node, found = affine.node, None
        own = max([1.0, *(float(abs(c).max(initial=0)) for key, c in node.constants.items() if key in ("weight", "scale"))])
        counts = [self.terms[name] for name in node.inputs]
        if node.op == "Scale" and counts[0]:
            if not own * self._before(node) < self.runtime.largest:
                raise UnsupportedError(f"Node {node.name!r}: its scale times the weights before it may exceed {self.runtime.largest:.6g}.")
            found = self.runtime.room(counts[0], shift, self.arithmetic, max(largest, self.sums))
        elif node.op in ("Linear", "LeftMatMul", "ReduceSum") and node.inputs[0] in self.scaled:
            found = self._behind(affine, *self.scaled[node.inputs[0]])
        elif node.op in ("Add", "Sub") and any(counts):
            terms = affine.absolute([part * bool(other) for part, other in zip(most, reversed(counts))])
            found = self.runtime.room(max(counts), terms, self.arithmetic)
        self.terms[node.name] = max(counts) + 1 if node.op in ("Scale", "Add", "Sub") else affine.products(most[0].shape[1:])
        kept = self.scaled[node.inputs[0]][0] if node.op in ("Linear", "LeftMatMul", "ReduceSum") and node.inputs[0] in self.scaled else 1.0
        self.weights[node.name] = own * (self._before(node) if node.op in ("Scale", "Add", "Sub") else max(1.0, kept))
        single = node.op == "Scale" and node.constants["scale"].size == 1
        if node.op == "Scale" and not np.any(shift) and (single or node.inputs[0] in self.scaled):
            factor, rest = self.scaled.get(node.inputs[0], (1.0, most[0]))
            size = float(abs(node.constants["scale"]).max())
            self.scaled[node.name] = (factor * size, rest) if single else (factor, affine.absolute([rest]))
        return found

    def _before(self, node: Node) -> float:
        return max(self.weights.get(name, 1.0) for name in node.inputs)

    def _behind(self, affine: Affine, factor: float, most: np.ndarray) -> np.ndarray:
        """What underflows where a factor waits for the sum."""
        sums = self.arithmetic.up(affine.absolute([most]))
        if not (np.all(sums < self.runtime.largest) and factor < self.runtime.largest):
            raise UnsupportedError(f"Node {affine.node.name!r}: its sums before they are scaled may exceed {self.runtime.largest:.6g}.")
        self.sums = max(self.sums, sums.max(initial=0))
        return self.runtime.room(affine.products(most.shape[1:]), 0 * sums, self.arithmetic, sums + self.arithmetic.number(factor))


def is_affine(node: Node) -> bool:
    return node.op in _MAPS


def _shift(node: Node) -> Any:
    c = node.constants
    if node.op in ("Conv", "ConvTranspose") and c.get("bias") is not None:
        return c["bias"].reshape(-1, *(1,) * (len(node.shape) - 2))
    if node.op == "Pad":
        return _pad(node, [np.zeros((1, *_unpadded(node)))], np.asarray, node.attributes["value"])[0]
    bias = c.get("offset" if node.op == "Scale" else "bias")
    return 0.0 if bias is None else bias


def _unpadded(node: Node) -> tuple[int, ...]:
    pads, n = node.attributes["pads"], len(node.shape)
    return tuple(size - pads[i] - pads[n + i] for i, size in enumerate(node.shape))


def align(value: np.ndarray, rank: int) -> np.ndarray:
    """`(B, *shape)` with ones after the batch until `shape` has `rank` axes."""
    return value.reshape(len(value), *(1,) * (rank + 1 - value.ndim), *value.shape[1:])


def steps_of(node: Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides and dilations of a node's windows; a transposed convolution's are those of the convolution that it is."""
    strides, dilations = ((tuple(node.attributes.get(key) or (1,) * rank)) for key in ("strides", "dilations"))
    return (1,) * rank if node.op == "ConvTranspose" else strides, dilations


def windows(
    value: np.ndarray, node: Node, kernel: tuple[int, ...], before: tuple[int, ...], fill: Any, outputs: tuple[int, ...] | None = None
) -> np.ndarray:
    """A view of each window, `(B, C, *spatial)` to `(B, C, *kernel, *outputs)`: padded or cropped until exactly the outputs' windows fit.

    The outputs are node.shape's where no other sizes are given.
    """
    strides, dilations = steps_of(node, len(kernel))
    outputs = node.shape[2:] if outputs is None else outputs
    reach = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(outputs, strides, kernel, dilations, strict=True)]
    taken = [slice(max(0, -front), max(0, size - front)) for front, size in zip(before, reach, strict=True)]
    value = value[(..., *taken)]
    if value.shape[2:] != tuple(reach):
        padded = np.full((*value.shape[:2], *reach), fill, value.dtype)
        padded[(..., *(slice(max(0, front), max(0, front) + size) for front, size in zip(before, value.shape[2:])))] = value
        value = padded
    steps = (*value.strides[:2], *(v * d for v, d in zip(value.strides[2:], dilations)), *(v * s for v, s in zip(value.strides[2:], strides)))
    return np.lib.stride_tricks.as_strided(value, (*value.shape[:2], *kernel, *outputs), steps, writeable=False)


def _linear(node: Node, inputs: list[np.ndarray], weigh: Weigh) -> np.ndarray:
    value, weight = inputs[0], weigh(node.constants["weight"]).T
    size, result = max(1, 64 * CHUNK // max(1, weight.size)), np.empty((*value.shape[:-1], weight.shape[1]), value.dtype)

    def chunk(start: int) -> None:
        np.matmul(value[start:start + size], weight, out=result[start:start + size])

    spread(chunk, range(0, len(value), size))
    return result


def _left(node: Node, inputs: list[np.ndarray], weigh: Weigh) -> np.ndarray:
    return weigh(node.constants["weight"]) @ inputs[0]


def _conv(node: Node, inputs: list[np.ndarray], weigh: Weigh) -> np.ndarray:
    weight = weigh(node.constants["weight"])
    pads = node.attributes.get("pads") or (0,) * 2 * (weight.ndim - 2)
    return _convolved(node, inputs[0], weight, tuple(pads[:weight.ndim - 2]))


def _conv_transpose(node: Node, inputs: list[np.ndarray], weigh: Weigh) -> np.ndarray:
    """A convolution of the input with strides - 1 zeros between its values, by the weights turned round."""
    weight, value = weigh(node.constants["weight"]), inputs[0]
    rank, group = weight.ndim - 2, node.attributes.get("group", 1)
    strides, dilations = ((tuple(node.attributes.get(key) or (1,) * rank)) for key in ("strides", "dilations"))
    pads = node.attributes.get("pads") or (0,) * 2 * rank
    stuffed = np.zeros((*value.shape[:2], *value.shape[2:3], *((n - 1) * s + 1 for n, s in zip(value.shape[3:], strides))), value.dtype)
    stuffed[(..., *(slice(None, None, s) for s in strides))] = value
    turned = np.flip(weight, tuple(range(2, weight.ndim))).reshape(group, -1, *weight.shape[1:]).swapaxes(1, 2)
    front = tuple(d * (k - 1) - p for d, k, p in zip(dilations, weight.shape[2:], pads))
    return _convolved(node, stuffed, turned.reshape(-1, weight.shape[0] // group, *weight.shape[2:]), front)


def _convolved(node: Node, value: np.ndarray, weight: np.ndarray, before: tuple[int, ...]) -> np.ndarray:
    """`(B, 1, C, *spatial)` to `(B, 1, C_out, *outputs)`; each chunk of columns is one matrix product a group, over the outputs that it reaches."""
    value, group = value[:, 0], node.attributes.get("group", 1)
    own, taps, places = len(weight) // group, prod(weight.shape[1:]), prod(node.shape[2:])
    size, result = max(1, CHUNK // (taps * places * group)), np.zeros((len(value), *node.shape[1:]), value.dtype)

    def chunk(start: int) -> None:
        part = value[start:start + size]
        reached = _reached(part, node, weight.shape[2:], before)
        if reached is None:
            return
        moved = tuple(p - r.start * s for p, r, s in zip(before, reached, steps_of(node, len(before))[0]))
        counts = tuple(r.stop - r.start for r in reached)
        view = windows(part, node, weight.shape[2:], moved, 0, counts)
        patches = np.moveaxis(view, 0, -1 - len(counts)).reshape(group, taps, -1)
        found = (weight.reshape(group, own, taps) @ patches).reshape(len(weight), -1, *counts).swapaxes(0, 1)
        result[(slice(start, start + size), slice(None), *reached)] = found

    spread(chunk, range(0, len(value), size))
    return result.reshape(-1, *node.shape)


def _reached(part: np.ndarray, node: Node, kernel: tuple[int, ...], before: tuple[int, ...]) -> tuple[slice, ...] | None:
    """The outputs, axis by axis, whose windows hold anything but zeros; None where there are none."""
    found, filled = [], part.any((0, 1))
    for axis, (front, k, step, dilation) in enumerate(zip(before, kernel, *steps_of(node, len(kernel)))):
        places = np.nonzero(filled.any(tuple(other for other in range(filled.ndim) if other != axis)))[0]
        if not len(places):
            return None
        first = -(-(int(places[0]) + front - (k - 1) * dilation) // step)
        last = (int(places[-1]) + front) // step
        found.append(slice(max(0, first), min(node.shape[2 + axis], last + 1)))
        if found[-1].start >= found[-1].stop:
            return None
    return tuple(found)


def _average(node: Node, inputs: list[np.ndarray], weigh: Weigh) -> np.ndarray:
    """The mean over the values of a window that count: those of the input, with `count_include_pad` also those of the pads."""
    value, kernel = inputs[0][:, 0], tuple(node.attributes["kernel_shape"])
    pads = tuple(node.attributes.get("pads") or (0,) * 2 * len(kernel))
    before, after, inner = pads[:len(kernel)], pads[len(kernel):], tuple(range(2, 2 + len(kernel)))
    included = bool(node.attributes.get("count_include_pad"))
    spatial = [n + p + q for n, p, q in zip(value.shape[2:], before, after)] if included else value.shape[2:]
    counts = windows(np.ones((1, 1, *spatial)), node, kernel, (0,) * len(kernel) if included else before, 0.0).sum(inner)
    share = weigh(1) / weigh(np.maximum(counts, 1))
    return (windows(value, node, kernel, before, 0).sum(inner) * share).reshape(-1, *node.shape)


def _reduce(node: Node, inputs: list[np.ndarray], weigh: Weigh) -> np.ndarray:
    axes = tuple(axis + 1 for axis in node.attributes["axes"])
    total = inputs[0].sum(axes).reshape(-1, *node.shape)
    return total if node.op == "ReduceSum" else total * (weigh(1) / weigh(prod(inputs[0].shape[axis] for axis in axes)))


def _slice(node: Node, inputs: list[np.ndarray], weigh: Weigh) -> np.ndarray:
    value, a = inputs[0], node.attributes
    for axis, start, end, step in zip(a["axes"], a["starts"], a["ends"], a["steps"], strict=True):
        size = value.shape[axis + 1]
        kept = range(start, min(end, size), step) if step > 0 else range(min(start, size - 1), max(end, -1), step)
        value = value.take(list(kept), axis + 1)
    return value


def _pad(node: Node, inputs: list[np.ndarray], weigh: Weigh, fill: float = 0) -> np.ndarray:
    pads, n = node.attributes["pads"], len(node.shape)
    value = inputs[0][(slice(None), *(slice(max(0, -pads[i]), size - max(0, -pads[n + i])) for i, size in enumerate(inputs[0].shape[1:])))]
    return np.pad(value, [(0, 0), *((max(0, pads[i]), max(0, pads[n + i])) for i in range(n))], constant_values=fill)


def _gather(node: Node, inputs: list[np.ndarray], weigh: Weigh) -> np.ndarray:
    axis, indices = node.attributes["axis"] + 1, np.asarray(node.constants["indices"]).reshape(-1)
    return inputs[0].take(indices % inputs[0].shape[axis], axis).reshape(-1, *node.shape)


def _sum(node: Node, inputs: list[np.ndarray], weigh: Weigh) -> np.ndarray:
    left, right = (align(value, len(node.shape)) for value in inputs)
    return left + right * weigh(-1 if node.op == "Sub" else 1)


_MAPS: dict[str, Callable[[Node, list[np.ndarray], Weigh], np.ndarray]] = {
    "Linear": _linear, "LeftMatMul": _left, "Conv": _conv, "ConvTranspose": _conv_transpose, "AveragePool": _average, "ReduceSum": _reduce,
    "ReduceMean": _reduce, "Slice": _slice, "Pad": _pad, "Gather": _gather, "Add": _sum, "Sub": _sum,
    "Scale": lambda node, inputs, weigh: inputs[0] * weigh(node.constants["scale"]),
    "Reshape": lambda node, inputs, weigh: inputs[0].reshape(-1, *node.shape),
    "Expand": lambda node, inputs, weigh: np.broadcast_to(align(inputs[0], len(node.shape)), (len(inputs[0]), *node.shape)),
    "Transpose": lambda node, inputs, weigh: inputs[0].transpose(0, *(axis + 1 for axis in node.attributes["perm"])),
    "Concat": lambda node, inputs, weigh: np.concatenate(inputs, node.attributes["axis"] + 1),
}
