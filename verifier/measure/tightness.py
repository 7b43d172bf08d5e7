"""How tight each bound engine is on images: its bound of the worst class's margin beside the best that branch and bound proves.

    attack -> m*, a margin that an input attains     verify margin > m* - tolerance -> the proved end (m* moves where that is falsified)
    so that proved <= true minimum <= attained, and every engine's bound <= true minimum
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from verifier.config import AttackConfig, Config
from verifier.graph.ir import Graph
from verifier.measure.certified import Perturbation, ball
from verifier.measure.layout import fitted
from verifier.measure.strong import smallest_margins
from verifier.spec.spec import Spec
from verifier.verdict import Status, Verdict

if TYPE_CHECKING:
    from verifier.bounds.engine import BoundRequest, BoundResult

ENGINES = ("ibp", "crown-ibp", "crown", "alpha-crown")
BATCH = 8
TRIES = 3
"""How often a falsified m* is moved to the margin of the counterexample."""


@dataclass(frozen=True, slots=True)
class Tightness:
    """`bounds[engine] (N,)` of the smallest margin, `proved (N,)` by branch and bound, `attained (N,)` by an input; proved <= truth <= attained."""

    bounds: dict[str, np.ndarray]
    proved: np.ndarray
    attained: np.ndarray

    def gaps(self) -> dict[str, np.ndarray]:
        """How far each engine stays below branch and bound, `(N,)`, at least 0."""
        return {engine: self.proved - bound for engine, bound in self.bounds.items()}


def tightness(
    graph: Graph, images: np.ndarray, labels: np.ndarray, around: Perturbation, config: Config = Config(), tolerance: float = 0.01
) -> Tightness:
    """Bounds of min over the ball and the classes j of y_label - y_j, for each image.

    Args:
        images: `(N, *shape)` in their own units.
        labels: `(N,)`.
        config: `timeout_s` is for each image's branch and bound, `attack` also finds m*.
        tolerance: branch and bound proves the margin up to this, where its time is enough.
    """
    import torch

    images, n_out = fitted(graph, images, around), int(np.prod(graph.output_shape))
    specs = [ball(x, int(label), around, around.eps, n_out) for x, label in zip(images, labels)]
    found = smallest_margins(graph, [spec.cases[0] for spec in specs], config.attack or AttackConfig(), config.seed)
    with torch.no_grad():
        bounds = {engine: _bounds(graph.to("cpu", torch.float64), specs, engine) for engine in ENGINES}
    best = np.fmax.reduce(list(bounds.values()))  # an engine whose numbers overflow tells nothing of the others
    ends = [_proved(graph, spec, float(m), config, tolerance) for spec, m in zip(specs, found.margin)]
    proved, attained = (np.array(side) for side in zip(*ends))
    return Tightness(bounds, np.fmax(proved, best), attained)


def _bounds(graph: Graph, specs: list[Spec], engine: str) -> np.ndarray:
    """The engine's bound for each property, less its rounding."""
    from verifier.bounds.alpha import alpha_crown
    from verifier.bounds.crown import IbpOnly, crown
    from verifier.bounds.ibp import ibp
    from verifier.measure.screen import lowest_margins

    run: dict[str, Callable[[BoundRequest], BoundResult]] = {
        "ibp": ibp, "crown-ibp": partial(crown, intermediate=IbpOnly()), "crown": crown, "alpha-crown": alpha_crown,
    }
    parts = [specs[start:start + BATCH] for start in range(0, len(specs), BATCH)]
    return np.concatenate([lowest_margins(graph, [spec.cases[0] for spec in part], run[engine]).cpu().numpy() for part in parts])


def _proved(graph: Graph, spec: Spec, attained: float, config: Config, tolerance: float) -> tuple[float, float]:
    """(a proved lower bound of the smallest margin, an attained margin)."""
    from verifier.solve import verify

    for _ in range(TRIES):
        limit = attained - tolerance
        verdict = verify(graph, shifted(spec, limit), config)
        if verdict.status is Status.VERIFIED:
            return limit, attained
        if verdict.status is Status.UNKNOWN:
            return -np.inf if verdict.lower_bound is None else limit + verdict.lower_bound, attained
        attained = min(attained, _margin(spec, verdict))
    return -np.inf, attained


def shifted(spec: Spec, limit: float) -> Spec:
    """Unsafe iff output @ y - offset <= limit for some polytope."""
    cases = tuple(
        replace(case, polytopes=tuple(replace(p, offset=p.offset + limit) for p in case.polytopes)) for case in spec.cases
    )
    return replace(spec, cases=cases)


def _margin(spec: Spec, verdict: Verdict) -> float:
    """The smallest margin at a counterexample's outputs."""
    y = verdict.counterexample.y.astype(np.float64)
    return float(min((p.output @ y - p.offset).max() for p in spec.cases[0].polytopes))
