"""Exp-IBP.

Ref: De Palma et al., arXiv:2305.13991, section 4: l(adversarial point)^(1 - alpha) l(interval bounds)^alpha for each image.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from certprune.ranges import Share, Weight, Whole
from certprune.train.net import Batch
from certprune.train.objectives.expressive import attacked

SMALLEST = 1e-7  # float32's cross entropy reaches 0, where the derivative of a power is infinite


@dataclass(frozen=True, slots=True)
class ExpIbp:
    """`alpha`: the over-approximation coefficient. `steps`, `step` (in radii of the eps box): of the attack."""

    alpha: Share = 0.5
    steps: Whole = 8
    step: Weight = 0.25
    name: ClassVar[str] = "exp-ibp"

    def __call__(self, batch: Batch) -> Tensor:
        if batch.eps == 0:
            return cross_entropy(batch.clean, batch.y)
        at_point = cross_entropy(attacked(batch, self.steps, self.step), batch.y, reduction="none").clamp(min=SMALLEST)
        over_box = cross_entropy(-batch.ibp().lower, batch.y, reduction="none").clamp(min=SMALLEST)
        return (at_point.pow(1 - self.alpha) * over_box.pow(self.alpha)).mean()
