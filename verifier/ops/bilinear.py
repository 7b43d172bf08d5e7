"""Products of two values of the network."""
from __future__ import annotations

from torch import Tensor

from verifier.graph.ir import Node
from verifier.ops.affine import align
from verifier.ops.rule import Rule, register


@register("Mul")
class Mul(Rule):
    """x * y, broadcast."""

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        rank = len(node.shape)
        return align(inputs[0], rank) * align(inputs[1], rank)
