"""Weights go whose removal changes the loss least, by its gradient."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from certprune.prune.gradients import drawn, mean_gradients
from certprune.prune.mask import Scores, weights_of
from certprune.prune.scorer import Context
from certprune.ranges import Count


@dataclass(frozen=True, slots=True)
class Snip:
    """score(w) = |w dL/dw|, the derivative of the objective's loss in the weight's own mask entry; L over `images` images.

    Ref: Lee et al., arXiv:1810.02340 (there divided by the sum, which changes no order).
    """

    images: Count = 1024
    name: ClassVar[str] = "snip"
    granularity: ClassVar[Literal["weight"]] = "weight"

    def __call__(self, context: Context) -> Scores:
        found = mean_gradients(context, context.fit.objective, drawn(context, self.images))
        return {name: (w.detach() * found[name]).abs() for name, w in weights_of(context.net.model, context.mask).items()}
