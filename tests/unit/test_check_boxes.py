"""BOXS records over polytopes of several rows: a weighted sum of rows proves what no row proves alone, and what it does not prove is a failure."""
from __future__ import annotations

import numpy as np
import pytest

from tests.mlp import Mlp
from tests.small_certificates import check_case
from verifier.certificate.schema import Record
from verifier.graph.ir import Graph


def case(offset: float) -> tuple[Graph, Record]:
    """y = (x, -x) on [-1, 1] with both rows y_i <= offset: reached iff offset >= 0, and the sum of the rows says 0 <= 2 offset."""
    arrays = {
        "lower": -np.ones(1), "upper": np.ones(1), "output": np.eye(2), "offset": np.full(2, offset),
        "neuron": np.zeros((0, 2), np.int32), "kept": np.zeros(0, np.uint32),
    }
    return Mlp(((np.array([[1.0], [-1.0]]), np.zeros(2)),)).graph(), Record("CASE", {"rows": [2], "nodes": []}, arrays)


def boxes(weight: list[float] | None) -> Record:
    tree = {"tree": np.array([-1], np.int32), "point": np.zeros(1)}
    return Record("BOXS", {}, tree if weight is None else tree | {"weight": np.array([weight], np.float32)})


@pytest.mark.parametrize("claim", ["real", "float32"])
@pytest.mark.parametrize(
    ("offset", "weight", "proved"), [(-0.1, [1.0, 1.0], True), (-0.1, [1.0, 0.2], False), (0.1, [1.0, 1.0], False), (-0.1, None, False)]
)
def test_rows_are_summed_by_their_weights(offset: float, weight: list[float] | None, proved: bool, claim: str) -> None:
    graph, stated = case(offset)
    failures = check_case(graph, [stated, boxes(weight)], claim)
    assert [(failure.polytope, failure.tree, failure.leaf) for failure in failures] == ([] if proved else [(0, 0, 0)])
    assert all(failure.bound <= 0 for failure in failures)


@pytest.mark.parametrize(("offset", "split", "proved"), [(-0.01, 1000.0, True), (-0.01, None, False), (0.0, 1000.0, False), (-1e-6, 1000.0, False)])
def test_a_runtimes_errors_are_those_of_the_boxes(offset: float, split: float | None, proved: bool) -> None:
    """y = relu(x) on [0, 1e6] is off by half in float32 somewhere, by less than a thousandth below 1000: y <= offset is excluded box by box."""
    graph = Mlp(((np.ones((1, 1)), np.zeros(1)), (np.ones((1, 1)), np.zeros(1)))).graph()
    arrays = {
        "lower": np.zeros(1), "upper": np.full(1, 1e6), "output": np.ones((1, 1)), "offset": np.full(1, offset),
        "neuron": np.zeros((0, 2), np.int32), "kept": np.zeros(0, np.uint32),
    }
    tree = [-1] if split is None else [0, -1, -1]
    record = Record("BOXS", {}, {"tree": np.array(tree, np.int32), "point": np.array([split or 0.0, 0.0, 0.0][:len(tree)])})
    failures = check_case(graph, [Record("CASE", {"rows": [1], "nodes": []}, arrays), record], "float32")
    assert [failure.leaf for failure in failures] == ([] if proved else [0])
