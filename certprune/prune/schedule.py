"""When and how often: one round of pruning, the sparsities of many, and going back to early weights between them.

Values in, values out: the loop that trains and verifies between rounds is elsewhere.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

import verifier
from certprune.prune.channels import select_channels
from certprune.prune.mask import Mask, Scope, select
from certprune.prune.scorer import Context, Scorer


def prune_once(scorer: Scorer, context: Context, scope: Scope, removed: float) -> Mask:
    """The mask with the fraction `removed` of lowest scores gone; what `context.mask` has removed stays removed and counts.

    Scorers of channels remove whole ones, at most `removed`. The network is not touched (but see `AdvAdmm`): `mask.apply` sets weights to zero.

    Raises:
        VerifierError: the fraction is not in [0, 1), more is gone already, or the scorer cannot score this network.
    """
    scores = scorer(replace(context, scope=scope, removed=removed))
    if scorer.granularity == "channel":
        return select_channels(context.net, scores, removed, scope, context.mask)
    companions = {name: kept for name, kept in context.mask.items() if kept.ndim == 1}
    return {**select(scores, removed, scope, context.mask), **companions}


def sparsities(target: float, rounds: int) -> list[float]:
    """1 - (1 - target)^(k / rounds), k = 1 ... rounds: each round removes the same share of the weights that remain.

    Sixteen rounds of 20 % are `sparsities(1 - 0.8**16, 16)`; one round is one-shot.
    """
    _check(target, rounds)
    return [*(1 - (1 - target) ** (k / rounds) for k in range(1, rounds)), target]


def evenly(target: float, rounds: int) -> list[float]:
    """target * k / rounds, k = 1 ... rounds: each round removes the same share of all weights."""
    _check(target, rounds)
    return [*(target * k / rounds for k in range(1, rounds)), target]


def _check(target: float, rounds: int) -> None:
    if not 0 <= target < 1:
        raise verifier.VerifierError(f"The last round's sparsity is {target:g}: give the fraction to remove, from 0 up to but not including 1.")
    if rounds < 1:
        raise verifier.VerifierError(f"Pruning in {rounds} rounds removes nothing: give 1 (one-shot) or more.")


def rewound(state: Mapping[str, Tensor], early: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The early state (of initialisation, or of an early epoch) under the mask; `state` is today's, which it must fit.

    Weights that a kept channel refills come back with their early values.

    Raises:
        VerifierError: the early state is of another architecture.
    """
    other = sorted(set(state) ^ set(early)) or [name for name in state if state[name].shape != early[name].shape]
    if other:
        raise verifier.VerifierError(f"The early weights are of another network: {other[0]!r} is not the same in both; rewind to this network's own.")
    return {name: value * mask[name] if name in mask else value.clone() for name, value in early.items()}
