"""MTL-IBP.

Ref: De Palma et al., arXiv:2305.13991, section 4: (1 - alpha) l(adversarial point) + alpha l(interval bounds).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from certprune.ranges import Share, Weight, Whole
from certprune.train.net import Batch
from certprune.train.objectives.expressive import attacked
from certprune.train.objectives.objective import worst_case


@dataclass(frozen=True, slots=True)
class MtlIbp:
    """`alpha`: the over-approximation coefficient. `steps`, `step` (in radii of the eps box): of the attack."""

    alpha: Share = 0.5
    steps: Whole = 8
    step: Weight = 0.25
    name: ClassVar[str] = "mtl-ibp"

    def __call__(self, batch: Batch) -> Tensor:
        if batch.eps == 0:
            return cross_entropy(batch.clean, batch.y)
        at_point = cross_entropy(attacked(batch, self.steps, self.step), batch.y)
        return (1 - self.alpha) * at_point + self.alpha * worst_case(batch.ibp().lower, batch.y)
