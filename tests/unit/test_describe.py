"""The rows behind `verifier info`."""
from __future__ import annotations

import numpy as np
import torch
from torch import nn

from verifier.graph.describe import Row, describe, total
from verifier.graph.ir import Graph, Node
from verifier.graph.torch_load import load_torch


def test_rows_count_parameters_zeros_and_activations() -> None:
    weight = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    nodes = (
        Node("x", "Input", (), (1, 3)),
        Node("h", "Linear", ("x",), (1, 2), {"weight": weight, "bias": np.ones(2)}),
        Node("r", "Relu", ("h",), (1, 2)),
        Node("y", "Gather", ("r",), (1, 3), {"indices": np.array([0, 1, 0])}, {"axis": 1}),
    )
    rows = describe(Graph(nodes, "y"))
    assert rows[1] == Row("h", "Linear", (1, 2), 8, 4, 0)
    assert rows[1].sparsity == 0.5 and rows[0].sparsity == 0.0
    assert rows[2] == Row("r", "Relu", (1, 2), 0, 0, 2)
    assert rows[3].parameters == 0, "indices are no parameters"
    assert total(rows) == Row("total", "", (1, 3), 8, 4, 2)


def test_rows_of_a_module() -> None:
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[0] = 0
        layer.bias.fill_(1)
    assert total(describe(load_torch(nn.Sequential(layer, nn.Tanh()).eval(), (4,)))) == Row("total", "", (1, 3), 15, 4, 3)
