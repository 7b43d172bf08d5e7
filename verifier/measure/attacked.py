"""The least margin that projected gradient descent finds around each image: what no certificate can exceed.

    margin(x) = y_label - max over j != label of y_j,   descended from the image itself first, then from random points of its ball

Ref: Madry et al., arXiv:1706.06083, with the margin as loss, decaying steps and momentum.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verifier.attack.confirm import Replay, confirm
from verifier.attack.region import Region, center_of, descent_step, project, region_of, sample
from verifier.config import AttackConfig
from verifier.graph.execute import execute
from verifier.graph.ir import Graph
from verifier.spec.spec import Case
from verifier.verdict import Counterexample

PGD = AttackConfig(restarts=5, steps=40)
"""What every image is attacked with before anything is proved of it."""
MAX_IMAGES, MAX_ELEMENTS = 256, 8_000_000  # in one pass: as many images as fill the machine, as few as its caches and memory hold
FIRST_RATE, LAST_RATE, MOMENTUM = 0.5, 0.005, 0.7


@dataclass(frozen=True, slots=True)
class Attacked:
    """The least margin `(N,)` that was found in each region, and a point `(N, n_in)` float32 that has it."""

    margin: np.ndarray
    x: np.ndarray


def attacked(
    graph: Graph, cases: Sequence[Case], labels: np.ndarray, config: AttackConfig, seed: int = 0, device: torch.device | str = "cpu"
) -> Attacked:
    """The least margin found in each image's region; below zero the label is lost somewhere in it.

    Args:
        labels: `(N,)`.
        config: `restarts` starts an image, the first of them the image, `steps` steps each; an image that lost its label starts no more.

    Sound: every value is attained, up to the rounding of a float32 pass, so it is an upper bound of the least margin of the region.
    """
    moved = graph.to(device, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    elements = sum(int(np.prod(node.shape)) for node in graph.nodes)
    piece = max(1, min(MAX_IMAGES, MAX_ELEMENTS // max(elements, 1)))
    least, best = np.full(len(cases), np.inf), np.zeros((len(cases), int(np.prod(graph.input_shape))), np.float32)
    for start in range(0, len(cases), piece):
        found, point = least[start : start + piece], best[start : start + piece]  # views
        region = region_of(cases[start : start + piece], device, torch.float32)
        label = torch.as_tensor(labels[start : start + piece], device=region.lower.device)
        for number in range(config.restarts):
            still = np.flatnonzero(found > 0)
            if not len(still):
                break
            each = torch.as_tensor(still, device=label.device)
            x = center_of(region, each) if number == 0 else sample(region, each, generator)
            margin, x_least = _descend(moved, (region, each), x, label[each], config.steps)
            better = margin < found[still]
            found[still[better]], point[still[better]] = margin[better], x_least[better]
    return Attacked(least, best)


def confirmed(found: Attacked, cases: Sequence[Case], labels: np.ndarray, replay: Replay) -> list[Counterexample | None]:
    """Of each region whose label an attack says is lost: the counterexample that the one gate makes of the point, or None.

    Args:
        cases: as those of `robustness`: a polytope for each class but the label, in their order.
    """
    return [
        _replayed(x, case, int(label), replay) if margin <= 0 else None for margin, x, case, label in zip(found.margin, found.x, cases, labels)
    ]


def _replayed(x: np.ndarray, case: Case, label: int, replay: Replay) -> Counterexample | None:
    y = np.asarray(replay(x), dtype=np.float64).reshape(-1)
    y[label] = -np.inf
    other = int(y.argmax())
    return confirm(x, case, case.polytopes[other - (other > label)], replay)


def _descend(graph: Graph, balls: tuple[Region, Tensor], x: Tensor, label: Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The least margin on the way of each point, `(P,)`, and where, `(P, n_in)`; `balls` are a region and the number `(P,)` of each point's case."""
    least, best, velocity = torch.full_like(x[:, 0], torch.inf), x, torch.zeros_like(x)
    for step in range(steps + 1):
        margin, gradient = _margin_and_gradient(graph, x, label)
        best, least = torch.where((margin < least).unsqueeze(1), x, best), torch.where(margin < least, margin, least)
        if step == steps:
            break
        velocity = MOMENTUM * velocity + gradient / gradient.abs().mean(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        rate = torch.full_like(least, FIRST_RATE * (LAST_RATE / FIRST_RATE) ** (step / steps))
        x = project(*balls, x + descent_step(*balls, velocity, rate))
    return least.cpu().numpy().astype(np.float64), best.detach().cpu().numpy()


def _margin_and_gradient(graph: Graph, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        y = execute(graph, x.reshape(len(x), *graph.input_shape)).reshape(len(x), -1)
        others = y.scatter(1, label[:, None], -torch.inf)
        margin = y.gather(1, label[:, None]).squeeze(1) - others.amax(1)
        # A network whose output does not depend on its input has no gradient.
        gradient = torch.autograd.grad(margin.sum(), x, allow_unused=True)[0] if margin.requires_grad else None
    return margin.detach(), torch.zeros_like(x) if gradient is None else gradient.nan_to_num(0.0, 0.0, 0.0)
