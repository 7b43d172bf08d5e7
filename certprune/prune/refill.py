"""Channels found by single weights: prune weights by magnitude, keep the channels where most is left, whole."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from certprune.prune.channels import over_channels
from certprune.prune.magnitude import Magnitude
from certprune.prune.mask import Scores, select
from certprune.prune.scorer import Context


@dataclass(frozen=True, slots=True)
class Refill:
    """score(channel) = the sum of |w| over its weights that magnitude pruning to the wanted sparsity leaves.

    `select_channels` keeps channels whole, which refills the weights that magnitude pruning would have removed from them, and empties others.

    Ref: Chen et al., arXiv:2202.04736 (IMP with refilling; here the sparsity says how many channels are kept).
    """

    name: ClassVar[str] = "refill"
    granularity: ClassVar[Literal["channel"]] = "channel"

    def __call__(self, context: Context) -> Scores:
        magnitude = Magnitude()(context)
        left = select(magnitude, context.removed, context.scope, context.mask)
        return {name: over_channels((size * left[name]).flatten(1).sum(1), size) for name, size in magnitude.items()}
