"""Random ReLU networks of a few neurons, as weights, as graphs and as MILPs: the truth about them, with no code of the verifier."""
from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from verifier.graph.ir import Graph, Node
from verifier.reduced.build import build
from verifier.reduced.problem import ReducedProblem
from verifier.spec.spec import Case, Polytope


@dataclass(frozen=True)
class Mlp:
    """y = W_k relu(... relu(W_1 x + b_1) ...) + b_k."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`(K, n_in)` to `(K, n_out)`."""
        for weight, bias in self.layers[:-1]:
            x = np.maximum(x @ weight.T + bias, 0)
        return x @ self.layers[-1][0].T + self.layers[-1][1]

    def graph(self) -> Graph:
        nodes = [Node("x", "Input", (), (1, self.layers[0][0].shape[1]))]
        for k, (weight, bias) in enumerate(self.layers):
            nodes.append(Node(f"z{k}", "Linear", (nodes[-1].name,), (1, len(bias)), {"weight": weight, "bias": bias}))
            if k + 1 < len(self.layers):
                nodes.append(Node(f"h{k}", "Relu", (nodes[-1].name,), (1, len(bias))))
        return Graph(tuple(nodes), nodes[-1].name)

    def problem(self, case: Case) -> ReducedProblem:
        return build(self.graph().to("cpu", torch.float64), case)


def random_mlp(seed: int, sizes: tuple[int, ...] = (3, 6, 5, 2)) -> Mlp:
    """Weights that float32 holds exactly."""
    random = np.random.default_rng(seed)
    single = lambda *shape: random.normal(size=shape).astype(np.float32).astype(np.float64)  # noqa: E731
    return Mlp(tuple((single(b, a) / 2, single(b) / 4) for a, b in pairwise(sizes)))


def margin(polytope: Polytope, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """max over rows of output @ y + input @ x - offset, `(K,)`: at most 0 in the polytope."""
    value = y @ polytope.output.T - polytope.offset
    return (value if polytope.input is None else value + x @ polytope.input.T).max(1)


def smallest_margin(mlp: Mlp, lower: np.ndarray, upper: np.ndarray, polytope: Polytope) -> tuple[float, np.ndarray]:
    """min over the box of `margin`, and an input that attains it: a MILP with one binary a neuron, bounds by intervals.

    Variables: x, then (h, phase) of each hidden layer, then t; the rows of the polytope are at most t.
    """
    hidden = [len(bias) for _, bias in mlp.layers[:-1]]
    size = len(lower) + 2 * sum(hidden) + 1
    rows, limits, low, high = [], [], [lower], [upper]
    before, at = slice(0, len(lower)), len(lower)
    l, u = lower, upper
    for (weight, bias), count in zip(mlp.layers, hidden):
        middle, reach = weight @ (l + u) / 2 + bias, np.abs(weight) @ (u - l) / 2
        zl, zu = np.minimum(middle - reach, -1e-6), np.maximum(middle + reach, 1e-6)
        for j in range(count):
            z, h, phase = np.zeros(size), np.zeros(size), np.zeros(size)
            z[before], h[at + j], phase[at + count + j] = weight[j], 1, 1
            # h >= z;  h <= z - l (1 - phase);  h <= u phase
            rows += [z - h, h - z - zl[j] * phase, h - zu[j] * phase]
            limits += [-bias[j], bias[j] - zl[j], 0.0]
        low += [np.zeros(2 * count)]
        high += [zu, np.ones(count)]
        before, at = slice(at, at + count), at + 2 * count
        l, u = np.maximum(middle - reach, 0), np.maximum(middle + reach, 0)
    weight, bias = mlp.layers[-1]
    for r, offset in enumerate(polytope.offset):
        row = np.zeros(size)
        row[before], row[-1] = polytope.output[r] @ weight, -1
        row[:len(lower)] += 0 if polytope.input is None else polytope.input[r]
        rows.append(row)
        limits.append(offset - polytope.output[r] @ bias)
    cost = np.zeros(size)
    cost[-1] = 1
    kinds = np.concatenate([np.zeros(len(lower)), *(np.repeat([0, 1], count) for count in hidden), [0]])
    around = Bounds(np.concatenate([*low, [-np.inf]]), np.concatenate([*high, [np.inf]]))
    found = milp(cost, integrality=kinds, bounds=around, constraints=LinearConstraint(np.array(rows), -np.inf, np.array(limits)))
    assert found.status == 0, found.message
    return float(found.fun), np.clip(found.x[:len(lower)], lower, upper)


def shifted(polytope: Polytope, by: float) -> Polytope:
    """Every offset moved by the same number: the smallest margin moves the other way."""
    return Polytope(polytope.output, polytope.offset + by, polytope.input)


def near_truth(mlp: Mlp, seed: int, gap: float, rows: int = 1) -> Case:
    """A box and a random polytope whose smallest margin is `gap`: safe where it is positive, unsafe where it is negative."""
    random = np.random.default_rng(seed)
    n_in, n_out = mlp.layers[0][0].shape[1], len(mlp.layers[-1][1])
    center, radius = random.normal(size=n_in) / 2, random.uniform(0.2, 1.0, n_in)
    inputs = random.normal(size=(rows, n_in)) if seed % 3 == 0 else None
    polytope = Polytope(random.normal(size=(rows, n_out)), np.zeros(rows), inputs)
    lower, upper = center - radius, center + radius
    smallest, _ = smallest_margin(mlp, lower, upper, polytope)
    return Case(lower, upper, (shifted(polytope, smallest - gap),))
