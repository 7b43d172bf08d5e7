"""Bounds over many sub-boxes of one reduced problem: every neuron bounded again on every box, planes of each box's own.

The right tool for few inputs, where splitting the input makes every layer tighter. Letters: N boxes, R rows, U neurons, n inputs.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.reduced.planes import kind_planes, relu_upper
from verifier.reduced.problem import RELU, Block, ReducedProblem, activation


@dataclass(frozen=True, slots=True)
class BoxBounds:
    """Each specification row m is at least <a, x - center> + middle over its box: `a (N, S, n)`, `middle (N, S)`; its minimum is `lower (N, S)`.

    `spread (N, S, n)` is what an input moves a row by where nothing cancels, |nu| |A|: which input matters for the relaxation.
    `z_lower, z_upper (N, U)` bound the neurons.
    """

    lower: Tensor
    a: Tensor
    middle: Tensor
    spread: Tensor
    z_lower: Tensor
    z_upper: Tensor


@dataclass(slots=True)
class _Planes:
    """Planes of the blocks met so far, `(N, U)` each, filled block by block."""

    low: Tensor
    low_off: Tensor
    up: Tensor
    up_off: Tensor
    h_low: Tensor
    h_high: Tensor


def box_bounds(problem: ReducedProblem, lower: Tensor, upper: Tensor) -> BoxBounds:
    """Bounds of all neurons and rows over each box `lower, upper (N, n)`, sub-boxes of [-1, 1]^n.

    A block's rows are bounded by intervals, and by a backward pass where that leaves some box's sign open; both are intersected with the
    problem's own bounds.
    """
    count, (center, radius) = len(lower), center_and_radius(lower, upper)
    z_lower, z_upper = problem.lower.expand(count, -1).clone(), problem.upper.expand(count, -1).clone()
    planes = _Planes(*(torch.zeros_like(z_lower) for _ in range(6)))
    for block in problem.blocks:
        if block.size:
            _bound_block(problem, block, center, radius, (z_lower, z_upper), planes)
            _fill(block, z_lower, z_upper, planes)
    middle, a, nu = _backward(problem, problem.W_o, problem.A_o, problem.b_o, problem.unstable, center, planes)
    spread = problem.A_o.abs() + nu.abs() @ problem.A.abs()
    return BoxBounds(middle - (a.abs() @ radius.unsqueeze(-1)).squeeze(-1), a, middle, spread, z_lower, z_upper)


def center_and_radius(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The centre, rounded, and a radius that still reaches both ends from it."""
    center = (lower + upper) / 2
    return center, torch.nextafter(torch.maximum(upper - center, center - lower), torch.full_like(lower, torch.inf))


def _bound_block(problem: ReducedProblem, block: Block, center: Tensor, radius: Tensor, z: tuple[Tensor, Tensor], planes: _Planes) -> None:
    """Tightens columns block.start..end of `z` in place."""
    at, before = slice(block.start, block.end), slice(block.reach, block.start)
    A, W = problem.A[at], problem.W[at, before]
    middle = center @ A.T + problem.b[at]
    reach = radius @ A.abs().T
    if block.start > block.reach:
        high, low = planes.h_high[:, before], planes.h_low[:, before]
        middle = middle + (high + low) / 2 @ W.T
        reach = reach + (high - low) / 2 @ W.abs().T
    lower, upper = torch.maximum(z[0][:, at], middle - reach), torch.minimum(z[1][:, at], middle + reach)
    open_rows = ((lower < 0) & (upper > 0)).any(0) if block.kind == RELU else torch.ones_like(lower[0], dtype=torch.bool)
    index = open_rows.nonzero().squeeze(-1)
    if block.start > block.reach and len(index):
        wo = problem.W[at][index, :block.start]
        middle, a, _ = _backward(
            problem, torch.cat([wo, -wo]), torch.cat([A[index], -A[index]]), torch.cat([problem.b[at][index], -problem.b[at][index]]),
            block.start, center, planes,
        )
        value = middle - (a.abs() @ radius.unsqueeze(-1)).squeeze(-1)
        lower[:, index] = torch.maximum(lower[:, index], value[:, :len(index)])
        upper[:, index] = torch.minimum(upper[:, index], -value[:, len(index):])
    z[0][:, at], z[1][:, at] = lower, torch.maximum(lower, upper)


def _fill(block: Block, z_lower: Tensor, z_upper: Tensor, planes: _Planes) -> None:
    at = slice(block.start, block.end)
    lower, upper = z_lower[:, at], z_upper[:, at]
    if block.kind == RELU:
        planes.up[:, at], planes.up_off[:, at] = relu_upper(lower, upper)
        planes.low[:, at] = ((upper >= -lower) & (upper > 0)).to(lower.dtype)  # as a checker breaks the tie: the records of boxes name no slopes
        planes.h_low[:, at], planes.h_high[:, at] = lower.clamp(min=0), upper.clamp(min=0)
        return
    half = torch.full_like(lower, 0.5)
    planes.low[:, at], planes.low_off[:, at], planes.up[:, at], planes.up_off[:, at] = kind_planes(block.kind, lower, upper, half)
    ends = torch.stack([activation(block.kind, lower), activation(block.kind, upper)])
    turn = (lower < 0) & (upper > 0) & (block.kind == "square")
    planes.h_low[:, at], planes.h_high[:, at] = torch.where(turn, 0.0, ends.amin(0)), ends.amax(0)


def _backward(
    problem: ReducedProblem, wo: Tensor, ao: Tensor, bo: Tensor, stop: int, center: Tensor, planes: _Planes
) -> tuple[Tensor, Tensor, Tensor]:
    """Linear lower bounds <a, x - center> + middle of rows `wo (R, U or stop)`, `ao (R, n)`, `bo (R,)` over the neurons before `stop`.

    Returns `middle (N, R)`, `a (N, R, n)` and the neurons' coefficients `nu (N, R, stop)`.
    """
    c = wo[:, :stop].expand(len(center), -1, -1).clone()
    nu = torch.empty_like(c)
    offset = torch.zeros(len(center), len(wo), dtype=c.dtype, device=c.device)
    for block in reversed(problem.blocks):
        if block.end > stop or not block.size:
            continue
        at = slice(block.start, block.end)
        own = c[..., at]
        positive, negative = own.clamp(min=0), own.clamp(max=0)
        value = positive * planes.low[:, None, at] + negative * planes.up[:, None, at]
        offset += (negative @ planes.up_off[:, at].unsqueeze(-1)).squeeze(-1)
        if block.kind != RELU:
            offset += (positive @ planes.low_off[:, at].unsqueeze(-1)).squeeze(-1)
        nu[..., at] = value
        if block.start > block.reach:
            c[..., block.reach:block.start] += value @ problem.W[at, block.reach:block.start]
    a = ao + nu @ problem.A[:stop]
    value = bo + offset + nu @ problem.b[:stop]
    return value + (a @ center.unsqueeze(-1)).squeeze(-1), a, nu
