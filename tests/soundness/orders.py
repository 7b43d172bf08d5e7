"""A network in float32, as many runtimes may compute it: sums in many orders, blocks, with fused multiply-add, with subnormals flushed.

Nothing here imports the verifier. `runs` evaluates a whole network in one order; `worst` lets every neuron choose the order that hurts a row of
outputs most, which a runtime that sums "in any order" may do as well.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from tests.soundness.exact_truth import Net, Step

Order = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Weights `(m, k)`, values `(P, k)` and bias `(m,)`, all float32, to sums `(P, m)`."""
LEAST = np.float32(2.0**-126)


def _terms(w: np.ndarray, v: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rounded products and the bias behind them, `(P, m, k + 1)`."""
    products = w[None] * v[:, None]
    return np.concatenate([products, np.broadcast_to(b[None, :, None], (*products.shape[:2], 1))], -1)


def _chain(terms: np.ndarray) -> np.ndarray:
    return np.add.accumulate(terms, axis=-1, dtype=np.float32)[..., -1]


def _pairs(terms: np.ndarray) -> np.ndarray:
    while terms.shape[-1] > 1:
        even = terms.shape[-1] // 2 * 2
        terms = np.concatenate([terms[..., 0:even:2] + terms[..., 1:even:2], terms[..., even:]], -1)
    return terms[..., 0]


def _blocks(terms: np.ndarray, width: int = 4) -> np.ndarray:
    """`width` partial sums side by side, as vector registers hold them, then their sum."""
    padded = np.concatenate([terms, np.zeros((*terms.shape[:-1], -terms.shape[-1] % width), np.float32)], -1)
    return _chain(_chain(np.moveaxis(padded.reshape(*padded.shape[:-1], -1, width), -1, -2)))


def _sorted(key: Callable[[np.ndarray], np.ndarray]) -> Order:
    def order(w: np.ndarray, v: np.ndarray, b: np.ndarray) -> np.ndarray:
        terms = _terms(w, v, b)
        return _chain(np.take_along_axis(terms, np.argsort(key(terms), axis=-1, kind="stable"), -1))

    return order


def _fused(w: np.ndarray, v: np.ndarray, b: np.ndarray) -> np.ndarray:
    """acc = round(acc + w v): the product of two float32 is exact in float64."""
    total = np.broadcast_to(b, (len(v), len(b))).astype(np.float32)
    for k in range(w.shape[1]):
        total = (total.astype(np.float64) + w[:, k].astype(np.float64) * v[:, k:k + 1].astype(np.float64)).astype(np.float32)
    return total


def _flushed(w: np.ndarray, v: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Subnormal operands and results are zero."""
    zero = lambda a: np.where(abs(a) < LEAST, np.float32(0), a)  # noqa: E731
    terms, total = zero(_terms(zero(w), zero(v), zero(b))), np.zeros((len(v), len(b)), np.float32)
    for k in range(terms.shape[-1]):
        total = zero(total + terms[..., k])
    return total


def _permuted(seed: int) -> Order:
    def order(w: np.ndarray, v: np.ndarray, b: np.ndarray) -> np.ndarray:
        return _chain(_terms(w, v, b)[..., np.random.default_rng([seed, w.shape[1]]).permutation(w.shape[1] + 1)])

    return order


ORDERS: dict[str, Order] = {
    "forward": lambda w, v, b: _chain(_terms(w, v, b)),
    "bias first": lambda w, v, b: _chain(np.roll(_terms(w, v, b), 1, -1)),
    "backward": lambda w, v, b: _chain(_terms(w, v, b)[..., ::-1]),
    "pairs": lambda w, v, b: _pairs(_terms(w, v, b)),
    "four at once": lambda w, v, b: _blocks(_terms(w, v, b)),
    "rising": _sorted(abs),
    "falling": _sorted(lambda terms: -abs(terms)),
    "positive first": _sorted(lambda terms: -terms),
    "negative first": _sorted(lambda terms: terms),
    "fused": _fused,
    "flushed": _flushed,
    "permuted": _permuted(0),
    "permuted otherwise": _permuted(1),
}
FEW = ("forward", "backward", "pairs", "falling", "negative first", "fused")


def evaluated(step: Step, sources: list[np.ndarray], affine: Callable[[Step, np.ndarray], np.ndarray]) -> np.ndarray:
    """The value `(P, size)` of a step in the type of its sources."""
    z, kind = sources[0], sources[0].dtype.type
    if step.kind == "affine":
        return affine(step, z)
    if step.kind == "concat":
        return np.concatenate(sources, -1)
    if step.kind == "max":
        return np.stack([z[:, list(group)].max(-1) for group in step.groups], -1)
    numbers = [kind(v) for v in step.numbers]
    return {
        "relu": lambda: np.maximum(z, kind(0)), "add": lambda: z + sources[1], "leaky": lambda: np.where(z > 0, z, z * numbers[0]),
        "clip": lambda: np.clip(z, *numbers), "abs": lambda: abs(z), "larger": lambda: np.maximum(z, sources[1]), "mul": lambda: z * sources[1],
        "sigmoid": lambda: (0.5 + 0.5 * np.tanh(z.astype(np.float64) / 2)).astype(kind), "tanh": lambda: np.tanh(z.astype(np.float64)).astype(kind),
    }[step.kind]()


def _forward(net: Net, x: np.ndarray, affine: Callable[[Step, np.ndarray], np.ndarray]) -> list[np.ndarray]:
    values = [x]
    with np.errstate(all="ignore"):
        for step in net.steps:
            values.append(evaluated(step, [values[s] for s in step.sources], affine))
    return values


def _arrays(step: Step) -> tuple[np.ndarray, np.ndarray]:
    assert step.matrix is not None and step.bias is not None
    return np.asarray(step.matrix, np.float32), np.asarray(step.bias, np.float32)


def runs(net: Net, x: np.ndarray, name: str) -> np.ndarray:
    """Outputs `(P, n_out)` of float32 points `x (P, n_in)` in one order of summation."""

    def affine(step: Step, z: np.ndarray) -> np.ndarray:
        w, b = _arrays(step)
        return ORDERS[name](w, z, b)

    return _forward(net, np.asarray(x, np.float32), affine)[-1]


def in_float64(net: Net, x: np.ndarray) -> list[np.ndarray]:
    """Every value in float64, `(P, size)` each."""
    return _forward(net, np.asarray(x, np.float64), lambda step, z: z @ np.asarray(step.matrix, float).T + np.asarray(step.bias, float))


def worst(net: Net, x: np.ndarray, row: Sequence[float], names: Sequence[str] = tuple(ORDERS)) -> np.ndarray:
    """Outputs `(P, n_out)` where each neuron is summed in the order, of those named, that lowers row @ y most, as far as its gradient says."""
    points = np.asarray(x, np.float32)
    gradients = iter(_gradients(net, in_float64(net, points), np.asarray([float(c) for c in row])))

    def affine(step: Step, z: np.ndarray) -> np.ndarray:
        w, b = _arrays(step)
        every = np.stack([ORDERS[name](w, z, b) for name in names])
        return np.where(next(gradients) > 0, np.fmin.reduce(every), np.fmax.reduce(every))

    return _forward(net, points, affine)[-1]


def _gradients(net: Net, values: list[np.ndarray], row: np.ndarray) -> list[np.ndarray]:
    """d (row @ y) / d value of every affine step, first step first; at a kink the side that lets a change through."""
    total = [np.zeros_like(v) for v in values]
    total[-1] = np.broadcast_to(row, values[-1].shape).copy()
    found = []
    for number in range(len(net.steps), 0, -1):
        step, g = net.steps[number - 1], total[number]
        z = values[step.sources[0]]
        near = 1e-4 * abs(z).max(-1, keepdims=True)
        if step.kind == "affine":
            found.append(g)
            total[step.sources[0]] += g @ np.asarray(step.matrix, float)
        elif step.kind in ("add", "mul", "larger"):
            other = values[step.sources[1]]
            own = {"add": (1.0, 1.0), "mul": (other, z), "larger": (z >= other, z < other)}[step.kind]
            for source, factor in zip(step.sources, own):
                total[source] += g * factor
        elif step.kind == "concat":
            start = 0
            for source in step.sources:
                total[source] += g[:, start:start + values[source].shape[1]]
                start += values[source].shape[1]
        elif step.kind == "max":
            for k, group in enumerate(step.groups):
                winner = np.asarray(group)[z[:, list(group)].argmax(-1)]
                np.add.at(total[step.sources[0]], (np.arange(len(z)), winner), g[:, k])
        else:
            slope = 1.0
            if step.kind in ("relu", "abs", "leaky"):
                left = {"relu": 0.0, "abs": -1.0, "leaky": step.numbers[0] if step.numbers else 0.0}[step.kind]
                slope = np.where(z >= -near, 1.0, left) if step.kind == "relu" else np.where(z > 0, 1.0, left)
            total[step.sources[0]] += g * slope
    return found[::-1]


def reaches(polytope: Sequence, y: np.ndarray) -> bool:
    """Whether outputs `(n_out,)` satisfy all rows (coefficients, offset), exactly; what is not finite reaches nothing."""
    if not np.isfinite(y).all():
        return False
    return all(sum(c * Fraction(float(v)) for c, v in zip(row, y) if c != 0) <= offset for row, offset in polytope)
