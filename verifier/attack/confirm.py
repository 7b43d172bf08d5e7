"""The one gate through which every counterexample passes: the point as float32 in the exact region, replayed, judged without tolerance."""
from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from verifier.errors import ShapeError
from verifier.spec.spec import Ball, Case, Polytope
from verifier.verdict import Counterexample

if TYPE_CHECKING:
    from verifier.graph.ir import Graph

Replay = Callable[[np.ndarray], np.ndarray]
_LARGEST = float(np.finfo(np.float32).max)
_CLEARLY_OUTSIDE = -1e-6


def confirm(x: np.ndarray, case: Case, polytope: Polytope, replay: Replay) -> Counterexample | None:
    """The counterexample near x, or None: x rounded to float32 inside the case's box and ball, with replay(x) in the polytope.

    The box is exact: each coordinate is the float32 nearest to x among those in [lower, upper]. Where no float32 lies in [lower, upper] (a
    fixed input such as 0.1) the float32 nearest to the interval stands. The polytope is exact too: with the values of x and y taken as
    rationals, output @ y + input @ x <= offset holds with tolerance zero.

    Args:
        x: the candidate, `(n_in,)`, any float type.
        case: the region.
        polytope: one of the case's polytopes.
        replay: x `(n_in,)` float32 to y `(n_out,)`: `replay_onnx` for a file, `replay_graph` for a network without one.

    Raises:
        ShapeError: x or the network's output has another size than the property.
    """
    point = np.asarray(x, dtype=np.float64).reshape(-1)
    if point.shape != case.lower.shape:
        raise ShapeError(f"The candidate has {point.size} numbers but the property has {case.lower.size} inputs.")
    if np.isnan(point).any():
        return None
    inside = _into_region(point, case)
    if inside is None:
        return None
    y = np.asarray(replay(inside)).reshape(-1)
    if y.size != polytope.output.shape[1]:
        expected = polytope.output.shape[1]
        raise ShapeError(f"The network has {y.size} outputs but the property has {expected}: is it another network's property?")
    if not np.isfinite(y).all():
        return None
    margin = _margin(inside, y, polytope)
    return Counterexample(inside, y.astype(np.float32), margin) if margin is not None else None


def replay_onnx(path: str | Path) -> Replay:
    """onnxruntime on the CPU: what a stranger would run."""
    from verifier.graph.onnx_run import OnnxRunner

    return OnnxRunner(path)


def replay_graph(graph: Graph) -> Replay:
    """The graph itself in float32 on the CPU, for a network that has no ONNX file."""
    import torch

    from verifier.graph.execute import execute

    moved = graph.to("cpu", torch.float32)

    def run(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return execute(moved, torch.from_numpy(x).reshape(1, *moved.input_shape)).reshape(-1).numpy()

    return run


def float32_box(lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest float32 >= lower and the largest float32 <= upper; where none lies in [lower, upper], twice the nearest float32.

    Args:
        lower, upper: float64 of one shape, lower <= upper.
    """
    low = _to_float32(lower)
    low = np.where(low < lower, np.nextafter(low, np.float32(np.inf)), low)
    high = _to_float32(upper)
    high = np.where(high > upper, np.nextafter(high, np.float32(-np.inf)), high)
    # Only an interval strictly between two neighbours is crossed: high is the one below it, low the one above.
    nearest = np.where(lower - high <= low.astype(np.float64) - upper, high, low)
    crossed = low > high
    return np.where(crossed, nearest, low), np.where(crossed, nearest, high)


def witness_text(counterexample: Counterexample) -> str:
    """A results file in the competition's form: `sat`, then `((X_0 v)` ... `(Y_n v))`, one pair a line.

    A float32 is printed as the float64 of the same value, so that it reads back exactly in either precision.
    """
    values = [(f"X_{i}", v) for i, v in enumerate(counterexample.x)] + [(f"Y_{j}", v) for j, v in enumerate(counterexample.y)]
    return "sat\n(" + "\n".join(f"({name} {float(value)!r})" for name, value in values) + ")\n"


def _to_float32(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -_LARGEST, _LARGEST).astype(np.float32)


def _into_region(point: np.ndarray, case: Case) -> np.ndarray | None:
    """The float32 point of the box nearest to `point`, drawn towards the ball's centre where it lies outside of it; None if that fails."""
    low, high = float32_box(case.lower, case.upper)
    inside = np.clip(_to_float32(point), low, high)
    if case.ball is None:
        return inside
    # Rounding to float32 can leave the ball by an ulp a coordinate, so a point on its surface moves inwards in growing steps.
    for shrink in (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3):
        if _in_ball(inside, case.ball):
            return inside
        away = point - case.ball.center
        scale = min(1.0, case.ball.radius / max(np.linalg.norm(away, case.ball.norm), 1e-300)) * (1 - shrink)
        inside = np.clip(_to_float32(case.ball.center + scale * away), low, high)
    return inside if _in_ball(inside, case.ball) else None


def _in_ball(x: np.ndarray, ball: Ball) -> bool:
    """||x - center||_p <= radius, exactly where float64 cannot tell."""
    away = x.astype(np.float64) - ball.center
    length = float(np.linalg.norm(away, ball.norm))
    if abs(length - ball.radius) > 1e-9 * (ball.radius + length):
        return length < ball.radius
    exact = [abs(Fraction(float(v)) - Fraction(float(c))) for v, c in zip(x, ball.center, strict=True)]
    return sum(d**ball.norm for d in exact) <= Fraction(float(ball.radius)) ** ball.norm


def _margin(x: np.ndarray, y: np.ndarray, polytope: Polytope) -> float | None:
    """min over rows of offset - (output @ y + input @ x), None if it is negative.

    In float64 first; rows that are not clearly outside are summed exactly, so that an equality is an equality.
    """
    value = polytope.output @ y.astype(np.float64)
    if polytope.input is not None:
        value = value + polytope.input @ x.astype(np.float64)
    scale = 1 + np.abs(polytope.output) @ np.abs(y) + np.abs(polytope.offset)
    if polytope.input is not None:
        scale = scale + np.abs(polytope.input) @ np.abs(x)
    if ((polytope.offset - value) / scale).min() < _CLEARLY_OUTSIDE:
        return None
    margins = [_exact_margin(x, y, polytope, r) for r in range(len(polytope.offset))]
    return float(min(margins)) if min(margins) >= 0 else None


def _exact_margin(x: np.ndarray, y: np.ndarray, polytope: Polytope, r: int) -> Fraction:
    total = Fraction(float(polytope.offset[r]))
    parts = [(polytope.output[r], y)] + ([(polytope.input[r], x)] if polytope.input is not None else [])
    for row, values in parts:
        for k in np.flatnonzero(row):
            total -= Fraction(float(row[k])) * Fraction(float(values[k]))
    return total
