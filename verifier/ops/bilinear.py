"""Products of two values of the network, between McCormick's planes.

With x in [a, b] and y in [c, d]:

    x y >= c x + a y - a c     and     x y >= d x + b y - b d      because (x - a)(y - c) >= 0 and (b - x)(d - y) >= 0
    x y <= d x + a y - a d     and     x y <= c x + b y - b c      because (x - a)(d - y) >= 0 and (b - x)(y - c) >= 0

alpha mixes the two lower planes, and the two upper ones: (1 - alpha) times the first plus alpha times the second.

Ref: McCormick, Mathematical Programming 10 (1976), 147-175, for products.
"""
from __future__ import annotations

import torch
from torch import Tensor

from verifier.box import Box
from verifier.form import BilinearRelaxation
from verifier.graph.ir import Node
from verifier.ops.affine import align, sum_to_shape
from verifier.ops.rule import Alpha, NonlinearOp, lower_upper_alpha, register


@register("Mul")
class Mul(NonlinearOp):
    """x * y, broadcast."""

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        rank = len(node.shape)
        return align(inputs[0], rank) * align(inputs[1], rank)

    def interval(self, node: Node, *boxes: Box) -> Box:
        """The least and the largest of the four products of ends."""
        left, right = boxes
        products = [self.forward(node, x, y) for x in (left.lower, left.upper) for y in (right.lower, right.upper)]
        low = torch.minimum(torch.minimum(products[0], products[1]), torch.minimum(products[2], products[3]))
        high = torch.maximum(torch.maximum(products[0], products[1]), torch.maximum(products[2], products[3]))
        return Box(low, high)

    def unstable(self, node: Node, *boxes: Box) -> tuple[Tensor, ...]:
        """Coordinates of products neither of whose factors is a constant."""
        rank = len(node.shape)
        wide = tuple(align((box.upper > box.lower).to(box.lower.dtype), rank) for box in boxes)
        both = wide[0] * wide[1]
        return tuple(sum_to_shape(both, tuple(box.lower.shape[1:])) > 0 for box in boxes)

    def start(self, node: Node, *boxes: Box) -> tuple[Tensor, ...]:
        """One half: at the centre of the box the two planes of a side are equal."""
        half = torch.full_like(self.forward(node, boxes[0].lower, boxes[1].lower), 0.5)
        return half, half

    def relax(self, node: Node, left: Box, right: Box, alpha: Alpha = None) -> BilinearRelaxation:
        rank = len(node.shape)
        below, above = self.start(node, left, right) if alpha is None else lower_upper_alpha(alpha)
        a, b, c, d = (align(bound, rank) for bound in (left.lower, left.upper, right.lower, right.upper))

        def mix(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
            return first + share * (second - first)

        return BilinearRelaxation(
            lower_left=mix(c, d, below), lower_right=mix(a, b, below), lower_offset=mix(-a * c, -b * d, below),
            upper_left=mix(d, c, above), upper_right=mix(a, b, above), upper_offset=mix(-a * d, -b * c, above),
        )
