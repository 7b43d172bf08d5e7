"""What training minimises: a loss of one batch. Each objective is a frozen value that holds its own settings.

| objective | inputs that the loss looks at | bounds |
|---|---|---|
| `Natural` | the images | none |
| `Pgd`, `FgsmGradAlign` | one adversarial point each | none |
| `Gaussian` | images with noise | none (certified by smoothing) |
| `Ibp`, `CrownIbp` | the whole eps box | intervals, or CROWN over intervals |
| `Sabr` | a small box around an adversarial point | intervals |
| `MtlIbp`, `CcIbp`, `ExpIbp` | an adversarial point each, and the whole eps box | intervals |
| `MixTrain` | the images or an adversarial point each, and the eps boxes of a few | intervals |
"""
from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn.functional import cross_entropy

from certprune.train.net import Batch


class Objective(Protocol):
    """`objective(batch)` is the scalar to minimise."""

    name: str

    def __call__(self, batch: Batch) -> Tensor: ...


def worst_case(lower: Tensor, y: Tensor) -> Tensor:
    """Cross entropy at the logits -lower: an upper bound of the cross entropy over the region whose margins `lower (B, classes)` bounds.

    Sound: margins y_label - y_j enter softmax as differences only, and cross entropy falls in each of them.

    Ref: Wong and Kolter, arXiv:1711.00851, theorem 2.
    """
    return cross_entropy(-lower, y)
