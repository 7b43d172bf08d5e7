"""PGD adversarial training.

Ref: Madry et al., arXiv:1706.06083, equation 2.1: E max over the eps box of l(x'), the maximum by projected gradient ascent.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from certprune.ranges import Weight, Whole
from certprune.train.attack import adversarial
from certprune.train.net import Batch


@dataclass(frozen=True, slots=True)
class Pgd:
    """`step`: in units of eps (in fact of half of the pixel's range, which is smaller where the box is cut at 0 or 1)."""

    steps: Whole = 7
    step: Weight = 0.25
    name: ClassVar[str] = "pgd"

    def __call__(self, batch: Batch) -> Tensor:
        if batch.eps == 0:
            return cross_entropy(batch.clean, batch.y)
        return cross_entropy(batch.logits(adversarial(batch, batch.search, batch.box(), self.steps, self.step)), batch.y)
