"""Gradients of a loss in the prunable weights, a batch at a time, of a copy of the network as training sees it."""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

import verifier
from certprune.prune.mask import weights_of
from certprune.prune.scorer import Context
from certprune.train.fit import pixels
from certprune.train.net import Batch, Net

Gradients = dict[str, Tensor]
"""By parameter name, in the weight's shape."""


def drawn(context: Context, images: int) -> Tensor:
    """Indices of so many training images (all, if there are fewer), `(n,)`, without repetition."""
    return torch.randperm(len(context.x), generator=context.generator)[:images]


def split(values: Tensor, batch: int) -> tuple[Tensor, ...]:
    """Parts of nearly equal size, at most `batch` each, none of a single value where there are two."""
    return values.tensor_split(-(-len(values) // max(batch, 3)))


def with_batch(context: Context, most: int) -> Context:
    """The context with batches of at most so many images."""
    return replace(context, fit=replace(context.fit, batch=min(context.fit.batch, most)))


def batches(context: Context, index: Tensor) -> Iterator[Batch]:
    """The images `index` in batches of nearly equal size at the final eps, BatchNorm working over each; of a copy, so no statistics move.

    Raises:
        VerifierError: there are fewer than two images: BatchNorm knows no variance of one.
    """
    if len(index) < 2:
        raise verifier.VerifierError(f"A score needs at least two training images, here are {len(index)}.")
    net = Net(copy.deepcopy(context.net.model).train(), context.net.input_shape)
    device = next(net.model.parameters()).device
    for part in split(index, context.fit.batch):
        x, y = pixels(context.x[part]).to(device), context.y[part].to(device)
        yield Batch(net, x, y, context.fit.eps, context.fit.eps, 1.0, context.generator)


def gradients(context: Context, loss: Callable[[Batch], Tensor], index: Tensor) -> Iterator[tuple[Gradients, int]]:
    """d loss / d w at the images `index`, one batch after another, with the number of its images.

    Raises:
        VerifierError: as for `batches`, or a gradient is not finite.
    """
    for batch in batches(context, index):
        yield gradient(context, batch, loss(batch)), len(batch.x)


def gradient(context: Context, batch: Batch, loss: Tensor) -> Gradients:
    """d loss / d w for the loss of one batch.

    Raises:
        VerifierError: it is not finite.
    """
    weights = weights_of(batch.net.model, context.mask)
    found = torch.autograd.grad(loss, list(weights.values()), retain_graph=True, materialize_grads=True)
    if not all(bool(g.isfinite().all()) for g in found):
        raise verifier.VerifierError(f"A gradient is not finite at eps {batch.eps:g}: train the network before it is scored, or lower eps.")
    return dict(zip(weights, found))


def mean_gradients(context: Context, loss: Callable[[Batch], Tensor], index: Tensor) -> Gradients:
    """The mean of d loss / d w over images: batches weigh as many images as they have."""
    total: Gradients = {}
    for found, count in gradients(context, loss, index):
        total = {name: total.get(name, 0) + g * (count / len(index)) for name, g in found.items()}
    return total
