"""Lowering: what an ONNX operation is turned into nodes with. Plain numpy; no protobuf, no torch.

A value of the ONNX graph is either a numpy array (known before any input is) or a `Variable` (a node made here). An operation's lowering
is a function `(OnnxNode, Lowering) -> Value` that adds nodes of the vocabulary of `graph/ir.py` and returns the value of the ONNX node's
output (a tuple where it has several). It refuses with an `UnsupportedError` whose message is the reason alone; the loader collects all.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from verifier.errors import ModelError, ShapeError, UnsupportedError
from verifier.graph.ir import Node

Shape = tuple[int, ...]
# A value of this many float64 numbers fills 1 GiB: what is larger is a damaged file, not a network to be verified.
MOST_VALUES = 2**27
MOST_AXES = 24


@dataclass(frozen=True, slots=True)
class Variable:
    """A value that depends on the network's input: node `name`, of shape `shape`."""

    name: str
    shape: Shape


Value = Variable | np.ndarray


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One ONNX node whose inputs are known. An absent optional input is None; an output that nobody reads is the empty name."""

    name: str
    op: str
    opset: int
    inputs: tuple[Value | None, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def given(self, index: int) -> Value | None:
        """Input `index`, None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def value(self, index: int) -> Value:
        """Input `index`, which must be there."""
        value = self.given(index)
        if value is None:
            raise ModelError(f"{self.op} {self.name!r} lacks its input number {index + 1}.")
        return value

    def variable(self, index: int) -> Variable:
        """Input `index`, which must depend on the network's input."""
        value = self.value(index)
        if not isinstance(value, Variable):
            raise UnsupportedError(f"a constant as input number {index + 1}")
        return value

    def constant(self, index: int, what: str) -> np.ndarray | None:
        """Input `index`, which must be known (None where it is absent); `what` names it in the refusal."""
        value = self.given(index)
        if isinstance(value, Variable):
            raise UnsupportedError(f"{what} that depend on the network's input")
        return value

    def flag(self, attribute: str, default: bool = False) -> bool:
        """An attribute that is 0 or 1; runtimes disagree on what another number means."""
        number = self.attributes.get(attribute, int(default))
        if number not in (0, 1):
            raise ModelError(f"{self.op} {self.name!r} has {attribute} = {number}, which is neither 0 nor 1.")
        return bool(number)

    def integers(self, index: int, attribute: str) -> Shape | None:
        """Integers that older opsets give as an attribute and newer ones as input `index`; None where they are absent."""
        if attribute in self.attributes:
            given = self.attributes[attribute]
            return tuple(int(v) for v in (given if isinstance(given, (list, tuple)) else [given]))
        array = self.constant(index, attribute)
        return None if array is None else tuple(int(v) for v in array.reshape(-1))


Lower = Callable[[OnnxNode, "Lowering"], Value | tuple[Value, ...]]


class Lowering:
    """The nodes made so far, by name in topological order. `dtype`: float32, or float64 where the file says so."""

    def __init__(self, taken: frozenset[str], dtype: np.dtype) -> None:
        self.nodes: dict[str, Node] = {}
        self.dtype = dtype
        self._taken = taken
        self._stem = ""
        self._fresh: set[str] = set()

    def begin(self, stem: str) -> None:
        """What is added from here on belongs to the ONNX value `stem`, and is named after it."""
        self._stem = stem
        self._fresh.clear()

    def add(
        self,
        op: str,
        inputs: tuple[Variable, ...],
        shape: Shape,
        constants: Mapping[str, np.ndarray] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Variable:
        """A new node, under a name that no ONNX value bears."""
        if not 0 < math.prod(shape) <= MOST_VALUES:
            raise ModelError(f"{op} {self._stem!r} has the shape {tuple(shape)}: no value at all, or more than {MOST_VALUES} of them.")
        if len(shape) > MOST_AXES:
            raise UnsupportedError(f"a value of {len(shape)} axes, more than {MOST_AXES}")
        name, count = f"{self._stem}/{op}", 1
        while name in self.nodes or name in self._taken:
            count += 1
            name = f"{self._stem}/{op}_{count}"
        shape = tuple(int(size) for size in shape)
        own = {key: self.keep(value) for key, value in (constants or {}).items()}
        self.nodes[name] = Node(name, op, tuple(v.name for v in inputs), shape, own, dict(attributes or {}))
        self._fresh.add(name)
        return Variable(name, shape)

    def publish(self, variable: Variable, name: str) -> Variable:
        """The variable under its ONNX name where it was made since `begin` and nothing reads it yet; else as it is."""
        if variable.name not in self._fresh or any(variable.name in self.nodes[other].inputs for other in self._fresh):
            return variable
        self._fresh.remove(variable.name)
        self.nodes[name] = replace(self.nodes.pop(variable.name), name=name)
        return Variable(name, variable.shape)

    def broadcast(self, *shapes: Shape) -> Shape:
        """The common shape of numpy's broadcasting.

        Raises:
            ShapeError: there is none.
        """
        try:
            return np.broadcast_shapes(*shapes)
        except ValueError:
            shown = " and ".join(str(shape) for shape in shapes)
            raise ShapeError(f"The inputs of {self._stem!r} have shapes {shown}, which do not broadcast: is the file damaged?") from None

    def keep(self, value: np.ndarray) -> np.ndarray:
        """A constant as a node holds it: an array of its own, for what is read from a file cannot be written to."""
        return np.array(value, order="C")

    def floats(self, array: np.ndarray | float) -> np.ndarray:
        """A constant of a node: floating, at least as precise as it was."""
        array = np.asarray(array)
        return array if array.dtype in (np.float32, np.float64) else array.astype(self.dtype)

    def reshape(self, x: Variable, shape: Shape) -> Variable:
        """x with the same values in C order; no node where x has that shape already."""
        if int(np.prod(x.shape)) != int(np.prod(shape)):
            raise ShapeError(f"{self._stem!r} reshapes {x.shape} to {tuple(shape)}, which holds another number of values: is its batch 1?")
        return x if x.shape == tuple(shape) else self.add("Reshape", (x,), shape)

    def expand(self, x: Variable, shape: Shape) -> Variable:
        """x broadcast to `shape`; no node where x has that shape already."""
        shape = self.broadcast(x.shape, shape)
        x = self.raise_rank(x, len(shape))
        return x if x.shape == shape else self.add("Expand", (x,), shape)

    def raise_rank(self, x: Variable, rank: int) -> Variable:
        """x with leading 1s, so that broadcasting cannot meet the batch dimension in front."""
        return self.reshape(x, (1,) * (rank - len(x.shape)) + x.shape)

    def scale(self, x: Variable, scale: np.ndarray | float, offset: np.ndarray | float, terms: np.ndarray | None = None) -> Variable:
        """x * scale + offset, x expanded first where a constant is larger; `terms` where a runtime sums the offset up from several terms."""
        scale, offset = self.floats(scale), self.floats(offset)
        x = self.expand(x, self.broadcast(x.shape, tuple(scale.shape), tuple(offset.shape)))
        extra = {} if terms is None else {"terms": self.floats(terms)}
        return self.add("Scale", (x,), x.shape, {"scale": scale, "offset": offset, **extra})

    def sum_of(self, op: str, x: Variable, y: Variable) -> Variable:
        """x + y or x - y (op Add, Sub), of one rank."""
        shape = self.broadcast(x.shape, y.shape)
        return self.add(op, (self.raise_rank(x, len(shape)), self.raise_rank(y, len(shape))), shape)

    def product(self, x: Variable, y: Variable) -> Variable:
        """x * y, both expanded to the common shape."""
        shape = self.broadcast(x.shape, y.shape)
        return self.add("Mul", (self.expand(x, shape), self.expand(y, shape)), shape)

    def relu(self, x: Variable) -> Variable:
        return self.add("Relu", (x,), x.shape)

    def take(self, x: Variable, indices: np.ndarray, axis: int) -> Variable:
        """x[..., indices, ...] along one axis; indices non-negative, of any shape."""
        shape = x.shape[:axis] + indices.shape + x.shape[axis + 1:]
        return self.add("Gather", (x,), shape, {"indices": indices.astype(np.int64)}, {"axis": axis})


def positive_axis(axis: int, rank: int) -> int:
    """The axis counted from the first dimension.

    Raises:
        ShapeError: a tensor of that rank has no such axis.
    """
    if not -rank <= axis < rank:
        raise ShapeError(f"Axis {axis} is not an axis of a tensor with {rank} dimensions: is the file damaged?")
    return axis % rank


def positive_axes(axes: Shape, rank: int) -> Shape:
    return tuple(positive_axis(axis, rank) for axis in axes)
