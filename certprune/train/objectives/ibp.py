"""Interval bound propagation training.

Ref: Gowal et al., arXiv:1810.12715, equation 12: kappa l(clean) + (1 - kappa) l(worst case), kappa from 1 to `final_kappa` along the ramp.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from certprune.ranges import Share
from certprune.train.net import Batch
from certprune.train.objectives.objective import worst_case


@dataclass(frozen=True, slots=True)
class Ibp:
    final_kappa: Share = 0.0
    name: ClassVar[str] = "ibp"

    def __call__(self, batch: Batch) -> Tensor:
        return mixed(batch, self.final_kappa, lambda: batch.ibp().lower)


def mixed(batch: Batch, final_kappa: float, lower: object) -> Tensor:
    """kappa l(clean) + (1 - kappa) l(worst case), kappa linear along the ramp; the bounds are computed only if eps > 0."""
    kappa = 1 - (1 - final_kappa) * batch.progress
    clean = cross_entropy(batch.clean, batch.y)
    if batch.eps == 0:
        return clean
    return kappa * clean + (1 - kappa) * worst_case(lower(), batch.y)
