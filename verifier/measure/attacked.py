"""The least margin that projected gradient descent finds around each image: what no certificate can exceed.

    margin(x) = y_label - max over j != label of y_j,   descended from the image itself first, then from random points of its ball

Ref: Madry et al., arXiv:1706.06083, with the margin as loss, decaying steps and momentum.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from verifier.attack.region import Region, center_of, descent_step, project, region_of, sample
from verifier.config import AttackConfig
from verifier.graph.execute import execute
from verifier.graph.ir import Graph
from verifier.spec.spec import Case

if TYPE_CHECKING:
    from verifier.measure.certified import Perturbation

MAX_IMAGES, MAX_ELEMENTS = 256, 8_000_000  # in one pass: as many images as fill the machine, as few as its caches and memory hold
FIRST_RATE, LAST_RATE, MOMENTUM = 0.5, 0.005, 0.7


def attacked_margins(
    graph: Graph,
    images: np.ndarray,
    labels: np.ndarray,
    around: Perturbation,
    config: AttackConfig,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """The least margin found in each image's ball, `(N,)`; below zero the label is lost somewhere in it.

    Args:
        images: `(N, *shape)` in their own units.
        labels: `(N,)`.
        config: `restarts` starts an image, the first of them the image, `steps` steps each; an image that lost its label starts no more.

    Sound: every value is attained, up to the rounding of a float32 pass, so it is an upper bound of the least margin of the ball.
    """
    moved = graph.to(device, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    cases = [_ball(x, int(y), around, int(np.prod(graph.output_shape))) for x, y in zip(images, labels, strict=True)]
    elements = sum(int(np.prod(node.shape)) for node in graph.nodes)
    piece = max(1, min(MAX_IMAGES, MAX_ELEMENTS // max(elements, 1)))
    least = np.full(len(cases), np.inf)
    for start in range(0, len(cases), piece):
        found = least[start : start + piece]  # a view
        region = region_of(cases[start : start + piece], device, torch.float32)
        label = torch.as_tensor(labels[start : start + piece], device=region.lower.device)
        for number in range(config.restarts):
            still = np.flatnonzero(found > 0)
            if not len(still):
                break
            each = torch.as_tensor(still, device=label.device)
            x = center_of(region, each) if number == 0 else sample(region, each, generator)
            found[still] = np.minimum(found[still], _descend(moved, (region, each), x, label[each], config.steps))
    return least


def _ball(image: np.ndarray, label: int, around: Perturbation, n_out: int) -> Case:
    from verifier.spec.robustness import robustness

    return robustness(image, label, around.eps, n_out, around.norm, around.clip, around.mean, around.std).cases[0]


def _descend(graph: Graph, balls: tuple[Region, Tensor], x: Tensor, label: Tensor, steps: int) -> np.ndarray:
    """The least margin on the way of each point, `(P,)`; `balls` are a region and the number `(P,)` of each point's case in it."""
    least, velocity = torch.full_like(x[:, 0], torch.inf), torch.zeros_like(x)
    for step in range(steps + 1):
        margin, gradient = _margin_and_gradient(graph, x, label)
        least = torch.minimum(least, margin)
        if step == steps:
            break
        velocity = MOMENTUM * velocity + gradient / gradient.abs().mean(1, keepdim=True).clamp_min(1e-30)
        rate = torch.full_like(least, FIRST_RATE * (LAST_RATE / FIRST_RATE) ** (step / steps))
        x = project(*balls, x + descent_step(*balls, velocity, rate))
    return least.cpu().numpy().astype(np.float64)


def _margin_and_gradient(graph: Graph, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        y = execute(graph, x.reshape(len(x), *graph.input_shape)).reshape(len(x), -1)
        others = y.scatter(1, label[:, None], -torch.inf)
        margin = y.gather(1, label[:, None]).squeeze(1) - others.amax(1)
        # A network whose output does not depend on its input has no gradient.
        gradient = torch.autograd.grad(margin.sum(), x, allow_unused=True)[0] if margin.requires_grad else None
    return margin.detach(), torch.zeros_like(x) if gradient is None else gradient.nan_to_num(0.0, 0.0, 0.0)
