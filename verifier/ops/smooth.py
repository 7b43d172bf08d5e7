"""Smooth S-shaped activations: Sigmoid and Tanh, convex left of zero and concave right of it."""
from __future__ import annotations

from torch import Tensor

from verifier.graph.ir import Node
from verifier.ops.rule import ElementwiseOp, register


@register("Sigmoid")
class Sigmoid(ElementwiseOp):
    """1 / (1 + exp(-x))."""

    kind = "sigmoid"

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].sigmoid()


@register("Tanh")
class Tanh(ElementwiseOp):
    """tanh(x)."""

    kind = "tanh"

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].tanh()
