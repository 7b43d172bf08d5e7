"""HYDRA: which weights to remove is learned by gradient descent on the loss that the network is trained for.

The parts: weights are frozen and each gets a score; the forward pass and every bound see w * top-k(|score|); the top-k's gradient is taken as
the identity's (straight through), so that a removed weight can come back; `fit` does the learning, as it does for weights.
"""
from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from certprune.prune.mask import Mask, Scope, Scores, select, weights_of
from certprune.prune.scorer import Context
from certprune.ranges import Positive, Whole
from certprune.train.fit import Task, fit
from certprune.train.net import Net


@dataclass(frozen=True, slots=True)
class ScoredWeights:
    """Learns scores s; the network computes with w * m, m = 1 where |s| is among the largest, 0 elsewhere.

    `weights`, `scores`: by parameter name, of one shape. `within`: what may live. `removed`, `scope`: how many are not among the largest.
    """

    weights: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]
    within: Mask
    removed: float
    scope: Scope

    def parameters(self) -> list[Tensor]:
        return list(self.scores.values())

    def mask(self) -> Mask:
        """Where |s| is among the largest."""
        return select({name: score.detach().abs() for name, score in self.scores.items()}, self.removed, self.scope, self.within)

    def tensors(self) -> dict[str, Tensor]:
        """w * m, with dm/d|s| = 1: the gradient of a score is sign(s) w dL/d(w m)."""
        mask = self.mask()
        return {name: weight * straight_through(mask[name], self.scores[name].abs()) for name, weight in self.weights.items()}

    def settle(self) -> None:
        """Nothing: scores are free."""


def straight_through(mask: Tensor, score: Tensor) -> Tensor:
    """The mask's value, exactly, and the score's gradient."""
    return mask + (score - score.detach())


def scaled_scores(weight: Tensor) -> Tensor:
    """sqrt(6 / fan_in) * w / max |w|; zeros where all weights are.

    Ref: Sehwag et al., arXiv:2002.10509 (scaled initialisation of importance scores).
    """
    return math.sqrt(6 / weight[0].numel()) * weight / weight.abs().max().clamp(min=torch.finfo(weight.dtype).tiny)


@dataclass(frozen=True, slots=True)
class Hydra:
    """score(w) = |s|, s the minimiser over scores of the training loss of w * top-k(|s|), found by `epochs` of SGD from `scaled_scores(w)`.

    The loss is that of `context.fit`, regularisers included, at its final eps; the network is left as it was, BatchNorm's statistics too.

    Ref: Sehwag et al., arXiv:2002.10509.
    """

    epochs: Whole = 5
    lr: Positive = 0.1
    optimizer: Literal["adam", "sgd"] = "sgd"
    name: ClassVar[str] = "hydra"
    granularity: ClassVar[Literal["weight"]] = "weight"

    def __call__(self, context: Context) -> Scores:
        net = Net(frozen_copy(context.net.model), context.net.input_shape)
        weights = weights_of(net.model, context.mask)
        scores = {name: scaled_scores(weight).requires_grad_() for name, weight in weights.items()}
        learned = ScoredWeights(weights, scores, context.mask, context.removed, context.scope)
        seed = int(torch.randint(2**31, (), generator=context.generator))
        config = replace(context.fit, epochs=self.epochs, lr=self.lr, optimizer=self.optimizer, weight_decay=0.0, warmup=0.0, ramp=0.0, seed=seed)
        for _ in fit(Task(net, learned, context.x, context.y, config), listener=context.listener):
            pass
        return {name: score.detach().abs() for name, score in scores.items()}


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy whose parameters want no gradient; its BatchNorm layers may gather statistics without the original's moving."""
    return copy.deepcopy(model).requires_grad_(False)
