"""MixTrain: bounds for a few random images of a batch, the ordinary loss for all.

Ref: Wang et al., arXiv:1811.02625: stochastic robust approximation (sound bounds of k random images guide training as well as bounds of all) and
dynamic mixed training (the weights of the two losses change while training goes on). Where the paper moves the weights by the accuracies of the
epochs behind, here the robust loss's weight rises from 0 to `alpha` along the ramp of eps: a value that holds no state needs no history.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from certprune.ranges import Count, Share, Weight, Whole
from certprune.train.attack import adversarial
from certprune.train.net import Batch
from certprune.train.objectives.objective import worst_case


@dataclass(frozen=True, slots=True)
class MixTrain:
    """(1 - a) l(points) + a * mean of l(interval bounds) over `images` images, a = `alpha` * progress.

    The points are the images themselves with `steps` 0, else adversarial ones (`step` in radii of the eps box).
    """

    alpha: Share = 0.5
    images: Count = 16
    steps: Whole = 0
    step: Weight = 0.25
    name: ClassVar[str] = "mixtrain"

    def __call__(self, batch: Batch) -> Tensor:
        clean = batch.clean
        weight = self.alpha * batch.progress
        if batch.eps == 0:
            return cross_entropy(clean, batch.y)
        logits = batch.at(adversarial(batch, batch.frozen, batch.box(), self.steps, self.step)) if self.steps else clean
        ordinary = cross_entropy(logits, batch.y)
        if weight == 0:
            return ordinary
        chosen = torch.randperm(len(batch.x), generator=batch.generator)[: self.images].to(batch.x.device)
        part = batch.part(chosen)
        return (1 - weight) * ordinary + weight * worst_case(part.ibp().lower, part.y)
