"""SABR: interval bounds over a small box around an adversarial point instead of the whole eps box.

Ref: Müller et al., arXiv:2210.04871, section 3: with tau = lambda eps, the centre is the adversarial point clipped to within eps - tau of the
image, so that the small box of radius tau around it lies in the eps box.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import verifier
from certprune.ranges import Share, Weight, Whole
from certprune.train.attack import adversarial
from certprune.train.net import Batch
from certprune.train.objectives.objective import worst_case


@dataclass(frozen=True, slots=True)
class Sabr:
    """`small_box`: lambda, 1 is IBP training and near 0 adversarial training. `step`: in radii of the eps box."""

    small_box: Share = 0.4
    steps: Whole = 8
    step: Weight = 0.25
    name: ClassVar[str] = "sabr"

    def __call__(self, batch: Batch) -> Tensor:
        clean = batch.clean
        if batch.eps == 0:
            return cross_entropy(clean, batch.y)
        point = adversarial(batch, batch.frozen, batch.box(), self.steps, self.step)
        return worst_case(verifier.ibp(batch.request(small_box(batch, point, self.small_box))).lower, batch.y)


def small_box(batch: Batch, point: Tensor, share: float) -> verifier.Box:
    """Radius `share` * eps around the point of the eps box `(B, *input_shape)`, moved as little as needed to stay within eps, cut at [0, 1]."""
    radius = share * batch.eps
    slack = batch.eps - radius
    return batch.box(torch.minimum(torch.maximum(point, batch.x - slack), batch.x + slack), radius)
