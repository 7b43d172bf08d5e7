"""Adversarial points inside a box, as training uses them: a few signed gradient steps from a random start.

Ref: Madry et al., arXiv:1706.06083, section 2.1 (projected gradient descent).
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import verifier
from certprune.train.net import Batch

Logits = Callable[[Tensor], Tensor]


def adversarial(batch: Batch, logits: Logits, box: verifier.Box, steps: int, step: float) -> Tensor:
    """x <- clip(x + step * radius * sign(grad cross entropy(x, y)), box), `steps` times, from a uniform point of the box.

    Args:
        batch: whose labels the loss is of and whose generator draws the start.
        logits: the function that is attacked, `batch.search` or `batch.frozen`.
        box: `(B, 1, *input_shape)`; each pixel's radius is half of its side.
        step: the length of a step in radii.

    Returns:
        `(B, *input_shape)`, without a gradient.
    """
    center, radius = box.center.squeeze(1), box.radius.squeeze(1)
    x = center + radius * batch.noise()
    for _ in range(steps):
        x = inside(box, x + step * radius * input_gradient(logits, x, batch.y).sign())
    return inside(box, x)


def inside(box: verifier.Box, x: Tensor) -> Tensor:
    """The point of the box next to `x (B, *input_shape)`."""
    return torch.minimum(torch.maximum(x, box.lower.squeeze(1)), box.upper.squeeze(1))


def input_gradient(logits: Logits, x: Tensor, y: Tensor, differentiable: bool = False) -> Tensor:
    """The gradient of the summed cross entropy in the input `x (B, *input_shape)`, if wanted differentiable once more."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = cross_entropy(logits(x), y, reduction="sum")
        return torch.autograd.grad(loss, x, create_graph=differentiable)[0]
