"""The one gate through which every counterexample passes: a point of the network's input type in the region, replayed, judged as it is written."""
from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from verifier.errors import ShapeError
from verifier.spec.spec import Ball, Case, Polytope
from verifier.spec.truth import holds
from verifier.verdict import Counterexample, Reason

if TYPE_CHECKING:
    from verifier.graph.ir import Graph


class Replay(Protocol):
    """x `(n_in,)` of `input_dtype` to y `(n_out,)`; one without that attribute takes float32."""

    def __call__(self, x: np.ndarray) -> np.ndarray: ...


REFUSALS = {
    Reason.NO_NUMBER: "An input's interval holds no number of the network's input type, so a runtime can be given no counterexample.",
    Reason.TOUCHES: "A point only touches the unsafe set: it lies on its border, which the property leaves out.",
    Reason.UNCONFIRMED: "A point violates the property in exact arithmetic, but onnxruntime's rounded outputs there do not.",
}
"""Why points that a search proposed were no counterexamples, the most telling reason first."""
_FAR_OUTSIDE = 1e-6
"""Of the size of a row's terms: beyond what float64 can err in a sum of 2^32 of them."""


def confirm(x: np.ndarray, case: Case, polytope: Polytope, replay: Replay) -> Counterexample | None:
    """The counterexample near x, or None: see `judge`."""
    found = judge(x, case, polytope, replay)
    return found if isinstance(found, Counterexample) else None


def judge(x: np.ndarray, case: Case, polytope: Polytope, replay: Replay) -> Counterexample | Reason:
    """The counterexample near x, or one of the keys of REFUSALS.

    Each coordinate is the number of the network's input type nearest to x among those that satisfy its bounds as they are written; a fixed input
    is the one nearest to its value, the only one that may lie outside of its bounds. The point must lie in the ball, and replay(x) in the
    polytope; where there is a text, its asserts must hold. All of that is decided over the rationals, the values of x and y as they are, with
    tolerance zero. The asserts must hold with a rounded fixed input at its value in the text; where a comparison mentions an output, at the value
    that the network received, too.

    Args:
        x: the candidate, `(n_in,)`, any float type.
        case: the region.
        polytope: one of the case's polytopes.
        replay: `replay_onnx` for a file, `replay_graph` for a network without one.

    Raises:
        ShapeError: x or the network's output has another size than the property.
    """
    point = np.asarray(x, dtype=np.float64).reshape(-1)
    if point.shape != case.lower.shape:
        raise ShapeError(f"The candidate has {point.size} numbers but the property has {case.lower.size} inputs.")
    if np.isnan(point).any():
        return Reason.UNCONFIRMED
    dtype = input_dtype(replay)
    low, high, lost = numbers_within(case, dtype)
    if lost.any():
        return Reason.NO_NUMBER
    inside = _into_region(point, case, low, high)
    if inside is None:
        return Reason.UNCONFIRMED
    y = np.asarray(replay(inside)).reshape(-1)
    if y.size != polytope.output.shape[1]:
        expected = polytope.output.shape[1]
        raise ShapeError(f"The network has {y.size} outputs but the property has {expected}: is it another network's property?")
    y = y if y.dtype.kind == "f" else y.astype(np.float64)
    if not np.isfinite(y).all():
        return Reason.UNCONFIRMED
    margin = _margin(inside, y, polytope)
    if margin is None:
        return Reason.UNCONFIRMED
    rounded = _as_written(inside, y, case, polytope)
    return Reason.TOUCHES if rounded is None else Counterexample(inside, y, margin, rounded)


def _as_written(x: np.ndarray, y: np.ndarray, case: Case, polytope: Polytope) -> int | None:
    """How many fixed inputs are rounded, where the point is unsafe to the letter; None where it is not."""
    rows = () if polytope.strict is None else np.flatnonzero(polytope.strict)
    if any(_exact_margin(x, y, polytope, r) == 0 for r in rows):
        return None
    if case.asserts is None:
        return sum(float(x[i]) != value for i, value in case.fixed_values().items())
    received, outputs = _rationals(x), _rationals(y)
    rounded = {i: value for i, value in case.fixed_values().items() if received[i] != value}
    written = received
    if rounded:
        written = list(received)
        for i, value in rounded.items():
            written[i] = value
        if not holds(case.asserts, received, outputs, alone=written):
            return None
    return len(rounded) if holds(case.asserts, written, outputs) else None


def _rationals(values: np.ndarray) -> list[Fraction]:
    return [Fraction(value) for value in values.astype(np.float64).tolist()]


def input_dtype(replay: Replay) -> np.dtype:
    """The type of the network's input."""
    return np.dtype(getattr(replay, "input_dtype", np.float32))


def replay_onnx(path: str | Path) -> Replay:
    """onnxruntime on the CPU: what a stranger would run."""
    from verifier.graph.onnx_run import OnnxRunner

    return OnnxRunner(path)


def replay_graph(graph: Graph) -> Replay:
    """The graph itself on the CPU, in the type of its input, for a network that has no ONNX file."""
    return GraphReplay(graph)


class GraphReplay:
    """x `(n_in,)` to y `(n_out,)` by a graph."""

    def __init__(self, graph: Graph) -> None:
        import torch

        self.input_dtype = np.dtype(graph.input_type)
        self._moved = graph.to("cpu", getattr(torch, graph.input_type))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        import torch

        from verifier.graph.execute import execute

        with torch.no_grad():
            point = torch.from_numpy(np.asarray(x).astype(self.input_dtype))
            return execute(self._moved, point.reshape(1, *self._moved.input_shape)).reshape(-1).numpy()


class LateReplay:
    """The replay of a graph, by its file where it has one, made when it is first asked."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    @cached_property
    def _made(self) -> Replay:
        return replay_onnx(self._graph.source) if self._graph.source else replay_graph(self._graph)

    @property
    def input_dtype(self) -> np.dtype:
        return input_dtype(self._made)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self._made(x)


def numbers_within(case: Case, dtype: np.dtype | type = np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The least and the largest number of a floating type that satisfy each input's bounds as written, and where there is none, `(n_in,)` each.

    A fixed input has the number nearest to its value, twice; where there is none, one near the interval stands twice.
    """
    dtype = np.dtype(dtype)
    lower, upper = (case.lower, case.upper) if case.within is None else case.within
    largest = float(np.finfo(dtype).max)
    low, high = (np.clip(side, -largest, largest).astype(dtype) for side in (lower, upper))
    with np.errstate(over="ignore"):
        low = np.where(low < lower, np.nextafter(low, dtype.type(np.inf)), low)
        high = np.where(high > upper, np.nextafter(high, dtype.type(-np.inf)), high)
    lost = (low > high) | ~np.isfinite(low) | ~np.isfinite(high)
    near = np.clip(case.lower, -largest, largest).astype(dtype)
    fixed = case.lower == case.upper if case.fixed is None else np.isin(np.arange(len(lower)), list(case.fixed))
    for i in np.flatnonzero(fixed & lost if case.fixed is None else fixed).tolist():
        value = Fraction(float(case.lower[i])) if case.fixed is None else Fraction(case.fixed[i])
        near[i] = _nearest(value, near[i])
        lost[i] = abs(value) > Fraction(largest)
        low[i] = high[i] = near[i]
    return np.where(lost, near, low), np.where(lost, near, high), lost


def _nearest(value: Fraction, near: np.floating) -> np.floating:
    """The number of `near`'s type nearest to the value, of which `near` or a neighbour is one; of two as near, the even one."""
    around = [near, *(np.nextafter(near, near.dtype.type(side)) for side in (-np.inf, np.inf))]
    finite = [number for number in around if np.isfinite(number)]
    return min(finite, key=lambda number: (abs(Fraction(float(number)) - value), int(number.view(f"u{number.itemsize}")) & 1))


def numbers_box(lower: np.ndarray, upper: np.ndarray, dtype: np.dtype | type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """`numbers_within` of a box whose bounds are closed."""
    return numbers_within(Case(lower, upper, ()), dtype)[:2]


def witness_text(counterexample: Counterexample) -> str:
    """A results file in the competition's form: `sat`, then `((X_0 v)` ... `(Y_n v))`, one pair a line.

    Every number is printed as the float64 of the same value, so that it reads back exactly in either precision.
    """
    values = [(f"X_{i}", v) for i, v in enumerate(counterexample.x)] + [(f"Y_{j}", v) for j, v in enumerate(counterexample.y)]
    return "sat\n(" + "\n".join(f"({name} {float(value)!r})" for name, value in values) + ")\n"


def _into_region(point: np.ndarray, case: Case, low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    """The number of the box nearest to `point`, drawn towards the ball's centre where it lies outside of it; None if that fails."""
    inside = _clipped(point, low, high)
    if case.ball is None:
        return inside
    # Rounding can leave the ball by an ulp a coordinate, so a point on its surface moves inwards in growing steps.
    away = point - case.ball.center
    size = np.abs(away).max(initial=0.0)
    length = size * np.linalg.norm(away / size, case.ball.norm) if size > 0 else 0.0
    for shrink in (0.0, 1e-16, 1e-15, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3):
        if _in_ball(inside, case.ball):
            return inside
        scale = min(1.0, case.ball.radius / length if length > 0 else 1.0) * (1 - shrink)
        inside = _clipped(case.ball.center + scale * away, low, high)
    return inside if _in_ball(inside, case.ball) else None


def _clipped(point: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The nearest numbers in [low, high], of their type."""
    return np.clip(np.clip(point, low.astype(np.float64), high.astype(np.float64)).astype(low.dtype), low, high)


def _in_ball(x: np.ndarray, ball: Ball) -> bool:
    """||x - center||_p <= radius, exactly."""
    (*point, radius), scale = _integers([*x.tolist(), float(ball.radius)])
    center, other = _integers(ball.center.tolist())
    common = max(scale, other)
    away = [abs((v << (common - scale)) - (c << (common - other))) for v, c in zip(point, center, strict=True)]
    return sum(d**ball.norm for d in away) <= (radius << (common - scale)) ** ball.norm


def _integers(values: Sequence[float]) -> tuple[list[int], int]:
    """(n, s): values = n / 2^s, exactly."""
    ratios = [float(value).as_integer_ratio() for value in values]
    scale = max((bottom.bit_length() - 1 for _, bottom in ratios), default=0)
    return [top << (scale - bottom.bit_length() + 1) for top, bottom in ratios], scale


def _margin(x: np.ndarray, y: np.ndarray, polytope: Polytope) -> float | None:
    """min over rows of offset - (output @ y + input @ x), None if it is negative.

    In float64 first; rows that are not far outside are summed exactly, so that an equality is an equality.
    """
    with np.errstate(all="ignore"):
        value, scale = polytope.output @ y.astype(np.float64), np.abs(polytope.output) @ np.abs(y).astype(np.float64)
        if polytope.input is not None:
            value = value + polytope.input @ x.astype(np.float64)
            scale = scale + np.abs(polytope.input) @ np.abs(x).astype(np.float64)
        scale = scale + np.abs(polytope.offset)
        far = (value - polytope.offset) / scale > _FAR_OUTSIDE
    if (far & np.isfinite(scale) & (scale > 1e-200)).any():  # below, products of a row may have been lost to underflow
        return None
    margins = [_exact_margin(x, y, polytope, r) for r in range(len(polytope.offset))]
    return _to_float(min(margins)) if min(margins) >= 0 else None


def _to_float(margin: Fraction) -> float:
    try:
        return float(margin)
    except OverflowError:
        return float(np.finfo(np.float64).max)


def _exact_margin(x: np.ndarray, y: np.ndarray, polytope: Polytope, r: int) -> Fraction:
    total = Fraction(float(polytope.offset[r]))
    parts = [(polytope.output[r], y)] + ([(polytope.input[r], x)] if polytope.input is not None else [])
    for row, values in parts:
        for k in np.flatnonzero(row):
            total -= Fraction(float(row[k])) * Fraction(float(values[k]))
    return total
