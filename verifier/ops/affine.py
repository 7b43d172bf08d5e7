"""Dense affine operations: products with constant matrices, scaling, sums of two values.

Each rule holds L itself (`linear`), its transpose (`adjoint`) and, through the base classes, the interval image that follows from |L|.
"""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from verifier.box import Box
from verifier.graph.ir import Node
from verifier.ops.rule import AffineOp, SignedAffineOp, register


def align(value: Tensor, rank: int) -> Tensor:
    """`(B, *shape)` with ones inserted after the batch until `shape` has `rank` axes: broadcasting from the right, batch kept apart."""
    missing = rank - (value.ndim - 1)
    return value if missing <= 0 else value.reshape(value.shape[0], *(1,) * missing, *value.shape[1:])


def sum_to_shape(coeff: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The transpose of broadcasting `shape` to coeff's: sums over every axis that was repeated. `(R, *wide)` to `(R, *shape)`."""
    extra = coeff.ndim - 1 - len(shape)
    if extra:
        coeff = coeff.sum(tuple(range(1, 1 + extra)))
    repeated = tuple(axis + 1 for axis, size in enumerate(shape) if size == 1 and coeff.shape[axis + 1] != 1)
    return coeff.sum(repeated, keepdim=True) if repeated else coeff


@register("Linear")
class Linear(SignedAffineOp):
    """x @ weight.T + bias on the last axis; weight (out, in), bias (out,)."""

    signed = ("weight",)

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return F.linear(inputs[0], node.constants["weight"], node.constants.get("bias"))

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        return F.linear(inputs[0], node.constants["weight"])

    def shift(self, node: Node, like: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> Tensor | None:
        return node.constants.get("bias")

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        return (coeff @ node.constants["weight"],)


@register("LeftMatMul")
class LeftMatMul(SignedAffineOp):
    """weight @ x on the last two axes; weight (m, k)."""

    signed = ("weight",)

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return node.constants["weight"] @ inputs[0]

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        return node.constants["weight"] @ inputs[0]

    def shift(self, node: Node, like: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> Tensor | None:
        return None

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        return (node.constants["weight"].transpose(-1, -2) @ coeff,)


@register("Scale")
class Scale(SignedAffineOp):
    """x * scale + offset, both constants broadcast to x's own shape."""

    signed = ("scale",)

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0] * node.constants["scale"] + node.constants["offset"]

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0] * node.constants["scale"]

    def shift(self, node: Node, like: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> Tensor | None:
        return node.constants["offset"]

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        return (coeff * node.constants["scale"],)


@register("Add")
class Add(SignedAffineOp):
    """x + y, broadcast."""

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return self.linear(node, *inputs)

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        rank = len(node.shape)
        return align(inputs[0], rank) + align(inputs[1], rank)

    def shift(self, node: Node, like: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> Tensor | None:
        return None

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        return sum_to_shape(coeff, input_shapes[0]), sum_to_shape(coeff, input_shapes[1])


@register("Sub")
class Sub(AffineOp):
    """x - y, broadcast."""

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return self.linear(node, *inputs)

    def linear(self, node: Node, *inputs: Tensor) -> Tensor:
        rank = len(node.shape)
        return align(inputs[0], rank) - align(inputs[1], rank)

    def shift(self, node: Node, like: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> Tensor | None:
        return None

    def adjoint(self, node: Node, coeff: Tensor, input_shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        return sum_to_shape(coeff, input_shapes[0]), sum_to_shape(-coeff, input_shapes[1])

    def interval(self, node: Node, *boxes: Box) -> Box:
        left, right = boxes
        return Box(self.linear(node, left.lower, right.upper), self.linear(node, left.upper, right.lower))
