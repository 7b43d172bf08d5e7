"""Terms that are added to any objective: a frozen value each, called with the batch.

Ref: ReLU stability: Xiao et al., arXiv:1809.03008, section 3.3.2. Normalised: Li et al., arXiv:2206.07311, section 4.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

import verifier
from certprune.ranges import Weight
from certprune.train.net import Batch


class Regularizer(Protocol):
    """`regularizer(batch)` is the scalar to add to the loss, its weight included."""

    name: str
    weight: float

    def __call__(self, batch: Batch) -> Tensor: ...


Engine = Literal["ibp", "crown"]
ENGINES: dict[Engine, Callable[[Batch], verifier.BoundResult]] = {"ibp": Batch.ibp, "crown": Batch.crown}


@dataclass(frozen=True, slots=True)
class ReluStability:
    """weight * mean over images and neurons of -tanh(1 + l u), for the pre-activations' bounds l, u over the eps box.

    `engine`: whose bounds, `ibp` or `crown`.
    """

    weight: Weight
    engine: Engine = "ibp"
    name: ClassVar[str] = "rs"

    def __call__(self, batch: Batch) -> Tensor:
        return self.weight * mean_instability(batch, self.engine, {})


@dataclass(frozen=True, slots=True)
class NormalizedReluStability:
    """weight * mean over images and neurons of -tanh(1 + l u / gamma^2), gamma the scale of the neuron's BatchNorm channel, held constant.

    Without it a network makes -tanh(1 + l u) small by shrinking gamma, which changes no sign. Neurons without BatchNorm have gamma = 1.
    """

    weight: Weight
    engine: Engine = "ibp"
    name: ClassVar[str] = "nrs"

    def __call__(self, batch: Batch) -> Tensor:
        return self.weight * mean_instability(batch, self.engine, channel_scales(batch))


def channel_scales(batch: Batch) -> dict[str, Tensor]:
    """gamma `(channels,)` of each value that a BatchNorm gives, by its name, held constant."""
    norms, values = batch.net.norms, batch.net.norm_of_value
    return {value: norms[name].weight.detach() for value, name in values.items() if norms[name].affine}


def mean_instability(batch: Batch, engine: str, scales: dict[str, Tensor]) -> Tensor:
    """The mean of -tanh(1 + l u / scale^2) over the batch and all ReLUs' neurons.

    From -1 (stable, far from 0) by -tanh(1) (a bound touches 0) to 1 (unstable, both bounds far from 0).
    """
    if batch.eps == 0:
        return batch.x.new_zeros(())
    total, count = batch.x.new_zeros(()), 0
    for name, box in pre_activations(ENGINES[engine](batch)):
        product = box.lower * box.upper
        if name in scales:
            shape = (1, 1, -1, *([1] * (product.ndim - 3)))
            product = product / scales[name].square().clamp(min=1e-12).reshape(shape)
        total, count = total - torch.tanh(1 + product).sum(), count + product.numel()
    return total / max(count, 1)


def pre_activations(result: verifier.BoundResult) -> Iterator[tuple[str, verifier.Box]]:
    """The bounds of every value that a nonlinear operation reads, by name; in the network's order."""
    yield from result.intermediate.items()


@dataclass(frozen=True, slots=True)
class L1:
    """weight * sum of |w| over weights of convolutions and linear layers."""

    weight: Weight
    name: ClassVar[str] = "l1"

    def __call__(self, batch: Batch) -> Tensor:
        modules = batch.net.model.modules()
        return self.weight * sum(m.weight.abs().sum() for m in modules if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)))


@dataclass(frozen=True, slots=True)
class Slimming:
    """weight * sum of |gamma| over BatchNorm's scales (Liu et al., arXiv:1708.06519, equation 1)."""

    weight: Weight
    name: ClassVar[str] = "slimming"

    def __call__(self, batch: Batch) -> Tensor:
        return self.weight * sum(m.weight.abs().sum() for m in batch.net.norms.values())
