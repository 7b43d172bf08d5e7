"""How many neurons of each layer are unstable over a region: what decides how hard a network is to verify."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from verifier.errors import VerifierError

if TYPE_CHECKING:
    from torch import Tensor

    from verifier.bounds.engine import BoundResult
    from verifier.graph.ir import Graph
    from verifier.measure.certified import Perturbation


@dataclass(frozen=True, slots=True)
class LayerStability:
    """One activation over each of B regions. neurons = unstable + active + inactive, where the counts are `(B,)`.

    Active: affine with a nonzero slope over the whole box. Inactive: constant. Unstable: neither.
    """

    name: str
    op: str
    neurons: int
    unstable: Tensor
    active: Tensor
    inactive: Tensor


def stability(graph: Graph, result: BoundResult) -> tuple[LayerStability, ...]:
    """The state of every elementwise activation's neurons, given a result's bounds of what it reads, in the graph's order.

    Activations that the output does not depend on have no bounds and no row.
    """
    from verifier.box import Box, flat
    from verifier.ops import ElementwiseOp, rule_for

    layers = []
    for node in graph.nodes[1:]:
        rule = rule_for(node)
        if not isinstance(rule, ElementwiseOp) or node.inputs[0] not in result.intermediate:
            continue
        given = result.intermediate[node.inputs[0]]
        box = Box(flat(given.lower.detach(), 1), flat(given.upper.detach(), 1))
        unstable = rule.unstable(node, box)[0]
        settled = (rule.relax(node, box).lower_slope == 0) & ~unstable
        inactive, total = settled.sum(1), box.lower.shape[1]
        layers.append(LayerStability(node.name, node.op, total, unstable.sum(1), total - unstable.sum(1) - inactive, inactive))
    return tuple(layers)


@dataclass(frozen=True, slots=True)
class MeanStability:
    """Activations in the graph's order, `names`, `(L,)` neurons of each, and how many of them are unstable, active and inactive on average."""

    engine: str
    names: tuple[str, ...]
    neurons: np.ndarray
    unstable: np.ndarray
    active: np.ndarray
    inactive: np.ndarray


def stability_of_images(graph: Graph, images: np.ndarray, around: Perturbation, engine: str = "crown", batch: int = 64) -> MeanStability:
    """The mean over images of each layer's counts over their balls, by the bounds of one engine.

    Args:
        images: `(N, *shape)` in their own units, N at least 1.
        engine: ibp or crown.
        batch: images bounded together.

    Raises:
        VerifierError: the engine is neither, or there are no images.
    """
    import torch

    from verifier.bounds.crown import crown
    from verifier.bounds.ibp import ibp
    from verifier.measure.certified import ball
    from verifier.measure.layout import fitted
    from verifier.measure.screen import margin_request

    engines = {"ibp": ibp, "crown": crown}
    if engine not in engines:
        raise VerifierError(f"engine is {engine!r}: use ibp or crown.")
    if not len(images):
        raise VerifierError("There are no images to average over: give at least one.")
    images = fitted(graph, images, around)
    moved, n_out = graph.to("cpu", torch.float64), int(np.prod(graph.output_shape))
    total, layers = np.zeros(0), ()
    for start in range(0, len(images), batch):
        cases = [ball(image, 0, around, around.eps, n_out).cases[0] for image in images[start:start + batch]]
        with torch.no_grad():
            layers = stability(moved, engines[engine](margin_request(moved, cases)))
        counts = np.array([[layer.unstable.sum(), layer.active.sum(), layer.inactive.sum()] for layer in layers], dtype=np.float64)
        total = counts if start == 0 else total + counts
    unstable, active, inactive = total.T / len(images)
    neurons = np.array([layer.neurons for layer in layers])
    return MeanStability(engine, tuple(layer.name for layer in layers), neurons, unstable, active, inactive)
