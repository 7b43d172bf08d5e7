"""HYDRA under a stability term: the scores are learned so that what is left is accurate *and* easy to prove."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from certprune.prune.hydra import Hydra
from certprune.prune.mask import Scores
from certprune.prune.scorer import Context
from certprune.ranges import Positive, Weight, Whole
from certprune.train.regularizers import Engine, NormalizedReluStability


@dataclass(frozen=True, slots=True)
class HydraStability:
    """score(w) = |s|, s the minimiser over scores of loss + weight * mean of -tanh(1 + l u / gamma^2), both of w * top-k(|s|).

    The bounds l, u of pre-activations are those of the *masked* network, by `engine` (`ibp` or `crown`): a weight whose loss makes neurons
    unstable is worth less. The term is added to whatever regularisers `context.fit` has.
    """

    epochs: Whole = 5
    lr: Positive = 0.1
    optimizer: Literal["adam", "sgd"] = "sgd"
    weight: Weight = 1.0
    engine: Engine = "ibp"
    name: ClassVar[str] = "hydra-stability"
    granularity: ClassVar[Literal["weight"]] = "weight"

    def __call__(self, context: Context) -> Scores:
        term = NormalizedReluStability(self.weight, self.engine)
        config = replace(context.fit, regularizers=(*context.fit.regularizers, term))
        return Hydra(self.epochs, self.lr, self.optimizer)(replace(context, fit=config))
