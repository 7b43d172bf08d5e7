"""Lower bounds of rows over a reduced problem: CROWN's backward pass over blocks, with alpha (lower slopes) and beta (splits) optimised.

The gradient needs no autograd: with the minimising corner x* pushed forwards through the chosen planes, the derivative of the bound in the
coefficient of neuron j is that neuron's value z_j*. So d/d alpha_j = max(c_j, 0) z_j* and d/d beta_j = -split_j z_j*: a step costs one backward and
one forward pass. Ref: alpha-CROWN arXiv:2011.13824, beta-CROWN arXiv:2103.06624 (both use automatic differentiation).
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.reduced.planes import Domains, Planes, fixed_planes, plane_gradient, planes_at
from verifier.reduced.problem import RELU, Block, ReducedProblem, ScaledBall, Stack, activation
from verifier.reduced.products import from_inputs_roughly, to_inputs


@dataclass(frozen=True, slots=True)
class Rows:
    """K linear functions of (x, s(z)) for each problem: `wo (P, K, U)`, `ao (P, K, n)`, `bo (P, K)`."""

    wo: Tensor
    ao: Tensor
    bo: Tensor

    def take(self, rows: Tensor) -> Rows:
        return Rows(self.wo[:, rows], self.ao[:, rows], self.bo[:, rows])


@dataclass(frozen=True, slots=True)
class Multipliers:
    """What a bound is made from: lower slopes `alpha` and split multipliers `beta >= 0`, both `(P, K, U)`."""

    alpha: Tensor
    beta: Tensor

    def take(self, rows: Tensor) -> Multipliers:
        return Multipliers(self.alpha[:, rows], self.beta[:, rows])


@dataclass(frozen=True, slots=True)
class Backward:
    """`lower (P, K)`; coefficients `c (P, K, U)` of s(z) and `nu (P, K, U)` of z; `a (P, K, n)` of x; the bound's corner `x (P, K, n)`."""

    lower: Tensor
    c: Tensor
    nu: Tensor
    a: Tensor
    x: Tensor


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to optimise: gradient steps, step lengths for alpha and beta (relative to the rows' size), decay a step; none after `until_s`

    of the monotonic clock. `packed`: what a record keeps of multipliers; bounds are then taken with that, so that what is recorded was bounded.
    """

    steps: int
    alpha_step: float = 0.25
    beta_step: float = 0.1
    decay: float = 0.9
    until_s: float = math.inf
    packed: Callable[[Multipliers], Multipliers] | None = None


Push = Callable[[Stack, Tensor], Tensor]
"""The product nu @ A: `to_inputs`, or `to_inputs_roughly` for estimates."""


def through_neurons(stack: Stack, rows: Rows, domains: Domains, planes: Planes, beta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Each row as <nu, A x + b> + <a_o, x> + offset, every s(z) replaced by its plane: positive coefficients take the lower, negative the upper one.

    Returns the coefficients `c (P, K, U)` of s(z), `nu (P, K, U)` of z, and the offset `(P, K)`.
    """
    c, nu = rows.wo.clone(), torch.empty_like(rows.wo)
    signed = None if beta is None else beta * domains.split
    for block in reversed(stack.blocks):
        at = slice(block.start, block.end)
        own = c[..., at]
        value = own * torch.where(own > 0, planes.low[..., at], planes.up[..., at])
        if signed is not None:
            value -= signed[..., at]
        nu[..., at] = value
        if block.start > block.reach:
            c[..., block.reach:block.start] += value @ stack.W[:, at, block.reach:block.start]
    negative = c.clamp(max=0)
    bias = rows.bo + (nu @ stack.b.unsqueeze(-1)).squeeze(-1) + (negative * planes.up_off).sum(-1)
    if planes.low_off is not None:
        bias = bias + ((c - negative) * planes.low_off).sum(-1)
        bias = bias + _cut_offsets(stack, domains, signed)
    return c, nu, bias


def value_at_inputs(stack: Stack, rows: Rows, domains: Domains, planes: Planes, beta: Tensor, reached: Tensor) -> Tensor:
    """The value `(P, K)` of each row's linear bound at one input, with `reached (P, K, U + 1)` = (A x, <a_o, x>) there: an estimate of its minimum

    from above that needs no product with A.
    """
    _, nu, offset = through_neurons(stack, rows, domains, planes, beta)
    return offset + (nu * reached[..., :-1]).sum(-1) + reached[..., -1]


def backward(stack: Stack, rows: Rows, domains: Domains, planes: Planes, beta: Tensor | None, push: Push = to_inputs) -> Backward:
    """min over the region of each row, every s(z) replaced by its plane.

    With beta, min over the region of row - sum_j beta_j split_j z_j <= min over the split's side (Lagrange). Sound: any alpha in [0, 1], beta >= 0.
    """
    c, nu, bias = through_neurons(stack, rows, domains, planes, beta)
    a = rows.ao + push(stack, nu)
    value, x = minimum_over_inputs(a, stack.ball)
    return Backward(bias + value, c, nu, a, x)


def minimum_over_inputs(a: Tensor, ball: ScaledBall | None) -> tuple[Tensor, Tensor]:
    """min of <a, x> over [-1, 1]^n, or the larger of that and the minimum over the ball; with the point that attains it. `a (..., n)`.

    Over ||(x - center) * radius||_p <= limit the minimum is <a, center> - limit ||a / radius||_q, 1/p + 1/q = 1.
    Sound: both sets contain the region, so the larger minimum is a lower bound too.
    """
    x = -a.sign()
    lower = -a.abs().sum(-1)
    if ball is None or a.shape[-1] == 0:
        return lower, x
    scaled = a / ball.radius
    if ball.norm == 2:
        largest = scaled.abs().amax(-1, keepdim=True)  # the squares of small numbers are zero
        direction = torch.nn.functional.normalize(scaled / torch.where(largest > 0, largest, 1.0), dim=-1, eps=0.5)
        size = (scaled * direction).sum(-1)
    else:
        size, largest = scaled.abs().max(-1)
        direction = torch.nn.functional.one_hot(largest, a.shape[-1]) * scaled.sign()
    value = (a * ball.center).sum(-1) - ball.limit * size
    point = (ball.center - ball.limit * direction / ball.radius).clamp(-1, 1)
    inside = value > lower
    return torch.where(inside, value, lower), torch.where(inside.unsqueeze(-1), point, x)


def neuron_values(stack: Stack, found: Backward, planes: Planes) -> Tensor:
    """z* `(P, K, U)`: the corner pushed forwards through the planes that the backward pass chose. Steers, bounds nothing."""
    z = from_inputs_roughly(stack, found.x).add_(stack.b.unsqueeze(1))
    positive = found.c > 0
    slope = torch.where(positive, planes.low, planes.up)
    offset = torch.where(positive, torch.zeros_like(planes.up_off) if planes.low_off is None else planes.low_off, planes.up_off)
    h = torch.empty_like(z)
    for block in stack.blocks:
        at = slice(block.start, block.end)
        own = z[..., at]
        if block.start > block.reach:
            own += h[..., block.reach:block.start] @ stack.W[:, at, block.reach:block.start].mT
        h[..., at] = own * slope[..., at] + offset[..., at]
    return z


def optimise(stack: Stack, rows: Rows, domains: Domains, start: Multipliers, effort: Effort, target: Tensor) -> tuple[Tensor, Multipliers, Tensor]:
    """The best bound of each row over `effort.steps` projected gradient steps.

    Rows whose bound exceeds `target (P, K)` are done; the others go on in a smaller batch.

    Returns:
        the best lower bound `(P, K)`, the multipliers that attain it, and its corner `x (P, K, n)`.
    """
    best = torch.full_like(rows.bo, -torch.inf)
    alpha, beta, corner = start.alpha.clone(), start.beta.clone(), torch.zeros_like(rows.ao)
    live, current = None, _Ascent(stack, rows, domains, start, effort)
    for step in range(effort.steps + 1):
        used = current.used()
        found, planes = current.bound(used)
        better, at = _record(found.lower, best, live)
        best[:, at] = torch.where(better, found.lower, best[:, at])
        alpha[:, at] = torch.where(better.unsqueeze(-1), used.alpha, alpha[:, at])
        beta[:, at] = torch.where(better.unsqueeze(-1), used.beta, beta[:, at])
        corner[:, at] = torch.where(better.unsqueeze(-1), found.x, corner[:, at])
        open_rows = (best[:, at] <= target[:, at]).any(0)
        if step == effort.steps or not bool(open_rows.any()) or time.monotonic() > effort.until_s:
            break
        current.step(found, planes, step)
        count = int(open_rows.sum())
        if count < 0.8 * len(open_rows):
            keep = open_rows.nonzero().squeeze(-1)
            live = keep if live is None else live[keep]
            current = current.take(keep)
    return best, Multipliers(alpha, beta), corner


class _Ascent:
    """Projected Adam on (alpha, beta) of the rows that are still open (Adam by hand: the first use of torch.optim costs a second).

    With r = |w_o| max |s(z)| / sqrt(U), the size of a row's terms, and s_j = max |z_j|, it moves alpha_j and beta_j s_j / r: the steps are the same
    whatever inputs, layers and rows are multiplied with. `reach (P, K, 1)` is r, `unit (P, K, U)` is r / s_j.
    """

    __slots__ = ("alpha", "beta", "domains", "effort", "fixed", "m", "reach", "rows", "stack", "unit", "v")

    def __init__(self, stack: Stack, rows: Rows, domains: Domains, start: Multipliers, effort: Effort) -> None:
        self.stack, self.rows, self.domains, self.effort = stack, rows, domains, effort
        self.alpha, self.beta = start.alpha, start.beta
        self.fixed = fixed_planes(stack, domains)
        self.reach, self.unit = scales(stack, rows)
        self.m = self.v = None

    def take(self, keep: Tensor) -> _Ascent:
        other = _Ascent.__new__(_Ascent)
        other.stack, other.effort, other.fixed = self.stack, self.effort, self.fixed.take(keep)
        other.rows, other.domains = self.rows.take(keep), self.domains.take(keep)
        other.alpha, other.beta = self.alpha[:, keep], self.beta[:, keep]
        other.reach, other.unit = self.reach[:, keep], self.unit[:, keep]
        other.m, other.v = self.m[..., keep, :], self.v[..., keep, :]
        return other

    def used(self) -> Multipliers:
        current = Multipliers(self.alpha, self.beta)
        return current if self.effort.packed is None else self.effort.packed(current)

    def bound(self, used: Multipliers) -> tuple[Backward, Planes]:
        planes = planes_at(self.stack, self.domains, self.fixed, used.alpha)
        return backward(self.stack, self.rows, self.domains, planes, used.beta), planes

    def step(self, found: Backward, planes: Planes, step: int) -> None:
        z = neuron_values(self.stack, found, planes)
        split = self.domains.split
        positive = found.c.clamp(min=0)
        alpha_gradient = positive * z * (split == 0)
        if not self.stack.is_relu:
            alpha_gradient = _kind_gradient(self, found, z, alpha_gradient)
            z = z - _cut_points(self.stack, self.domains)
        gradient = torch.stack([alpha_gradient / self.reach, -split * z * (self.unit / self.reach)])
        if self.m is None:
            self.m, self.v = 0.1 * gradient, 0.001 * gradient.square()
        else:
            self.m.mul_(0.9).add_(gradient, alpha=0.1)
            self.v.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        rate = self.effort.decay**step
        change = self.m / (1 - 0.9 ** (step + 1)) / ((self.v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-12)
        self.alpha = (self.alpha + self.effort.alpha_step * rate * change[0]).clamp(0, 1)
        self.beta = (self.beta + self.effort.beta_step * rate * self.unit * change[1]).clamp(min=0)


def scales(stack: Stack, rows: Rows) -> tuple[Tensor, Tensor]:
    """How much the neurons move each row, `(P, K, 1)`, and that over each neuron's own size, `(P, K, U)`; 1 where there is nothing or no number."""
    size = torch.maximum(stack.lower.abs(), stack.upper.abs())
    reached = torch.cat([activation(block.kind, size[:, block.start:block.end]).abs() for block in stack.blocks] or [size], 1)
    usable = lambda t: torch.where((t > 0) & torch.isfinite(t), t, 1.0)  # noqa: E731
    reach = usable((rows.wo.abs() @ reached.unsqueeze(-1)) / max(1, size.shape[-1]) ** 0.5)
    return reach, usable(reach / usable(size).unsqueeze(1))


def _record(lower: Tensor, best: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor | slice]:
    at = slice(None) if live is None else live
    return lower > best[:, at], at


def _kind_gradient(ascent: _Ascent, found: Backward, z: Tensor, relu: Tensor) -> Tensor:
    positive, negative = found.c.clamp(min=0), found.c.clamp(max=0)
    weights = (positive * z, positive, negative * z, negative)
    other = plane_gradient(ascent.stack, ascent.domains, ascent.fixed, ascent.alpha, weights)
    for block in ascent.stack.blocks:
        if block.kind != RELU:
            relu[..., block.start:block.end] = other[..., block.start:block.end]
    return relu


def _cut_points(stack: Stack, domains: Domains) -> Tensor:
    """Where each split lies, `(P, K, U)`: zero for a ReLU, the cut end of the interval for other kinds."""
    points = torch.where(domains.split > 0, domains.lower, domains.upper)
    for block in stack.blocks:
        if block.kind == RELU:
            points[..., block.start:block.end] = 0
    return points


def _cut_offsets(stack: Stack, domains: Domains, signed: Tensor | None) -> Tensor | float:
    return 0.0 if signed is None else (signed * _cut_points(stack, domains)).sum(-1)


def neuron_rows(problem: ReducedProblem, block: Block, signs: tuple[int, ...] = (1, -1)) -> Rows:
    """The rows +z and -z of one block, `(1, 2m, ...)`, the positive ones first."""
    at = slice(block.start, block.end)
    W = torch.zeros_like(problem.W[at])
    W[:, :block.start] = problem.W[at, :block.start]
    parts = [(sign * W, sign * problem.A[at], sign * problem.b[at]) for sign in signs]
    wo, ao, bo = (torch.cat(list(part)).unsqueeze(0) for part in zip(*parts))
    return Rows(wo, ao, bo)
