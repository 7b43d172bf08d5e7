"""What every pruning method answers: a score for each prunable weight, higher = keep.

How scores become a mask is not the method's business (mask.py), nor when and how often that happens (schedule.py).
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from certprune.prune.mask import Mask, Scope, Scores
from certprune.train.fit import FitConfig, Listener
from certprune.train.net import Net


@dataclass(frozen=True, slots=True)
class Findings:
    """What the last verification found, of the images of the selection split.

    `splits`: for each activation (by the name of the graph's value that it reads, e.g. a BatchNorm's), how often branch and bound split each of
    its neurons: `(*shape)` of that value, a sum over images. `undecided`: indices of images (of the training set) that it neither proved nor
    falsified; `falsified`: those with a counterexample.
    """

    splits: dict[str, Tensor] = field(default_factory=dict)
    undecided: tuple[int, ...] = ()
    falsified: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """What a score may depend on.

    `net`: the trained network, removed weights at zero. `mask`: what lives now. `x (N, *shape)`, `y (N,)`: training images. `fit`: the training
    whose objective the gradients are of. `removed`, `scope`: the sparsity aimed at, and where scores compete.
    """

    net: Net
    mask: Mask
    x: Tensor
    y: Tensor
    fit: FitConfig
    removed: float
    generator: torch.Generator
    findings: Findings | None = None
    listener: Listener = lambda _: None
    scope: Scope = Scope.LAYER


class Scorer(Protocol):
    """`scorer(context)`: scores in the shapes of `context.mask`. `granularity` says what goes together: single weights or output channels.

    A scorer of channels gives every weight of an output channel the same score.
    """

    name: str
    granularity: Literal["weight", "channel"]

    def __call__(self, context: Context) -> Scores: ...
