"""BatchNorm folded for bounds in training: the same function, the same gradients, and no fold where another reader needs the unscaled value."""
from __future__ import annotations

from dataclasses import replace

import torch

import verifier
from certprune.train.folded import folded
from tests.tiny_net import SHAPE, tiny_images, tiny_net
from tests.tolerances import EXACT


def test_fewer_nodes_the_same_function_and_gradients() -> None:
    model = tiny_net().eval()
    plain, x = verifier.load_torch(model, SHAPE), tiny_images()[0].unsqueeze(1)
    short = folded(plain)
    assert [node.op for node in plain.nodes].count("Scale") == 2
    assert [node.op for node in short.nodes].count("Scale") == 0
    assert {node.name for node in short.nodes} < {node.name for node in plain.nodes}
    values = [verifier.execute(graph, x) for graph in (plain, short)]  # they share the scales' own computation
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=EXACT)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(value.square().sum(), parameters, retain_graph=True) for value in values]
    assert sum(float(g.abs().sum()) for g in gradients[0]) > 1e-3
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=EXACT)


def test_a_value_that_something_else_reads_keeps_its_layer() -> None:
    plain = verifier.load_torch(tiny_net().eval(), SHAPE)
    scale = next(node for node in plain.nodes if node.op == "Scale")
    before = plain.node(scale.inputs[0])
    again = verifier.Node("again", "Relu", (before.name,), before.shape)
    joined = verifier.Node("joined", "Add", (scale.name, "again"), scale.shape)
    at = [node.name for node in plain.nodes].index(scale.name)
    graph = replace(plain, nodes=(*plain.nodes[:at + 1], again, joined), output="joined")
    assert folded(graph) == graph
