"""Which neuron to split: the few that cost the bound most, each child tried by one cheap bound (filtered smart branching).

Scores. With c the coefficient of s(z) and z* the value at the bound's corner, the planes lose
    c < 0:  |c| (upper plane(z*) - s(z*)),     c > 0:  c (s(z*) - lower plane(z*))
there, and at most |c| times the plane's offset anywhere: the intercept of Bunel et al. (BaBSR, JMLR 2020). Candidates come from both lists; the
child bounds decide. Ref: De Palma et al., arXiv:2104.06718.
"""
from __future__ import annotations

import torch
from torch import Tensor

from verifier.bab.work import Work, children
from verifier.reduced.bound import Backward, backward, neuron_values, scales, value_at_inputs
from verifier.reduced.planes import Planes, fixed_planes, planes_at
from verifier.reduced.problem import RELU, Stack, activation
from verifier.reduced.products import from_inputs_roughly, to_inputs_roughly

NONE = -1.0
"""Score of a neuron that cannot be split."""
THINNEST = 1e-4
"""Share of its whole interval below which a neuron other than a ReLU is not split."""


def scores(stack: Stack, work: Work, found: Backward, planes: Planes) -> tuple[Tensor, Tensor]:
    """Intercept scores and gap scores, each `(P, K, U)`; NONE where a neuron is split already or is padding."""
    z = neuron_values(stack, found, planes)
    positive, negative = found.c.clamp(min=0), -found.c.clamp(max=0)
    value = torch.empty_like(z)
    for block in stack.blocks:
        value[..., block.start:block.end] = activation(block.kind, z[..., block.start:block.end])
    low = planes.low * z if planes.low_off is None else planes.low * z + planes.low_off
    gap = positive * (value - low) + negative * (planes.up * z + planes.up_off - value)
    intercept = negative * planes.up_off
    allowed = stack.real.unsqueeze(1) & (work.domains.split == 0)
    for block in stack.blocks:
        if block.kind != RELU:
            at = slice(block.start, block.end)
            lower, upper = work.domains.lower[..., at], work.domains.upper[..., at]
            width = (stack.upper - stack.lower)[:, None, at]
            allowed[..., at] = stack.real[:, None, at] & (upper - lower > THINNEST * width)
            intercept[..., at] = gap[..., at]
    blank = torch.full_like(gap, NONE)
    return torch.where(allowed, intercept, blank), torch.where(allowed, gap, blank)


def choose(stack: Stack, work: Work, candidates: int) -> tuple[Tensor, Tensor]:
    """The neuron to split for every domain `(P, K)`, and whether there is one that matters `(P, K)`."""
    planes = planes_at(stack, work.domains, fixed_planes(stack, work.domains), work.multipliers.alpha)
    found = backward(stack, work.rows, work.domains, planes, work.multipliers.beta, to_inputs_roughly)
    intercept, gap = scores(stack, work, found, planes)
    k = min(candidates, intercept.shape[-1])
    first, second = intercept.topk(k, -1), gap.topk(max(1, k // 2), -1)
    roundoff = torch.finfo(gap.dtype).eps * (found.lower.abs() + scales(stack, work.rows)[0].squeeze(-1))
    useful = (first.values[..., 0] > 0) | (second.values[..., 0] > roundoff)
    tried = torch.cat([first.indices, second.indices], -1)
    worth = torch.cat([first.values, second.values], -1)
    count = tried.shape[-1]
    if count == 1:
        return tried[..., 0], useful
    repeated = work.repeat(count)
    kids = children(stack, repeated, tried.flatten(1))
    planes = planes_at(stack, kids.domains, fixed_planes(stack, kids.domains), kids.multipliers.alpha)
    reached = torch.cat([from_inputs_roughly(stack, found.x), (work.rows.ao * found.x).sum(-1, keepdim=True)], -1)
    lower = value_at_inputs(stack, kids.rows, kids.domains, planes, kids.multipliers.beta, reached.repeat_interleave(2 * count, 1))
    lower = lower.view(*tried.shape, 2) - work.target[..., None, None]
    lower = lower.clamp(max=0)
    merit = lower.amin(-1) + 0.3 * lower.amax(-1)
    merit = torch.where(worth > 0, merit, torch.full_like(merit, -torch.inf))
    best = merit.argmax(-1, keepdim=True)
    return tried.gather(-1, best).squeeze(-1), useful
