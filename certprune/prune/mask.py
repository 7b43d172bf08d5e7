"""Masks: which weights live. Sparsity is always the fraction of prunable weights removed.

Three separate things: what is least useful (scores), what goes together (weights or whole output channels), and how many go where (a threshold a
layer, or one for all).
"""
from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import torch
from torch import Tensor, nn

import verifier

Mask = dict[str, Tensor]
"""For each prunable weight by parameter name: True where it lives, in the weight's shape. A removed channel takes its bias and BatchNorm's scale and
offset along: then these have entries too, `(channels,)`."""
Scores = dict[str, Tensor]
"""For each prunable weight by parameter name: higher = keep, in the weight's shape."""


class Layers(str, Enum):
    """Which weights may be pruned: those of convolutions, or of every layer but the last (whose every output is a class)."""

    CONV = "conv"
    ALL = "all"


class Scope(str, Enum):
    """Where scores compete: in each layer by itself, or in all together."""

    LAYER = "layer"
    GLOBAL = "global"


def prunable(model: nn.Module, layers: Layers) -> dict[str, nn.Parameter]:
    """The weights that may be pruned, by parameter name, in the order of the modules.

    Raises:
        VerifierError: there are none.
    """
    weighted = [(name, m) for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    chosen = weighted[:-1] if layers is Layers.ALL else [(name, m) for name, m in weighted if isinstance(m, nn.Conv2d)]
    if not chosen:
        raise verifier.VerifierError(f"The model has no prunable weights of layers {layers.value!r}: prune layers 'all', or another model.")
    return {f"{name}.weight": m.weight for name, m in chosen}


def full(model: nn.Module, layers: Layers) -> Mask:
    """Everything lives."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model, layers).items()}


def weights_of(model: nn.Module, mask: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """The weights that the mask speaks of; not the biases and BatchNorm parameters that removed channels took along."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name] for name, kept in mask.items() if kept.ndim > 1}


def sparsity(mask: Mapping[str, Tensor]) -> float:
    """The fraction of prunable weights removed; what a removed channel takes along (biases, BatchNorm's parameters) is not counted."""
    weights = [m for m in mask.values() if m.ndim > 1]
    return 1 - sum(int(m.sum()) for m in weights) / max(sum(m.numel() for m in weights), 1)


@torch.no_grad()
def apply(model: nn.Module, mask: Mapping[str, Tensor]) -> None:
    """Sets removed weights to zero, in place."""
    parameters = dict(model.named_parameters())
    for name, kept in mask.items():
        parameters[name].mul_(kept)


def select(scores: Scores, removed: float, scope: Scope, within: Mapping[str, Tensor] | None = None) -> Mask:
    """The mask that removes the fraction `removed` of lowest scores; what `within` has removed stays removed and counts.

    Ties are broken by position, so that the count is exact to one weight in each layer (`Scope.LAYER`) or overall.

    Raises:
        VerifierError: the fraction is not in [0, 1), or `within` has removed more already.
    """
    if not 0 <= removed < 1:
        raise verifier.VerifierError(f"sparsity is {removed:g}: give the fraction of weights to remove, from 0 up to but not including 1.")
    names = list(scores)
    flat = {name: _living(scores[name], None if within is None else within[name]) for name in names}
    if scope is Scope.LAYER:
        return {name: _largest(flat[name], removed).reshape(scores[name].shape) for name in names}
    kept = _largest(torch.cat([flat[name] for name in names]), removed)
    return {name: part.reshape(scores[name].shape) for name, part in zip(names, kept.split([flat[name].numel() for name in names]))}


def _living(score: Tensor, kept: Tensor | None) -> Tensor:
    """Scores `(N,)` in double precision, -infinity where the weight is gone already."""
    flat = score.detach().flatten().double()
    return flat if kept is None else flat.masked_fill(~kept.flatten(), -torch.inf)


def _largest(flat: Tensor, removed: float) -> Tensor:
    keep = flat.numel() - round(removed * flat.numel())
    if keep > int((flat > -torch.inf).sum()):
        raise verifier.VerifierError(f"sparsity {removed:g} keeps {keep} weights, but fewer live already: give a higher sparsity.")
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.argsort(descending=True, stable=True)[:keep]] = True
    return chosen
