"""Bounds of a network's outputs over a property's inputs, and what they say of each layer's neurons."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from verifier.errors import VerifierError
from verifier.graph.ir import Graph
from verifier.measure.stability import stability
from verifier.spec.spec import Case, Spec

if TYPE_CHECKING:
    import torch

    from verifier.bounds.engine import BoundResult

ENGINES = ("ibp", "crown", "alpha-crown")


@dataclass(frozen=True, slots=True)
class Layer:
    """One activation: neurons = unstable + active + inactive."""

    name: str
    neurons: int
    unstable: int
    active: int
    inactive: int


@dataclass(frozen=True, slots=True)
class OutputBounds:
    """lower <= y <= upper for every input of the property, `(n_out,)` float64; `layers` counts neurons over the same inputs."""

    lower: np.ndarray
    upper: np.ndarray
    layers: tuple[Layer, ...]


def output_bounds(graph: Graph, spec: Spec, engine: str = "crown") -> OutputBounds:
    """Bounds over the union of the property's input regions: the hull of the bounds over each.

    Args:
        graph: from `load_onnx` or `load_torch`.
        spec: whose cases' boxes and balls are the inputs; its polytopes play no part.
        engine: ibp, crown or alpha-crown.

    Raises:
        VerifierError: the engine is none of these, or the property has no inputs.
    """
    import torch

    if engine not in ENGINES:
        raise VerifierError(f"engine is {engine!r}: use one of {', '.join(ENGINES)}.")
    if not spec.cases:
        raise VerifierError(f"{spec.source or 'The property'} has no inputs to bound over: {spec.note or 'its input set is empty'}")
    moved = graph.to("cpu", torch.float64)
    with torch.no_grad():
        hull = _hull([_bound_case(moved, case, engine) for case in spec.cases])
    layers = (Layer(x.name, x.neurons, int(x.unstable), int(x.active), int(x.inactive)) for x in stability(moved, hull))
    return OutputBounds(hull.lower[0].numpy(), hull.upper[0].numpy(), tuple(layers))


def _hull(results: list[BoundResult]) -> BoundResult:
    """The smallest boxes around those of all results, each of B = 1."""
    import torch

    from verifier.bounds.engine import BoundResult
    from verifier.box import Box

    def around(boxes: list[Box]) -> Box:
        return Box(torch.cat([b.lower for b in boxes]).amin(0, True), torch.cat([b.upper for b in boxes]).amax(0, True))

    output = around([Box(r.lower, r.upper) for r in results])
    inside = {name: around([r.intermediate[name] for r in results]) for name in results[0].intermediate}
    return BoundResult(output.lower, output.upper, inside)


def _bound_case(graph: Graph, case: Case, engine: str) -> BoundResult:
    """The engine's bounds over one case, B = 1."""
    import torch

    from verifier.bounds.alpha import alpha_crown
    from verifier.bounds.crown import crown
    from verifier.bounds.engine import BoundRequest, NormBall
    from verifier.bounds.ibp import ibp
    from verifier.box import Box

    def shaped(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x).reshape(1, *graph.input_shape)

    ball = case.ball and NormBall(shaped(case.ball.center), torch.tensor([case.ball.radius], dtype=torch.float64), case.ball.norm)
    request = BoundRequest(graph, Box(shaped(case.lower), shaped(case.upper)), ball=ball)
    return {"ibp": ibp, "crown": crown, "alpha-crown": alpha_crown}[engine](request)
