"""Our own stability term: how far neurons are from being stable, where the published ones ask only whether.

-tanh(1 + l u / gamma^2) is flat where a neuron is far from stable (l u much below -gamma^2), and interval bounds of deep layers are just there: what
is most unstable feels nothing. The distance to the nearer side, min(u, -l), has the same slope everywhere, and ends where the neuron is stable.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from certprune.ranges import Weight
from certprune.train.net import Batch
from certprune.train.regularizers import ENGINES, Engine, channel_scales, pre_activations


@dataclass(frozen=True, slots=True)
class StabilityDistance:
    """weight * mean over ReLU layers of the mean over images and neurons of max(0, min(u, -l)) / gamma, gamma constant (1 without BatchNorm).

    Every layer counts alike, however many neurons it has: the last ones are few, and their instability is what a proof pays for.
    """

    weight: Weight
    engine: Engine = "ibp"
    name: ClassVar[str] = "stability-distance"

    def __call__(self, batch: Batch) -> Tensor:
        if batch.eps == 0:
            return batch.x.new_zeros(())
        scales, layers = channel_scales(batch), []
        for name, box in pre_activations(ENGINES[self.engine](batch)):
            distance = torch.minimum(box.upper, -box.lower).clamp(min=0)
            if name in scales:
                distance = distance / scales[name].abs().clamp(min=1e-6).reshape(1, 1, -1, *([1] * (distance.ndim - 3)))
            layers.append(distance.mean())
        return self.weight * torch.stack(layers).mean()
