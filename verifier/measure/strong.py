"""A strong attack on many images at once: the smallest margin found in each one's ball. What is verified must survive it.

Each restart descends the margin of the worst class or, by turns, of one class (nearest first), from the centre or a random point. The step decays,
gradients have momentum, and points are projected (attack/region.py); PGD of Madry et al., arXiv:1706.06083.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from verifier.config import AttackConfig
from verifier.graph.ir import Graph
from verifier.measure.certified import Perturbation, ball
from verifier.measure.layout import fitted
from verifier.spec.spec import Case

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STRONG = AttackConfig(restarts=50, steps=200)
FIRST_RATE, LAST_RATE, MOMENTUM = 0.5, 0.005, 0.7
ELEMENTS = 4_000_000  # numbers in one pass


@dataclass(frozen=True, slots=True)
class Attained:
    """The smallest margin that was found in each region, `margin (N,)`, the polytope it belongs to, `polytope (N,)`, and where, `x (N, n_in)`."""

    margin: np.ndarray
    polytope: np.ndarray
    x: np.ndarray


def survives_attack(
    graph: Graph, images: np.ndarray, labels: np.ndarray, around: Perturbation, attack: AttackConfig = STRONG, seed: int = 0
) -> np.ndarray:
    """Whether no adversarial example was found, `(N,)` bool: one counts if onnxruntime says so too (the graph itself where it has no file).

    Args:
        images: `(N, *shape)` in their own units; an image that is classified wrongly does not survive.
        labels: `(N,)`.
        attack: `restarts` points an image, `steps` steps each.
    """
    from verifier.attack.confirm import confirm, replay_graph, replay_onnx

    images, n_out = fitted(graph, images, around), int(np.prod(graph.output_shape))
    cases = [ball(x, int(label), around, around.eps, n_out).cases[0] for x, label in zip(images, labels)]
    replay = replay_onnx(graph.source) if graph.source else replay_graph(graph)
    found = smallest_margins(graph, cases, attack, seed, enough=0.0)
    hits = [
        margin <= 0 and confirm(x, case, case.polytopes[k], replay) is not None
        for case, margin, k, x in zip(cases, found.margin, found.polytope, found.x)
    ]
    return ~np.array(hits, dtype=bool)


def smallest_margins(graph: Graph, cases: Sequence[Case], attack: AttackConfig, seed: int = 0, enough: float = -np.inf) -> Attained:
    """min over polytopes of output @ y - offset, the smallest that was found in each case: an upper bound of the true minimum.

    Args:
        graph: n_in numbers to n_out, run in float32 on the CPU.
        cases: regions with equally many polytopes of one row each, as those of `robustness`.
        enough: a case whose margin reaches this is left alone.
    """
    import torch

    from verifier.attack.region import region_of

    descent = _Descent(graph.to("cpu", torch.float32), cases, enough)
    region, generator = region_of(cases, "cpu", torch.float32), torch.Generator().manual_seed(seed)
    pairs = torch.arange(len(cases) * attack.restarts)
    size = max(1, ELEMENTS // sum(int(np.prod(node.shape)) for node in graph.nodes))
    for piece in pairs.split(size):
        case, number = piece % len(cases), torch.div(piece, len(cases), rounding_mode="floor")
        keep = descent.best[case] > enough
        if bool(keep.any()):
            descent.run(region, case[keep], number[keep], attack.steps, generator)
    return Attained(descent.best.double().numpy(), descent.polytope.numpy(), descent.x.double().numpy())


class _Descent:
    """The network, the margins' rows, and the best point of each case so far."""

    def __init__(self, graph: Graph, cases: Sequence[Case], enough: float) -> None:
        import torch

        tensor = lambda arrays: torch.as_tensor(np.stack(arrays), dtype=torch.float32)  # noqa: E731
        self.graph, self.enough = graph, enough
        self.rows = tensor([np.concatenate([p.output for p in case.polytopes]) for case in cases])
        self.offsets = tensor([np.concatenate([p.offset for p in case.polytopes]) for case in cases])
        self.best = torch.full((len(cases),), torch.inf)
        self.polytope = torch.zeros(len(cases), dtype=torch.long)
        self.x = tensor([case.lower for case in cases])

    def margins(self, x: Tensor, case: Tensor) -> Tensor:
        """`(P, S)` at points `(P, n_in)` of the cases `(P,)`."""
        import torch

        from verifier.graph.execute import execute

        y = execute(self.graph, x.reshape(len(x), *self.graph.input_shape)).reshape(len(x), -1)
        return torch.einsum("pso,po->ps", self.rows[case], y) - self.offsets[case]

    def run(self, region: object, case: Tensor, number: Tensor, steps: int, generator: torch.Generator) -> None:
        """Descends from one start for each pair of a case and a restart's number, both `(P,)`; points of cases that are done leave."""
        import torch

        from verifier.attack.region import center_of, descent_step, project, sample

        x = torch.where((number == 0).unsqueeze(1), center_of(region, case), sample(region, case, generator))
        velocity = torch.zeros_like(x)
        with torch.no_grad():
            nearest = self.margins(center_of(region, case), case).argsort(1)
            aimed = nearest.gather(1, (torch.div(number, 2, rounding_mode="floor") % nearest.shape[1]).unsqueeze(1))
        for step in range(steps + 1):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                margins = self.margins(x, case)
                loss = torch.where(number % 2 == 0, margins.amin(1), margins.gather(1, aimed).squeeze(1)).sum()
                # A network whose output does not depend on its input has no gradient.
                gradient = torch.autograd.grad(loss, x, allow_unused=True)[0] if loss.requires_grad else None
                gradient = torch.zeros_like(x) if gradient is None else gradient.nan_to_num(0.0, 0.0, 0.0)
            x = x.detach()
            self._keep(case, x, margins.detach())
            keep = self.best[case] > self.enough
            if step == steps or not bool(keep.any()):
                return
            velocity = MOMENTUM * velocity + gradient / gradient.abs().mean(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
            if not bool(keep.all()):
                x, velocity, case, number, aimed = (t[keep] for t in (x, velocity, case, number, aimed))
            rate = torch.full_like(x[:, 0], FIRST_RATE * (LAST_RATE / FIRST_RATE) ** (step / steps))
            x = project(region, case, x + descent_step(region, case, velocity, rate))

    def _keep(self, case: Tensor, x: Tensor, margins: Tensor) -> None:
        """Records the best point of each case; the last one written of several restarts of a case is the best."""
        worst, polytope = margins.min(1)
        order = worst.argsort(descending=True)
        order = order[worst[order] < self.best[case[order]]]
        for k in order.tolist():
            self.best[case[k]], self.polytope[case[k]], self.x[case[k]] = worst[k], polytope[k], x[k]
