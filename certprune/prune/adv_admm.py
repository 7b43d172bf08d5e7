"""Adv-ADMM: weights are trained while they are pulled towards a sparse copy of themselves."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from certprune.prune.mask import Scores, select, weights_of
from certprune.prune.scorer import Context
from certprune.ranges import Positive, Weight, Whole
from certprune.train.fit import Task, fit
from certprune.train.net import Batch
from certprune.train.weights import Weights


@dataclass(frozen=True, slots=True)
class Proximal:
    """weight / 2 * sum of ||W - target||^2 over the weights that `targets` names."""

    targets: Mapping[str, Tensor]
    weight: float
    name: ClassVar[str] = "proximal"

    def __call__(self, batch: Batch) -> Tensor:
        weights = weights_of(batch.net.model, self.targets)
        return self.weight / 2 * sum((w - self.targets[name]).square().sum() for name, w in weights.items())


@dataclass(frozen=True, slots=True)
class AdvAdmm:
    """score(w) = |W|, W from alternating W <- SGD on loss(W) + rho/2 ||W - Z + U||^2, Z <- the largest of W + U, U <- U + W - Z.

    The loss is that of `context.fit` (the paper's: adversarial training), Z keeps as many weights as the mask will, and Z and U follow
    every epoch of W. The one scorer that trains: **`context.net` is left with the weights W**, which are near the mask's already.

    Ref: Ye et al., arXiv:1903.12561.
    """

    epochs: Whole = 5
    lr: Positive = 0.01
    optimizer: Literal["adam", "sgd"] = "sgd"
    rho: Weight = 0.01
    name: ClassVar[str] = "adv-admm"
    granularity: ClassVar[Literal["weight"]] = "weight"

    def __call__(self, context: Context) -> Scores:
        weights = weights_of(context.net.model, context.mask)
        dual = {name: torch.zeros_like(w) for name, w in weights.items()}
        targets = {name: z.clone() for name, z in self.projected(context, weights, dual).items()}
        seed = int(torch.randint(2**31, (), generator=context.generator))
        terms = (*context.fit.regularizers, Proximal(targets, self.rho))
        config = replace(context.fit, epochs=self.epochs, lr=self.lr, optimizer=self.optimizer, warmup=0.0, ramp=0.0, seed=seed, regularizers=terms)
        task = Task(context.net, Weights(context.net.model, context.mask), context.x, context.y, config)
        for _ in fit(task, listener=context.listener):
            sparse = self.projected(context, weights, dual)
            for name, z in sparse.items():
                dual[name] += weights[name].detach() - z
                targets[name].copy_(z - dual[name])
        return {name: w.detach().abs() for name, w in weights.items()}

    def projected(self, context: Context, weights: Mapping[str, Tensor], dual: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Z: the nearest matrix to W + U with as few weights as the mask will have."""
        moved = {name: w.detach() + dual[name] for name, w in weights.items()}
        kept = select({name: m.abs() for name, m in moved.items()}, context.removed, context.scope, context.mask)
        return {name: m * kept[name] for name, m in moved.items()}
