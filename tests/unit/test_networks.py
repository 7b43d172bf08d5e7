"""Sizes of network files, counted by hand."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import verifier
from tests.small_models import dense_relu
from verifier.graph.ir import Graph, Node
from verifier.measure.networks import positions


def test_a_dense_network(tmp_path: Path) -> None:
    first = np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
    path = dense_relu(tmp_path / "n.onnx", first, np.array([[1.0, -1.0]]))
    size = verifier.network_size(path)
    assert (size.flops, size.nonzero_flops) == (2 * (6 + 2), 2 * (3 + 2))
    assert (size.nonzero_parameters, size.file_bytes) == (5, path.stat().st_size)


def test_a_convolution(tmp_path: Path) -> None:
    """3 x 3 kernels with stride 2 from 2 channels of 8 x 8 to 4: 16 places; one kernel row zeroed."""
    conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
    with torch.no_grad():
        conv.weight.fill_(0.5)
        conv.bias.fill_(1.0)
        conv.weight[0, :, 0] = 0
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3, bias=True))
    torch.onnx.export(net, (torch.zeros(1, 2, 8, 8),), str(tmp_path / "c.onnx"), dynamo=False)
    size = verifier.network_size(tmp_path / "c.onnx")
    assert size.parameters == 72 + 4 + 192 + 3 and size.nonzero_parameters == size.parameters - 6
    assert (size.flops, size.nonzero_flops) == (2 * (72 * 16 + 192), 2 * (66 * 16 + 192))


@pytest.mark.parametrize(("op", "shape", "count"), [
    ("Linear", (1, 7, 5), 7), ("LeftMatMul", (2, 3, 5), 10), ("Conv", (1, 4, 5, 6), 30), ("ConvTranspose", (1, 4, 5, 6), 12),
])
def test_how_often_a_weight_is_used(op: str, shape: tuple[int, ...], count: int) -> None:
    node = Node("y", op, ("x",), shape)
    assert positions(Graph((Node("x", "Input", (), (1, 2, 3, 4)), node), "y"), node) == count
