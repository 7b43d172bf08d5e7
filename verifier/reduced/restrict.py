"""A reduced problem over a sub-box: neurons bounded again block by block, newly stable ones eliminated, inputs scaled back to [-1, 1]."""
from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from verifier.reduced.boxes import box_bounds, center_and_radius
from verifier.reduced.eliminate import eliminate
from verifier.reduced.problem import InputMap, ReducedProblem


def restrict(problem: ReducedProblem, lower: Tensor, upper: Tensor) -> ReducedProblem:
    """The problem over one box `lower, upper (n,)` within [-1, 1]^n, in the box's own scaled inputs.

    A ball around the region is left out: the box alone contains what was in both.

    Sound: x = center + radius x' maps [-1, 1]^n onto the box (the radius covers the rounding of the centre), and all bounds are bounds over it.
    """
    center, radius = center_and_radius(lower, upper)
    bounds = box_bounds(problem, lower.unsqueeze(0), upper.unsqueeze(0))
    old = problem.inputs
    full = old.center.clone()
    full[old.free] += center * old.radius
    moved = replace(
        problem, A=problem.A * radius, b=problem.b + problem.A @ center, A_o=problem.A_o * radius, b_o=problem.b_o + problem.A_o @ center,
        inputs=InputMap(full, old.radius * radius, old.free), ball=None,
    )
    return eliminate(moved.with_bounds(bounds.z_lower[0], bounds.z_upper[0]))
