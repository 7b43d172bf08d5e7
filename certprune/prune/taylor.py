"""Weights go whose removal changes the loss least, by a first-order expansion on each batch."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from certprune.prune.gradients import drawn, gradients
from certprune.prune.mask import Scores, weights_of
from certprune.prune.scorer import Context
from certprune.ranges import Count


@dataclass(frozen=True, slots=True)
class Taylor:
    """score(w) = the mean over batches of (w dL/dw)^2, L the objective's loss of the batch; `images` images in all.

    A weight on which batches pull in different directions scores high here, and low with SNIP, where they cancel.

    Ref: Molchanov et al., arXiv:1906.10771 (first order, averaged over mini-batches).
    """

    images: Count = 1024
    name: ClassVar[str] = "taylor"
    granularity: ClassVar[Literal["weight"]] = "weight"

    def __call__(self, context: Context) -> Scores:
        index = drawn(context, self.images)
        weights = weights_of(context.net.model, context.mask)
        scores: Scores = {}
        for found, count in gradients(context, context.fit.objective, index):
            scores = {name: scores.get(name, 0) + (w.detach() * found[name]).square() * (count / len(index)) for name, w in weights.items()}
        return scores
