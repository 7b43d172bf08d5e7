"""Counts of stable and unstable neurons, against a count by hand."""
from __future__ import annotations

import numpy as np
import torch

from tests.cases import CASES
from verifier.bounds.crown import crown
from verifier.bounds.engine import BoundRequest, BoundResult
from verifier.bounds.ibp import ibp
from verifier.box import Box
from verifier.graph.ir import Graph, Node
from verifier.measure.stability import stability


def test_counts_are_those_of_the_bounds_signs() -> None:
    nodes = (
        Node("x", "Input", (), (1, 4)),
        Node("z", "Linear", ("x",), (1, 4), {"weight": np.eye(4), "bias": np.array([0.0, 2.0, -2.0, 0.5])}),
        Node("a", "Relu", ("z",), (1, 4)),
        Node("c", "Clip", ("a",), (1, 4), {}, {"lower": 0.0, "upper": 1.0}),
    )
    box = Box(-torch.ones(2, 1, 4, dtype=torch.float64), torch.tensor([[[1.0] * 4], [[-0.5, 1.0, 1.0, -0.75]]], dtype=torch.float64))
    relu, clip = stability(Graph(nodes, "c"), ibp(BoundRequest(Graph(nodes, "c"), box)))
    assert (relu.name, relu.op, relu.neurons) == ("a", "Relu", 4)
    assert [relu.unstable.tolist(), relu.active.tolist(), relu.inactive.tolist()] == [[2, 0], [1, 1], [1, 3]]
    # a = relu(z): [0, 1], [1, 3], [0, 0], [0, 1.5] in the first problem, clipped at 1.
    assert [clip.unstable.tolist(), clip.active.tolist(), clip.inactive.tolist()] == [[1, 0], [1, 0], [2, 4]]


def test_counts_add_up_and_tighter_bounds_leave_fewer_unstable() -> None:
    for case in CASES:
        loose, tight = ibp(BoundRequest(case.graph, case.box)), crown(BoundRequest(case.graph, case.box))
        for wide, narrow in zip(stability(case.graph, loose), stability(case.graph, tight), strict=True):
            assert torch.equal(wide.unstable + wide.active + wide.inactive, torch.full_like(wide.active, wide.neurons))
            assert bool((narrow.unstable <= wide.unstable).all())


def test_a_layer_without_bounds_has_no_row() -> None:
    case = CASES[0]
    assert stability(case.graph, BoundResult(torch.zeros(1, 2), None, {})) == ()
