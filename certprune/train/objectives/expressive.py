"""The two losses that expressive objectives mix, computed for one function: BatchNorm over the statistics of the images themselves.

Ref: De Palma et al., arXiv:2305.13991: a loss is expressive if one coefficient alpha leads it continuously and monotonically from a lower bound
of the worst-case loss (at an adversarial point, alpha = 0) to an upper one (over interval bounds, alpha = 1).

| alpha mixes | objective |
|---|---|
| margins | `CcIbp` |
| losses, by an arithmetic mean | `MtlIbp` |
| losses, by a geometric mean | `ExpIbp` |
"""
from __future__ import annotations

from torch import Tensor

from certprune.train.attack import adversarial
from certprune.train.net import Batch


def attacked(batch: Batch, steps: int, step: float) -> Tensor:
    """The logits at an adversarial point of each image's eps box, `(B, classes)`: their margins are at least the bounds `batch.ibp()`."""
    _ = batch.clean
    return batch.at(adversarial(batch, batch.frozen, batch.box(), steps, step))
