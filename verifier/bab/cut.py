"""What the linear bounds of a polytope's rows say together: a convex combination that is positive, or the part of a box that they leave.

Where every row m_r >= <a_r, d> + middle_r over the box (d the offset from its centre), a point is unsafe only if all of these are <= 0.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 20


@dataclass(frozen=True, slots=True)
class Cut:
    """`best (N,)` the largest minimum of a convex combination of the rows, its coefficients `a (N, n)`, the offsets `low, high (N, n)` left.

    `weight (N, R)`: the combination; `by_low, by_high (N, n)`: the row that leaves no more than that, R for the combination.
    """

    best: Tensor
    a: Tensor
    low: Tensor
    high: Tensor
    weight: Tensor
    by_low: Tensor
    by_high: Tensor


def cut(middle: Tensor, a: Tensor, radius: Tensor) -> Cut:
    """Combines and intersects the rows `middle (N, R)`, `a (N, R, n)` over |d| <= `radius (N, n)`.

    Sound: a positive combination excludes the polytope; a point of it satisfies every row, hence every row's limit on one coordinate while the others
    are at their most favourable.
    """
    best, combined, middle_combined, weight = _of_one_size(middle, a, radius)
    rows = torch.cat([a, combined.unsqueeze(1)], 1) if a.shape[1] > 1 else a
    lower = torch.cat([middle, middle_combined.unsqueeze(1)], 1) if a.shape[1] > 1 else middle
    lower = lower - (rows.abs() @ radius.unsqueeze(-1)).squeeze(-1)
    # a_i d_i <= -lower - |a_i| r_i for a point of the polytope
    reach = (-lower).clamp(min=0).unsqueeze(-1) / rows.abs() - radius.unsqueeze(1)  # of no meaning where a row has no such input
    high, by_high = torch.where(rows > 0, reach, torch.inf).min(1)
    low, by_low = torch.where(rows < 0, -reach, -torch.inf).max(1)
    low, high = torch.maximum(low, -radius), torch.minimum(high, radius)
    return Cut(best, combined, torch.minimum(low, radius), torch.maximum(high, -radius), weight, by_low, by_high)


def _of_one_size(middle: Tensor, a: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_combine` of the rows over their sizes; weights of sum one, and what they combine, for the rows as they are."""
    if a.shape[1] == 1:
        return _combine(middle, a, radius)
    size = middle.abs() + (a.abs() @ radius.unsqueeze(-1)).squeeze(-1)
    size = torch.where((size > 0) & torch.isfinite(size), size, 1.0)
    *_, weight = _combine(middle / size, a / size.unsqueeze(-1), radius)
    weight = weight * (size.amin(1, keepdim=True) / size)
    weight = weight / weight.sum(1, keepdim=True)
    combined, middle_combined = (weight.unsqueeze(1) @ a).squeeze(1), (weight * middle).sum(1)
    return middle_combined - (combined.abs() * radius).sum(1), combined, middle_combined, weight


def _combine(middle: Tensor, a: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """max over weights on the simplex of min over the box, by exponentiated gradient from the best single row."""
    single = middle - (a.abs() @ radius.unsqueeze(-1)).squeeze(-1)
    best, row = single.max(1)
    at = row[:, None, None].expand(-1, 1, a.shape[-1])
    found, found_middle = a.gather(1, at).squeeze(1), middle.gather(1, row.unsqueeze(1)).squeeze(1)
    if a.shape[1] == 1:
        return best, found, found_middle, torch.ones_like(middle)
    used = torch.nn.functional.one_hot(row, middle.shape[1]).to(middle.dtype)
    weight = torch.full_like(middle, 1 / middle.shape[1])
    for step in range(STEPS):
        form, constant = (weight.unsqueeze(1) @ a).squeeze(1), (weight * middle).sum(1)
        value = constant - (form.abs() * radius).sum(1)
        better = value > best
        best = torch.where(better, value, best)
        found, found_middle = torch.where(better.unsqueeze(1), form, found), torch.where(better, constant, found_middle)
        used = torch.where(better.unsqueeze(1), weight, used)
        gradient = middle - (a @ (form.sign() * radius).unsqueeze(-1)).squeeze(-1)
        size = (gradient.amax(1, keepdim=True) - gradient.amin(1, keepdim=True)).clamp(min=torch.finfo(a.dtype).tiny)
        weight = torch.softmax(weight.clamp(min=1e-12).log() + 3 / (1 + step) ** 0.5 * gradient / size, 1)
    return best, found, found_middle, used
