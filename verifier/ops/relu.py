"""Piecewise linear activations: Relu, LeakyRelu, Clip.

Each has one or two kinks. Over an interval that a kink divides, the plane on the side where f is convex (from below) or concave (from
above) may turn about the kink: that is the freedom that alpha names. The other plane is the chord.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from verifier.box import Box
from verifier.form import Relaxation
from verifier.graph.ir import Node
from verifier.ops.rule import Alpha, ElementwiseOp, lower_upper_alpha, register


def straddles(box: Box, kink: float) -> Tensor:
    """l < kink < u."""
    return (box.lower < kink) & (box.upper > kink)


@register("Relu")
class Relu(ElementwiseOp):
    """max(x, 0)."""

    kind = "relu"
    decided_by_sign = True

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].clamp(min=0)

    def unstable(self, node: Node, *boxes: Box) -> tuple[Tensor, ...]:
        return (straddles(boxes[0], 0.0),)

    def start(self, node: Node, box: Box) -> tuple[Tensor, ...]:
        """1 where u > -l, else 0: the lower plane that cuts off the smaller area."""
        return ((box.upper > -box.lower).to(box.lower.dtype),)

    def relax(self, node: Node, box: Box, alpha: Alpha = None) -> Relaxation:
        """alpha x <= max(x, 0) <= u (x - l) / (u - l) for l < 0 < u; x or 0 itself where the sign is known.

        Sound: the upper offset is the larger of -s l and u - s u, which differ by rounding only.
        """
        lower, upper = box.lower, box.upper
        free = straddles(box, 0.0)
        active = (lower >= 0).to(lower.dtype)
        slope = torch.where(free, upper / torch.where(free, upper - lower, 1.0), active)
        offset = torch.where(free, torch.maximum(-slope * lower, upper - slope * upper), 0.0)
        chosen = lower_upper_alpha(alpha)[0]
        below = torch.where(free, self.start(node, box)[0] if chosen is None else chosen, active)
        return Relaxation(below, torch.zeros_like(lower), slope, offset)

    def family(self, node: Node, box: Box) -> Callable[[Alpha], Relaxation]:
        fixed, free = self.relax(node, box), straddles(box, 0.0)

        def planes(alpha: Alpha) -> Relaxation:
            chosen = lower_upper_alpha(alpha)[0]
            return fixed if chosen is None else replace(fixed, lower_slope=torch.where(free, chosen, fixed.upper_slope))

        return planes


@register("LeakyRelu")
class LeakyRelu(ElementwiseOp):
    """x where x >= 0, slope * x elsewhere: convex for slope <= 1, concave for slope >= 1, falling left of zero for slope < 0."""

    kind = "leaky_relu"
    decided_by_sign = True

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return torch.where(inputs[0] >= 0, inputs[0], inputs[0] * node.attributes["slope"])

    def interval(self, node: Node, *boxes: Box) -> Box:
        """The smallest and the largest of f(l), f(u) and, where l < 0 < u, f(0) = 0."""
        left, right = self.forward(node, boxes[0].lower), self.forward(node, boxes[0].upper)
        turn = straddles(boxes[0], 0.0)
        least, most = torch.minimum(left, right), torch.maximum(left, right)
        return Box(torch.where(turn, least.clamp(max=0), least), torch.where(turn, most.clamp(min=0), most))

    def unstable(self, node: Node, *boxes: Box) -> tuple[Tensor, ...]:
        return (straddles(boxes[0], 0.0),)

    def start(self, node: Node, box: Box) -> tuple[Tensor, ...]:
        """The steeper line through zero where u > -l, the other elsewhere (from above, for a concave f, the opposite)."""
        right = (box.upper > -box.lower).to(box.lower.dtype)
        return (right if node.attributes["slope"] <= 1 else 1 - right,)

    def relax(self, node: Node, box: Box, alpha: Alpha = None) -> Relaxation:
        """For l < 0 < u the chord on one side; on the other the line through zero of slope min(slope, 1) + alpha |1 - slope|.

        The chord is above f for slope <= 1 (f convex) and below f for slope > 1 (f concave).
        """
        lower, upper, slope = box.lower, box.upper, node.attributes["slope"]
        free = straddles(box, 0.0)
        exact = torch.where(lower >= 0, torch.ones_like(lower), slope)
        chord = torch.where(free, (upper - slope * lower) / torch.where(free, upper - lower, 1.0), exact)
        ends = slope * lower - chord * lower, upper - chord * upper
        offset = torch.where(free, torch.maximum(*ends) if slope <= 1 else torch.minimum(*ends), 0.0)
        chosen = lower_upper_alpha(alpha)[0 if slope <= 1 else 1]
        chosen = self.start(node, box)[0] if chosen is None else chosen
        turning = torch.where(free, min(slope, 1.0) + chosen * abs(1.0 - slope), exact)
        zero = torch.zeros_like(lower)
        return Relaxation(turning, zero, chord, offset) if slope <= 1 else Relaxation(chord, offset, turning, zero)


@register("Clip")
class Clip(ElementwiseOp):
    """min(max(x, lower), upper): convex at the lower limit a, concave at the upper limit b."""

    kind = "clip"

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].clamp(node.attributes["lower"], node.attributes["upper"])

    def unstable(self, node: Node, *boxes: Box) -> tuple[Tensor, ...]:
        return (straddles(boxes[0], node.attributes["lower"]) | straddles(boxes[0], node.attributes["upper"]),)

    def start(self, node: Node, box: Box) -> tuple[Tensor, ...]:
        """Each plane turned or level, whichever leaves the smaller area: turned where the box's centre is beyond the kink."""
        below = box.center > node.attributes["lower"]
        above = box.center < node.attributes["upper"]
        return below.to(box.lower.dtype), above.to(box.lower.dtype)

    def relax(self, node: Node, box: Box, alpha: Alpha = None) -> Relaxation:
        """Below: through (p, f(p)), p = the kink a (or l, if l > a), with slope alpha times that of the chord from p to u. Above: mirrored
        at b.

        Where l >= a the lower plane is the chord itself, where u <= b the upper one is: no plane lies between it and f.
        """
        first, last = self.start(node, box) if alpha is None else lower_upper_alpha(alpha)
        at_lower, at_upper = self.forward(node, box.lower), self.forward(node, box.upper)
        low_pivot = torch.minimum(box.lower.clamp(min=node.attributes["lower"]), box.upper)
        high_pivot = torch.maximum(box.upper.clamp(max=node.attributes["upper"]), box.lower)
        below = _chord(low_pivot, self.forward(node, low_pivot), box.upper, at_upper)
        above = _chord(box.lower, at_lower, high_pivot, self.forward(node, high_pivot))
        below = torch.where(box.lower < node.attributes["lower"], below * first, below)
        above = torch.where(box.upper > node.attributes["upper"], above * last, above)
        lower_offset = torch.minimum(self.forward(node, low_pivot) - below * low_pivot, at_upper - below * box.upper)
        upper_offset = torch.maximum(self.forward(node, high_pivot) - above * high_pivot, at_lower - above * box.lower)
        return Relaxation(below, lower_offset, above, upper_offset)


def _chord(left: Tensor, at_left: Tensor, right: Tensor, at_right: Tensor) -> Tensor:
    """The slope from (left, at_left) to (right, at_right); zero where left = right."""
    apart = right > left
    return torch.where(apart, (at_right - at_left) / torch.where(apart, right - left, 1.0), 0.0)
