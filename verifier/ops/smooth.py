"""Smooth S-shaped activations: Sigmoid and Tanh, convex left of zero and concave right of it.

Both are h + h0 with h odd. The lower plane of an S-shaped h over [l, u] is

    a tangent at t, where h is convex and the tangent stays below h(u):  l <= t <= t*,
    the chord from l to u, where there is no such t.

t* is u itself where u <= 0, else the point whose tangent passes through (u, h(u)). alpha moves t from l to t*. The upper plane is the
lower one of the interval [-u, -l], turned about the origin: h(x) = -h(-x).

Sound, also in floating point: with the slope s fixed, the offset is the least of h(x) - s x over the points where that minimum can lie (l,
u and the tangent point), minus `16 ulp (1 + |s| max(|l|, |u|))`, more than those values' own rounding.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from verifier.box import Box
from verifier.form import Relaxation
from verifier.graph.ir import Node
from verifier.ops.rule import Alpha, ElementwiseOp, lower_upper_alpha, register

_BISECTIONS = 40
_MARGIN_ULPS = 16


class SShapedOp(ElementwiseOp):
    """f(x) = h(x) + h0 with h odd, increasing, convex on x <= 0."""

    center_value: ClassVar[float] = 0.0

    def odd(self, x: Tensor) -> Tensor:
        """h(x)."""
        raise NotImplementedError

    def derivative(self, x: Tensor) -> Tensor:
        """h'(x)."""
        raise NotImplementedError

    def start(self, node: Node, box: Box) -> tuple[Tensor, ...]:
        """The tangents at the centre m of the box, or at t* where t* < m: of all valid tangents those that are tightest at m."""
        return self._start(box.lower, box.upper), self._start(-box.upper, -box.lower)

    def relax(self, node: Node, box: Box, alpha: Alpha = None) -> Relaxation:
        return self.relax_from(box, self.limits(box), self.start(node, box) if alpha is None else alpha)

    def family(self, node: Node, box: Box) -> Callable[[Alpha], Relaxation]:
        limits = self.limits(box)
        return lambda alpha: self.relax_from(box, limits, self.start(node, box) if alpha is None else alpha)

    def limits(self, box: Box) -> tuple[Tensor, Tensor]:
        """The last tangent points of the lower and of the (turned) upper plane: all that a box's planes need beside alpha."""
        return self.last_tangent(box.lower, box.upper), self.last_tangent(-box.upper, -box.lower)

    def relax_from(self, box: Box, limits: tuple[Tensor, Tensor], alpha: Alpha) -> Relaxation:
        """`relax` with the limits at hand, for many alphas over one box."""
        below, above = lower_upper_alpha(alpha)
        lower_slope, lower_offset = self._lower_plane(box.lower, box.upper, limits[0], below)
        upper_slope, upper_offset = self._lower_plane(-box.upper, -box.lower, limits[1], above)
        return Relaxation(lower_slope, lower_offset + self.center_value, upper_slope, self.center_value - upper_offset)

    def _start(self, lower: Tensor, upper: Tensor) -> Tensor:
        last = self.last_tangent(lower, upper)
        wanted = torch.minimum((lower + upper) / 2, last)
        room = last > lower
        return torch.where(room, (wanted - lower) / torch.where(room, last - lower, 1.0), 1.0)

    @torch.no_grad()
    def last_tangent(self, lower: Tensor, upper: Tensor) -> Tensor:
        """t*: the largest t in [l, min(u, 0)] whose tangent is at most h(u) at u, or l where there is none; by bisection, from below.

        g(t) = h(t) + h'(t) (u - t) - h(u) increases on t <= 0, because g'(t) = h''(t) (u - t).
        """
        below, above = lower.clone(), upper.clamp(max=0)
        target = self.odd(upper)
        for _ in range(_BISECTIONS):
            middle = (below + above) / 2
            valid = self.odd(middle) + self.derivative(middle) * (upper - middle) <= target
            below, above = torch.where(valid, middle, below), torch.where(valid, above, middle)
        return torch.where(upper <= 0, upper, torch.minimum(below, upper.clamp(max=0)))

    def _lower_plane(self, lower: Tensor, upper: Tensor, last: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and offset of a plane below h over [lower, upper], with `last` the last tangent point."""
        at_lower, at_upper = self.odd(lower), self.odd(upper)
        tangent = (lower < 0) & ((last > lower) | (upper <= 0))
        point = torch.where(tangent, lower + alpha * (last - lower), lower)
        apart = upper > lower
        chord = torch.where(apart, (at_upper - at_lower) / torch.where(apart, upper - lower, 1.0), self.derivative(lower))
        slope = torch.where(tangent, self.derivative(point), chord)
        touching = torch.minimum(torch.minimum(at_lower - slope * lower, at_upper - slope * upper), self.odd(point) - slope * point)
        reach = torch.maximum(lower.abs(), upper.abs())
        margin = _MARGIN_ULPS * torch.finfo(lower.dtype).eps * (1 + slope * reach)
        return slope, touching - margin


@register("Sigmoid")
class Sigmoid(SShapedOp):
    """1 / (1 + exp(-x)) = 1/2 + tanh(x / 2) / 2."""

    kind = "sigmoid"
    center_value = 0.5

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].sigmoid()

    def odd(self, x: Tensor) -> Tensor:
        return (x / 2).tanh() / 2

    def derivative(self, x: Tensor) -> Tensor:
        return x.sigmoid() * (-x).sigmoid()


@register("Tanh")
class Tanh(SShapedOp):
    """tanh(x)."""

    kind = "tanh"

    def forward(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0].tanh()

    def odd(self, x: Tensor) -> Tensor:
        return x.tanh()

    def derivative(self, x: Tensor) -> Tensor:
        """1 - tanh(x)^2 = 4 sigmoid(2x) sigmoid(-2x), which keeps its digits far from zero."""
        return 4 * (2 * x).sigmoid() * (-2 * x).sigmoid()
