"""Piecewise linear activations: Relu, LeakyRelu, Clip."""
from __future__ import annotations

import torch
from torch import Tensor

from verifier.graph.ir import Node
from verifier.ops.rule import ElementwiseOp, register


@register("Relu")
class Relu(ElementwiseOp):
    """max(x, 0)."""

    kind = "relu"

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].clamp(min=0)


@register("LeakyRelu")
class LeakyRelu(ElementwiseOp):
    """x where x >= 0, slope * x elsewhere."""

    kind = "leaky_relu"

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return torch.where(inputs[0] >= 0, inputs[0], inputs[0] * node.attributes["slope"])


@register("Clip")
class Clip(ElementwiseOp):
    """min(max(x, lower), upper)."""

    kind = "clip"

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].clamp(node.attributes["lower"], node.attributes["upper"])
