"""Relaxation planes of a stack's neurons under splits: the slopes and offsets that the backward pass multiplies with.

ReLU: lower plane alpha * z, upper plane u (z - l)/(u - l); a split turns both into z or 0. Other kinds take the planes of their own rule over the
interval that the domain's cuts leave, and alpha moves their free plane.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.box import Box
from verifier.ops import rule
from verifier.reduced.problem import RELU, Block, Stack

S_SHAPED = ("sigmoid", "tanh")


@dataclass(frozen=True, slots=True)
class Planes:
    """low * z + low_off <= s(z) <= up * z + up_off; slopes `(P, K, U)`, offsets `(P, K, U)`, `low_off` None where all are zero (ReLU)."""

    low: Tensor
    up: Tensor
    up_off: Tensor
    low_off: Tensor | None


@dataclass(frozen=True, slots=True)
class Domains:
    """The subsets that K rows are bounded over: `split (P, K, U)` in {0, +1, -1}, and for kinds other than ReLU the interval that is left.

    `lower, upper (P, K, U)` are None for ReLU stacks: their planes depend on the split alone. For another kind the split's sign says which end of
    the interval is a cut (+1: the lower one) and carries the multiplier beta.
    """

    split: Tensor
    lower: Tensor | None = None
    upper: Tensor | None = None

    def take(self, rows: Tensor) -> Domains:
        """The rows `(K',)` of every problem."""
        pick = lambda t: None if t is None else t[:, rows]  # noqa: E731
        return Domains(self.split[:, rows], pick(self.lower), pick(self.upper))


def relu_upper(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Slope u/(u - l) and offset -l u/(u - l) of the chord over [l, u], with l < 0 < u; identity or zero where the sign is known, NaN for NaN."""
    lo, hi = lower.clamp(max=0), upper.clamp(min=0)
    slope = torch.where(hi > lo, hi / (hi - lo).clamp(min=torch.finfo(lo.dtype).tiny), torch.zeros_like(lo))
    slope = torch.where(lower >= 0, torch.ones_like(slope), slope)
    slope = torch.where(torch.isnan(lower + upper), torch.nan, slope)
    return slope, torch.where((lower >= 0) | (upper <= 0), torch.zeros_like(lo), -slope * lo)


def start_alpha(stack: Stack) -> Tensor:
    """The adaptive start, `(P, U)`: slope 1 where u >= -l, else 0; one half (the middle of their range) for other kinds."""
    alpha = (stack.upper >= -stack.lower).to(stack.b.dtype)
    for block in stack.blocks:
        if block.kind != RELU:
            alpha[:, block.start:block.end] = 0.5
    return alpha


@dataclass(frozen=True, slots=True)
class Fixed:
    """What the planes of some domains have beside alpha: `low (P, K, U)` the lower slopes at split ReLUs, `up, up_off (P, K, U)` the ReLUs' upper

    planes, and `limits`, the last tangent points of the S-shaped neurons, `(P, K, U)` each (None for ReLU stacks).
    """

    low: Tensor
    up: Tensor
    up_off: Tensor
    limits: tuple[Tensor, Tensor] | None

    def take(self, rows: Tensor) -> Fixed:
        limits = None if self.limits is None else tuple(t[:, rows] for t in self.limits)
        return Fixed(self.low[:, rows], self.up[:, rows], self.up_off[:, rows], limits)


def fixed_planes(stack: Stack, domains: Domains) -> Fixed:
    """The part of the domains' planes that no alpha moves."""
    slope, offset = relu_upper(stack.lower, stack.upper)
    free, active = domains.split == 0, (domains.split > 0).to(stack.b.dtype)
    up = torch.where(free, slope.unsqueeze(1), active)
    return Fixed(active, up, offset.unsqueeze(1) * free, None if stack.is_relu else _limits(stack, domains))


def _limits(stack: Stack, domains: Domains) -> tuple[Tensor, Tensor]:
    """Computed once where all rows share one interval (an expanded tensor)."""
    shared = domains.lower.stride(1) == 0
    lower, upper = (t[:, :1] if shared else t for t in (domains.lower, domains.upper))
    below, above = torch.zeros_like(lower), torch.zeros_like(lower)
    for block in stack.blocks:
        at = slice(block.start, block.end)
        if block.kind in S_SHAPED and block.size:
            below[..., at], above[..., at] = rule.elementwise_of_kind(block.kind).limits(Box(lower[..., at], upper[..., at]))
    return below.expand_as(domains.lower), above.expand_as(domains.lower)


def planes_at(stack: Stack, domains: Domains, fixed: Fixed, alpha: Tensor) -> Planes:
    """The planes for lower slopes `alpha (P, K, U)`; `fixed` is `fixed_planes` of the same domains."""
    low = torch.where(domains.split == 0, alpha, fixed.low)
    if stack.is_relu:
        return Planes(low, fixed.up, fixed.up_off, None)
    shape = domains.lower.shape
    low, up, up_off = (t.expand(shape).clone() for t in (low, fixed.up, fixed.up_off))
    low_off = torch.zeros_like(up)
    for block in stack.blocks:
        if block.kind != RELU and block.size:
            at = slice(block.start, block.end)
            low[..., at], low_off[..., at], up[..., at], up_off[..., at] = _block_planes(block, domains, fixed, alpha[..., at])
    return Planes(low, up, up_off, low_off)


def _block_planes(block: Block, domains: Domains, fixed: Fixed, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    at = slice(block.start, block.end)
    limits = (fixed.limits[0][..., at], fixed.limits[1][..., at])
    return kind_planes(block.kind, domains.lower[..., at], domains.upper[..., at], alpha, limits)


def kind_planes(
    kind: str, lower: Tensor, upper: Tensor, alpha: Tensor, limits: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(low, low_off, up, up_off) of one kind over [lower, upper], alpha in [0, 1] moving the tangent point."""
    if kind == "square":
        return _square_planes(lower, upper, alpha)
    own, box = rule.elementwise_of_kind(kind), Box(lower, upper)
    relaxation = own.relax_from(box, limits or own.limits(box), alpha)
    return relaxation.lower_slope, relaxation.lower_offset, relaxation.upper_slope, relaxation.upper_offset


def _square_planes(lower: Tensor, upper: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z^2 >= 2 p z - p^2 at any p; z^2 <= (l + u) z - l u on [l, u]."""
    point = lower + alpha * (upper - lower)
    return 2 * point, -point.square(), lower + upper, -lower * upper


def plane_gradient(stack: Stack, domains: Domains, fixed: Fixed, alpha: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """d/d alpha of sum(weights * (low, low_off, up, up_off)) at the neurons that are not ReLUs, `(P, K, U)`, zero elsewhere."""
    gradient = torch.zeros_like(alpha)
    for block in stack.blocks:
        if block.kind == RELU or not block.size:
            continue
        at = slice(block.start, block.end)
        with torch.enable_grad():
            own = alpha[..., at].detach().requires_grad_()
            parts = _block_planes(block, domains, fixed, own)
            total = sum((part * weight[..., at]).sum() for part, weight in zip(parts, weights))
            gradient[..., at] = torch.autograd.grad(total, own)[0]
    return gradient
