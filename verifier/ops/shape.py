"""Operations that move, repeat, drop or sum coordinates: no weight is negative, so both ends of an interval go through the operation
itself.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from verifier.box import Box
from verifier.graph.ir import Node
from verifier.ops.affine import align, sum_to_shape
from verifier.ops.rule import AffineOp, register


class NonNegativeOp(AffineOp):
    """f(x) = L x + shift with every entry of L >= 0: monotone in every input, so [f(l), f(u)] is the exact interval image."""

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return self.linear(node, *inputs)

    def shift(self, node: Node, like: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> Tensor | None:
        return None

    def interval(self, node: Node, *boxes: Box) -> Box:
        return Box(self.forward(node, *(box.lower for box in boxes)), self.forward(node, *(box.upper for box in boxes)))


def shifted(axes: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of node.shape as axes of a value with its batch in front."""
    return tuple(axis + 1 for axis in axes)


def padding_order(pads: tuple[int, ...]) -> list[int]:
    """ONNX pads (all begins, then all ends) in torch's order: begin and end of the last axis first."""
    rank = len(pads) // 2
    return [amount for axis in reversed(range(rank)) for amount in (pads[axis], pads[rank + axis])]


@register("Reshape")
class Reshape(NonNegativeOp):
    """The same numbers in C order, as node.shape."""

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].reshape(inputs[0].shape[0], *node.shape)

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        return (coeff.reshape(coeff.shape[0], *input_shapes[0]),)


@register("Expand")
class Expand(NonNegativeOp):
    """Broadcast to node.shape."""

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        return align(inputs[0], len(node.shape)).expand(inputs[0].shape[0], *node.shape)

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        return (sum_to_shape(coeff, input_shapes[0]),)


@register("Transpose")
class Transpose(NonNegativeOp):
    """Axes permuted: output axis i is input axis perm[i]."""

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].permute(0, *shifted(node.attributes["perm"]))

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        perm = tuple(node.attributes["perm"])
        return (coeff.permute(0, *(perm.index(axis) + 1 for axis in range(len(perm)))),)


@register("Concat")
class Concat(NonNegativeOp):
    """Inputs side by side along `axis`."""

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, node.attributes["axis"] + 1)

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        axis = node.attributes["axis"]
        return coeff.split([shape[axis] for shape in input_shapes], axis + 1)


def slice_indices(start: int, end: int, step: int, size: int) -> range:
    """The coordinates that one axis of a Slice keeps; for a negative step an end below zero means `through the first one`."""
    return range(start, min(end, size), step) if step > 0 else range(min(start, size - 1), max(end, -1), step)


@register("Slice")
class Slice(NonNegativeOp):
    """Every step-th coordinate from start to end (exclusive) of the named axes; steps may be negative."""

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        value = inputs[0]
        for axis, start, end, step in self._axes(node):
            kept = slice_indices(start, end, step, value.shape[axis + 1])
            if step > 0:
                value = value[(slice(None),) * (axis + 1) + (slice(kept.start, max(kept.start, kept.stop), step),)]
            else:
                value = value.index_select(axis + 1, torch.tensor(list(kept), dtype=torch.int64, device=value.device))
        return value

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        for axis, start, end, step in self._axes(node):
            size = input_shapes[0][axis]
            kept = torch.tensor(list(slice_indices(start, end, step, size)), dtype=torch.int64, device=coeff.device)
            wide = coeff.new_zeros(*coeff.shape[: axis + 1], size, *coeff.shape[axis + 2 :])
            coeff = wide.index_copy(axis + 1, kept, coeff)
        return (coeff,)

    @staticmethod
    def _axes(node: Node) -> list[tuple[int, int, int, int]]:
        a = node.attributes
        return list(zip(a["axes"], a["starts"], a["ends"], a["steps"], strict=True))


@register("Gather")
class Gather(NonNegativeOp):
    """Coordinates `indices` (a constant of any shape) of one axis."""

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        axis = node.attributes["axis"] + 1
        return inputs[0].index_select(axis, self._indices(node, inputs[0].shape[axis])).reshape(inputs[0].shape[0], *node.shape)

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        axis, shape = node.attributes["axis"], input_shapes[0]
        indices = self._indices(node, shape[axis])
        flat = coeff.reshape(coeff.shape[0], *shape[:axis], indices.numel(), *shape[axis + 1 :])
        return (coeff.new_zeros(coeff.shape[0], *shape).index_add(axis + 1, indices, flat),)

    @staticmethod
    def _indices(node: Node, size: int) -> Tensor:
        return node.constants["indices"].flatten() % size


@register("Pad")
class Pad(NonNegativeOp):
    """Constant `value` around the input; negative pads crop."""

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return F.pad(inputs[0], padding_order(node.attributes["pads"]), value=node.attributes.get("value", 0.0))

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        return F.pad(inputs[0], padding_order(node.attributes["pads"]))

    def shift(self, node: Node, like: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> Tensor | None:
        return self.forward(node, like.new_zeros(1, *input_shapes[0])) if node.attributes.get("value") else None

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        return (F.pad(coeff, [-amount for amount in padding_order(node.attributes["pads"])]),)


@register("ReduceSum")
class ReduceSum(NonNegativeOp):
    """Sum over `axes`; kept as ones or dropped, as node.shape says."""

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].sum(shifted(node.attributes["axes"])).reshape(inputs[0].shape[0], *node.shape)

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        shape, axes = input_shapes[0], node.attributes["axes"]
        kept = coeff.reshape(coeff.shape[0], *(1 if axis in axes else size for axis, size in enumerate(shape)))
        return (kept.expand(coeff.shape[0], *shape),)


@register("ReduceMean")
class ReduceMean(ReduceSum):
    """Mean over `axes`."""

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].mean(shifted(node.attributes["axes"])).reshape(inputs[0].shape[0], *node.shape)

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        count = 1
        for axis in node.attributes["axes"]:
            count *= input_shapes[0][axis]
        return super().adjoint(node, coeff / count, input_shapes)
