"""How far a runtime's value may be from the exact one at one point: worst case, any order of summation, node by node.

A sum of k products computed with unit roundoff u is off by at most gamma_k = k u / (1 - k u) times the sum of their absolute values, plus what falls
below the smallest normal number. This says when two runs differ by more than rounding; no proof rests on it.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verifier.box import Box
from verifier.graph.ir import Graph, Node
from verifier.ops.rule import AffineOp, rule_for

# (unit roundoff, smallest positive normal number) by what a file computes in; a file of several types has the coarsest.
_TYPES = {"float64": (2.0**-53, 2.0**-1022), "float32": (2.0**-24, 2.0**-126), "float16": (2.0**-11, 2.0**-14)}
# Units in which a runtime's exponential functions are off, and operations beside a sum's own (a scale that is itself computed, a bias).
_SMOOTH_UNITS, _EXTRA_TERMS = 32, 8
# Our own float64, and constants that the loader computed, in sums of up to that many units each.
_OURS, _COMPUTED_UNITS = 2.0**-44, 256


@dataclass(frozen=True, slots=True)
class Roundoff:
    """Unit roundoff `u`, the least normal number, and units that constants computed at loading may be off, beside what a sum rounds."""

    u: float
    least: float
    constants: int

    def of_sum(self, k: int, terms: Tensor) -> Tensor:
        """gamma_{k + extra} terms, and k least: what a sum of k products, of absolute values `terms` in all, is off."""
        units = min((k + _EXTRA_TERMS + self.constants) * self.u, 0.5)
        return units / (1 - units) * terms + (k + 1) * self.least


def roundoff_of(graph: Graph, input_type: np.dtype) -> Roundoff:
    """That of the type in which the file computes; of the coarsest there may be where it is not one type."""
    narrow = input_type == np.float16 or "float16" in graph.mixed
    kind = graph.arithmetic or ("float16" if narrow else "float32")
    u, least = _TYPES[kind]
    return Roundoff(u, least, _COMPUTED_UNITS if graph.computed else 0)


def step(node: Node, given: list[tuple[Tensor, Tensor]], roundoff: Roundoff) -> tuple[Tensor, Tensor]:
    """The value of a node and how far a runtime's may be from it, from those of its inputs (value, error), each `(1, *shape)` float64."""
    rule = rule_for(node)
    value = rule.forward(node, *(v for v, _ in given))
    x, e = given[0]
    if isinstance(rule, AffineOp):
        return value, _affine(node, rule, given, value, roundoff)
    if node.op == "Mul":
        y, f = given[1]
        error = rule.forward(node, abs(x), f) + rule.forward(node, e, abs(y) + f)
        return value, error + roundoff.of_sum(1, abs(value) + error)
    if node.op == "MaxPool":
        return value, rule.forward(node, e)
    slope = max(1.0, abs(float(node.attributes.get("slope", 1.0))))
    error = slope * e * (1 + _OURS)
    if node.op == "LeakyRelu":
        error = error + roundoff.of_sum(1, abs(value) + error)
    elif node.op in ("Sigmoid", "Tanh"):
        error = error + _SMOOTH_UNITS * roundoff.u
    return value, error


def _affine(node: Node, rule: AffineOp, given: list[tuple[Tensor, Tensor]], value: Tensor, roundoff: Roundoff) -> Tensor:
    """|L| e, and gamma_k (|L| (|x| + e) + |shift|)."""
    carried = rule.interval(node, *(Box(-e, e) for _, e in given)).radius
    k = _products(node, given[0][0].shape)
    if k == 0:
        return carried
    whole = rule.interval(node, *(Box(-abs(v) - e, abs(v) + e) for v, e in given))
    terms = torch.maximum(abs(whole.lower), abs(whole.upper)) + node.constants.get("terms", 0.0)
    return carried * (1 + _OURS) + roundoff.of_sum(k, terms) + _OURS * (k + 1) * terms


def _products(node: Node, shape: torch.Size) -> int:
    """How many products one value sums up; 0 where values are moved."""
    weight = node.constants.get("weight")
    if node.op in ("Linear", "LeftMatMul"):
        return weight.shape[1] + 1
    if node.op in ("Conv", "ConvTranspose"):
        return weight.numel() // weight.shape[0 if node.op == "Conv" else 1] + 1
    if node.op in ("ReduceSum", "ReduceMean"):
        return math.prod(shape[axis + 1] for axis in node.attributes["axes"]) + 1
    if node.op == "AveragePool":
        return math.prod(node.attributes["kernel_shape"]) + 1
    return {"Add": 1, "Sub": 1, "Scale": 2}.get(node.op, 0)
