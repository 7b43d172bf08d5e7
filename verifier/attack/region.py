"""The input regions of many cases as tensors: sampling them, projecting onto them, and the direction of steepest descent inside them."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verifier.attack.confirm import numbers_within
from verifier.spec.spec import Case


@dataclass(frozen=True, slots=True)
class Region:
    """C boxes `lower, upper: (C, n_in)`, and balls `center: (C, n_in)`, `radius: (C,)`, `norm: (C,)` with norm 0 where there is no ball.

    `center` is None where no case has a ball. The bounds are numbers of the network's input type inside the exact boxes.
    """

    lower: Tensor
    upper: Tensor
    center: Tensor | None
    radius: Tensor
    norm: Tensor


def working_type(dtype: torch.dtype) -> torch.dtype:
    """What a search computes in for a network whose input is of a type: float16 would lose it its way."""
    return torch.float32 if dtype == torch.float16 else dtype


def region_of(cases: Sequence[Case], device: torch.device | str, dtype: torch.dtype) -> Region:
    """The regions, in `working_type(dtype)`; `dtype` is that of the network's input."""
    numbers = {torch.float64: np.float64, torch.float16: np.float16}.get(dtype, np.float32)
    boxes, dtype = [numbers_within(case, numbers) for case in cases], working_type(dtype)
    lower, upper = (torch.as_tensor(np.stack([box[side] for box in boxes]), device=device, dtype=dtype) for side in (0, 1))
    balls = [case.ball for case in cases]
    center = None
    if any(ball is not None for ball in balls):
        centers = np.stack([case.lower if case.ball is None else case.ball.center for case in cases])
        center = torch.as_tensor(centers, device=device, dtype=dtype)
    radius = torch.tensor([0.0 if ball is None else ball.radius for ball in balls], device=device, dtype=dtype)
    norm = torch.tensor([0 if ball is None else ball.norm for ball in balls], device=device)
    return Region(lower, upper, center, radius, norm)


def sample(region: Region, case: Tensor, generator: torch.Generator) -> Tensor:
    """One random point of each case in `case: (P,)`, `(P, n_in)`: even ones uniform, odd ones at a corner, drawn into the ball."""
    lower, upper = region.lower[case], region.upper[case]
    share = torch.rand(lower.shape, generator=generator).to(lower)
    share[1::2] = share[1::2].round()
    return project(region, case, lower + share * (upper - lower))


def center_of(region: Region, case: Tensor) -> Tensor:
    """The middle of each case's region, `(P, n_in)`."""
    middle = (region.lower[case] + region.upper[case]) / 2
    if region.center is not None:
        middle = torch.where((region.norm[case] > 0).unsqueeze(1), region.center[case], middle)
    return project(region, case, middle)


def project(region: Region, case: Tensor, x: Tensor) -> Tensor:
    """A point of each case's box, and of its ball up to rounding, near `x: (P, n_in)`.

    The ball's projection moves each coordinate towards the centre, so it stays in a box that holds the centre; repetition does the rest.
    """
    lower, upper = region.lower[case], region.upper[case]
    x = torch.minimum(torch.maximum(x, lower), upper)
    if region.center is None:
        return x
    center, radius, norm = region.center[case], region.radius[case].unsqueeze(1), region.norm[case].unsqueeze(1)
    for _ in range(3):
        away = x - center
        euclidean = away * (radius / away.norm(dim=1, keepdim=True).clamp_min(torch.finfo(away.dtype).tiny)).clamp_max(1)
        away = torch.where(norm == 2, euclidean, torch.where(norm == 1, _onto_l1_ball(away, radius), away))
        x = torch.minimum(torch.maximum(center + away, lower), upper)
    return x


def _onto_l1_ball(away: Tensor, radius: Tensor) -> Tensor:
    """The point of {v : ||v||_1 <= radius} nearest to each row: soft thresholding (Duchi et al., ICML 2008).

    With |v| sorted downwards and S_k the sum of the k largest, the threshold is the largest (S_k - radius) / k.
    """
    size = away.abs()
    ordered = size.sort(dim=1, descending=True).values
    counts = torch.arange(1, size.shape[1] + 1, device=away.device, dtype=away.dtype)
    threshold = ((ordered.cumsum(1) - radius) / counts).max(dim=1, keepdim=True).values.clamp_min(0)
    return away.sign() * (size - threshold).clamp_min(0)


def descent_step(region: Region, case: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
    """A step of `rate (P,)` radii of the region along the steepest descent of its norm, `(P, n_in)`.

    In a box that is the sign of the gradient, in an l2 ball the gradient itself, in an l1 ball its largest coordinates (2 % of them).
    """
    rate = rate.unsqueeze(1)
    step = -rate * gradient.sign() * (region.upper[case] - region.lower[case]) / 2
    if region.center is None:
        return step
    radius, norm = region.radius[case].unsqueeze(1), region.norm[case].unsqueeze(1)
    euclidean = -rate * radius * gradient / gradient.norm(dim=1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    count = max(1, gradient.shape[1] // 50)
    smallest = gradient.abs().topk(count, dim=1).values[:, -1:]
    sparse = -rate * radius / count * gradient.sign() * (gradient.abs() >= smallest)
    return torch.where(norm == 2, euclidean, torch.where(norm == 1, sparse, step))
