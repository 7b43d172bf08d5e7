"""Channels go whose BatchNorm scale is small: best after training with the slimming regulariser, which makes scales small."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import verifier
from certprune.prune.channels import norm_of_layer, over_channels
from certprune.prune.mask import Scores, weights_of
from certprune.prune.scorer import Context


@dataclass(frozen=True, slots=True)
class Slimming:
    """score(channel) = |gamma|, the scale of the BatchNorm behind the channel.

    Ref: Liu et al., arXiv:1708.06519.
    """

    name: ClassVar[str] = "slimming"
    granularity: ClassVar[Literal["channel"]] = "channel"

    def __call__(self, context: Context) -> Scores:
        norms = norm_of_layer(context.net)
        weights = weights_of(context.net.model, context.mask)
        layers = {name: name.removesuffix(".weight") for name in weights}
        without = [layer for layer in layers.values() if layer not in norms or not context.net.norms[norms[layer]].affine]
        if without:
            raise verifier.VerifierError(f"Slimming scores channels by BatchNorm's scale, but no BatchNorm with a scale reads layer(s) "
                                         f"{', '.join(without)}: prune layers 'conv', or by another method.")
        return {name: over_channels(context.net.norms[norms[layers[name]]].weight.detach().abs(), w) for name, w in weights.items()}
