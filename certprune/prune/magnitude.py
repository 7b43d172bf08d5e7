"""The smallest weights go."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from certprune.prune.mask import Scores, weights_of
from certprune.prune.scorer import Context


@dataclass(frozen=True, slots=True)
class Magnitude:
    """score(w) = |w|.

    Ref: Han et al., arXiv:1506.02626; repeated with rewinding it is iterative magnitude pruning, Frankle and Carbin, arXiv:1803.03635.
    """

    name: ClassVar[str] = "magnitude"
    granularity: ClassVar[Literal["weight"]] = "weight"

    def __call__(self, context: Context) -> Scores:
        return {name: weight.detach().abs() for name, weight in weights_of(context.net.model, context.mask).items()}
