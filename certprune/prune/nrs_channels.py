"""The channels whose neurons are least stable go."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

import verifier
from certprune.prune.channels import over_channels, value_of_layer
from certprune.prune.gradients import batches, drawn, with_batch
from certprune.prune.mask import Scores, weights_of
from certprune.prune.scorer import Context
from certprune.prune.stability import ranges
from certprune.ranges import Count
from certprune.train.regularizers import Engine


@dataclass(frozen=True, slots=True)
class NrsChannels:
    """score(channel) = the mean over images and positions of tanh(1 + l u / gamma^2), l, u the bounds of its ReLUs' inputs over the eps box.

    `engine`: whose bounds, `ibp` or `crown`; `images`: how many training images.

    Ref: the measure is that of Li et al., arXiv:2206.07311, section 4; channels are scored by it as they are by BatchNorm's scale in slimming.
    """

    images: Count = 256
    engine: Engine = "ibp"
    name: ClassVar[str] = "nrs-channels"
    granularity: ClassVar[Literal["channel"]] = "channel"

    def __call__(self, context: Context) -> Scores:
        values = value_of_layer(context.net)
        weights = weights_of(context.net.model, context.mask)
        without = [name for name in weights if name.removesuffix(".weight") not in values]
        if without:
            raise verifier.VerifierError(f"No ReLU reads the channels of {', '.join(without)}: score them by another method.")
        stable = self.stability(context)
        return {name: over_channels(stable[values[name.removesuffix(".weight")]], w).to(w.dtype) for name, w in weights.items()}

    @torch.no_grad()
    def stability(self, context: Context) -> dict[str, Tensor]:
        """The mean of tanh(1 + l u / gamma^2) for each channel, `(channels,)`, by the value's name."""
        index = drawn(context, self.images)
        total: dict[str, Tensor] = {}
        for batch in batches(with_batch(context, 128), index):
            for name, neurons in ((name, value.instability()) for name, value in ranges(batch, self.engine).items()):
                mean = -neurons.double().flatten(2).mean(2) if neurons.ndim > 2 else -neurons.double()
                total[name] = total.get(name, 0) + mean.sum(0) / len(index)
        return total
