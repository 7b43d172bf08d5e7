"""CROWN-IBP training.

Ref: Zhang et al., arXiv:1906.06316, equation 7: the margins' bounds are (1 - beta) IBP + beta CROWN-IBP, beta from 1 to `final_beta` along the ramp.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from certprune.ranges import Count, Share
from certprune.train.net import Batch
from certprune.train.objectives.ibp import mixed


@dataclass(frozen=True, slots=True)
class CrownIbp:
    """With `final_beta` 0 training ends as IBP training, which is cheap; with 1 it stays CROWN-IBP to the end.

    `hardest`: how many margins of an image CROWN bounds, the smallest at the image itself; a pass costs in proportion to them. The others enter as
    they are at the image: so with fewer than all of them the loss is an upper bound of the worst case over the hardest classes alone.
    """

    final_kappa: Share = 0.0
    final_beta: Share = 0.0
    hardest: Count = 10_000
    name: ClassVar[str] = "crown-ibp"

    def __call__(self, batch: Batch) -> Tensor:
        beta = 1 - (1 - self.final_beta) * batch.progress

        def lower() -> Tensor:
            if beta == 0:
                return batch.ibp().lower
            crown_ibp = batch.crown_ibp(self.hardest)
            return crown_ibp if beta == 1 else beta * crown_ibp + (1 - beta) * batch.ibp().lower

        return mixed(batch, self.final_kappa, lower)
