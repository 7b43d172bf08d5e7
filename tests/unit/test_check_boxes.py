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


@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize(
    ("offset", "weight", "proved"), [(-0.1, [1.0, 1.0], True), (-0.1, [1.0, 0.2], False), (0.1, [1.0, 1.0], False), (-0.1, None, False)]
)
def test_rows_are_summed_by_their_weights(offset: float, weight: list[float] | None, proved: bool, deployed: bool) -> None:
    graph, stated = case(offset)
    failures = check_case(graph, [stated, boxes(weight)], deployed)
    assert [(failure.polytope, failure.tree, failure.leaf) for failure in failures] == ([] if proved else [(0, 0, 0)])
    assert all(failure.bound <= 0 for failure in failures)
