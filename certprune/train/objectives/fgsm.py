"""FGSM training, kept from collapsing by aligned gradients.

Ref: Andriushchenko and Flammarion, arXiv:2007.02617, equation 4: lambda E[1 - cos(grad l(x, y), grad l(x + eta, y))], eta uniform in the box.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from certprune.ranges import PositiveShare, Weight
from certprune.train.attack import input_gradient, inside
from certprune.train.net import Batch


@dataclass(frozen=True, slots=True)
class FgsmGradAlign:
    """`weight`: lambda. `step`: the FGSM step in units of eps; the point is cut back to the box.

    `share`: of the batch, the first images that the alignment is estimated on: its second derivatives are the dear part of a step.
    """

    weight: Weight = 0.2
    step: Weight = 1.25
    share: PositiveShare = 1.0
    name: ClassVar[str] = "fgsm-gradalign"

    def __call__(self, batch: Batch) -> Tensor:
        if batch.eps == 0:
            return cross_entropy(batch.clean, batch.y)
        box = batch.box()
        moved = (batch.x + batch.eps * batch.noise()).clamp(0, 1)
        at_noise = input_gradient(batch.search, moved, batch.y)
        adversarial = inside(box, moved + self.step * batch.eps * at_noise.sign())
        penalty = batch.x.new_zeros(())
        if self.weight > 0:
            penalty = self.misalignment(batch, moved)
        return cross_entropy(batch.logits(adversarial), batch.y) + self.weight * penalty

    def misalignment(self, batch: Batch, moved: Tensor) -> Tensor:
        """The mean of 1 - cos between the loss's gradients at the images and at `moved`; differentiable in the weights."""
        count = max(2, round(self.share * len(moved)))
        y = batch.y[:count]
        at_image, at_noise = (input_gradient(batch.search, x[:count], y, differentiable=True) for x in (batch.x, moved))
        return 1 - cosine_similarity(at_image.flatten(1), at_noise.flatten(1), dim=1).mean()
