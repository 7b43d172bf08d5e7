"""Slow truths that fast bounds are held against. Imports the rules of operations, and no engine.

`Affine` values: every value of a ReLU network as an explicit affine function of variables, the inputs and one for each unstable ReLU, got by
pushing unit columns forwards. On them stand the LP (planes), the MILP (truth), and a transcription of CROWN that substitutes one variable after
the other. None of them walks a graph backwards.
"""
from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from verifier.box import Box
from verifier.graph.execute import execute
from verifier.graph.ir import Graph
from verifier.ops import rule_for


def points(box: Box, count: int, seed: int = 0) -> Tensor:
    """Points of each problem's box, `(B, count + 2 ** min(n, 6), *shape)`: uniform ones, and corners."""
    random = torch.Generator().manual_seed(seed)
    shape = box.lower.shape[1:]
    share = torch.rand(count, *shape, generator=random, dtype=torch.float64)
    size = min(shape.numel(), 6)
    few = torch.tensor(list(itertools.product((0.0, 1.0), repeat=size)), dtype=torch.float64)
    signs = (torch.rand(len(few), shape.numel(), generator=random, dtype=torch.float64) < 0.5).double()
    signs[:, :size] = few
    share = torch.cat([share, signs.reshape(-1, *shape)])
    inside = box.lower.unsqueeze(1) + share * (box.upper - box.lower).unsqueeze(1)
    return torch.minimum(torch.maximum(inside, box.lower.unsqueeze(1)), box.upper.unsqueeze(1))


def values(graph: Graph, x: Tensor) -> Tensor:
    """The network on points `(B, N, *input_shape)`, flattened: `(B, N, n_out)`."""
    batch, count = x.shape[:2]
    return execute(graph, x.flatten(0, 1)).reshape(batch, count, -1)


@dataclass(frozen=True)
class Planes:
    """A ReLU network over one box: output = constant + matrix @ [x, y], y = relu(z) for each unstable neuron, z affine in what comes before it.

    `neurons`: for each y, in topological order, (matrix row, constant) of its z and its bounds (l, u).
    """

    lower: np.ndarray
    upper: np.ndarray
    neurons: list[tuple[np.ndarray, float, float, float]]
    matrix: np.ndarray
    constant: np.ndarray


def explicit(graph: Graph, box: Box, intermediate: Mapping[str, Box], problem: int) -> Planes:
    """The network of one problem with its stable neurons substituted away, by the given bounds of pre-activations."""
    graph = graph.to("cpu", torch.float64)
    lower, upper = box.lower[problem].flatten(), box.upper[problem].flatten()
    columns = {graph.input.name: torch.eye(len(lower), dtype=torch.float64).reshape(-1, *graph.input_shape)}
    constant = {graph.input.name: torch.zeros(1, *graph.input_shape, dtype=torch.float64)}
    neurons: list[tuple[np.ndarray, float, float, float]] = []
    for node in graph.nodes[1:]:
        total = len(lower) + len(neurons)
        ins = [torch.cat([columns[k], columns[k].new_zeros(total - len(columns[k]), *columns[k].shape[1:])]) for k in node.inputs]
        if node.op != "Relu":
            columns[node.name] = rule_for(node).linear(node, *ins)
            constant[node.name] = rule_for(node).forward(node, *(constant[k] for k in node.inputs))
            continue
        seen = intermediate[node.inputs[0]]
        low, high = seen.lower[problem].flatten(), seen.upper[problem].flatten()
        rows, offsets = ins[0].flatten(1), constant[node.inputs[0]].flatten()
        free = ((low < 0) & (high > 0)).nonzero().flatten()
        neurons += [(rows[:, j].numpy(), float(offsets[j]), float(low[j]), float(high[j])) for j in free]
        active = (low >= 0).double()
        units = torch.zeros(len(free), rows.shape[1], dtype=torch.float64)
        units[torch.arange(len(free)), free] = 1
        columns[node.name] = torch.cat([rows * active, units]).reshape(-1, *node.shape)
        constant[node.name] = (offsets * active).reshape(1, *node.shape)
    last = columns[graph.output].flatten(1)
    last = torch.cat([last, last.new_zeros(len(lower) + len(neurons) - len(last), last.shape[1])])
    return Planes(lower.numpy(), upper.numpy(), neurons, last.T.numpy(), constant[graph.output].flatten().numpy())


def crown_minimum(planes: Planes, row: np.ndarray) -> float:
    """min of row @ output by substituting each y, from the last to the first, by its plane: alpha z (alpha 1 where u > -l) or u (z - l) / (u - l)."""
    coeff, bias, inputs = row @ planes.matrix, float(row @ planes.constant), len(planes.lower)
    for k in reversed(range(len(planes.neurons))):
        matrix, constant, low, high = planes.neurons[k]
        c = coeff[inputs + k]
        slope, offset = (float(high > -low), 0.0) if c > 0 else (high / (high - low), -high * low / (high - low))
        coeff[inputs + k] = 0.0
        coeff[: len(matrix)] += c * slope * matrix
        bias += c * (slope * constant + offset)
    x = coeff[:inputs]
    return bias + float(np.minimum(x * planes.lower, x * planes.upper).sum())


def solver_minimum(planes: Planes, row: np.ndarray, integral: bool) -> float:
    """min of row @ output by HiGHS: over the planes (an LP), or exactly, with a binary for each unstable neuron's phase (a MILP)."""
    inputs, count = len(planes.lower), len(planes.neurons)
    size = inputs + count + (count if integral else 0)
    rows, limits = [], []
    for k, (matrix, constant, low, high) in enumerate(planes.neurons):
        y, phase = inputs + k, inputs + count + k

        def below(terms: dict[int, float], z: float, limit: float, affine: np.ndarray = matrix, shift: float = constant) -> None:
            """sum of terms + z * (the neuron's pre-activation) <= limit"""
            line = np.zeros(size)
            line[: len(affine)] += z * affine
            for index, value in terms.items():
                line[index] += value
            rows.append(line)
            limits.append(limit - z * shift)

        below({y: -1.0}, 1.0, 0.0)
        if integral:
            below({y: 1.0, phase: -low}, -1.0, -low)
            below({y: 1.0, phase: -high}, 0.0, 0.0)
        else:
            slope = high / (high - low)
            below({y: 1.0}, -slope, -slope * low)
    lower = np.concatenate([planes.lower, np.zeros(size - inputs)])
    upper = np.concatenate([planes.upper, np.full(count, np.inf), np.ones(size - inputs - count)])
    costs = np.zeros(size)
    costs[: inputs + count] = row @ planes.matrix
    constraints = LinearConstraint(np.array(rows).reshape(-1, size), -np.inf, np.array(limits)) if rows else ()
    kinds = np.concatenate([np.zeros(inputs + count), np.ones(size - inputs - count)])
    found = milp(costs, integrality=kinds, bounds=Bounds(lower, upper), constraints=constraints)
    assert found.status == 0, found.message
    return float(found.fun + row @ planes.constant)
