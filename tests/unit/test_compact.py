"""Compact networks compute what the whole ones do, in float64, at padded edges too; and they are as small as they can be."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import verifier
from certprune.export import compact as subject
from certprune.export.compact import compact
from certprune.export.fold import fold
from certprune.models import ModelSpec, build_model

# Float64 sums of a few thousand products in another order.
TOLERANCE = 1e-11


class Residual(nn.Module):
    """relu(conv(x) + x) between convolutions: the Add ties the channels of both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.last = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        a = self.relu(self.first(x))
        return self.last(self.relu(self.body(a) + a))


def two_convolutions(padding: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3, stride, padding), nn.ReLU(), nn.Flatten(),
                         nn.LazyLinear(3))


def pooled(pool: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), pool, nn.Conv2d(5, 4, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


NETWORKS = {
    "padded": lambda: two_convolutions(),
    "unpadded": lambda: two_convolutions(padding=0),
    "strided": lambda: two_convolutions(stride=2),
    "max pool": lambda: pooled(nn.MaxPool2d(2)),
    "average pool": lambda: pooled(nn.AvgPool2d(3, 2, padding=1)),
    "residual": Residual,
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)),
    "paper7": lambda: build_model(ModelSpec("paper7", 0.125), (2, 8, 8), 10, (0.4, 0.5), (0.2, 0.3)),
    "resnet": lambda: build_model(ModelSpec("resnet", 0.5, blocks=4), (2, 8, 8), 10, (0.4, 0.5), (0.2, 0.3)),
    "wrn": lambda: build_model(ModelSpec("wrn-28-4", 1 / 16), (2, 8, 8), 10, (0.4, 0.5), (0.2, 0.3)),
}


def pruned(name: str, seed: int, density: float = 0.3) -> nn.Module:
    """A network with random dead rows and columns, biases of both signs."""
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    model(torch.rand(8, 2, 8, 8))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight *= torch.rand_like(module.weight) < density
                module.weight[torch.rand(module.weight.shape[0]) < 0.4] = 0
                module.weight[:, torch.rand(module.weight.shape[1]) < 0.3] = 0
            if isinstance(module, nn.BatchNorm2d):
                module.bias.normal_()
            if getattr(module, "bias", None) is not None:
                module.bias += 0.3 * torch.randn_like(module.bias)
    return model.eval()


def worst(one: verifier.Graph, other: verifier.Graph) -> float:
    """max |f - g| over random inputs, which reach far outside the images."""
    x = 2 * torch.randn(16, *one.input_shape, dtype=torch.float64)
    return float((verifier.execute_all(one, x)[one.output] - verifier.execute_all(other, x)[other.output]).abs().max())


def channels(graph: verifier.Graph) -> dict[str, int]:
    return {node.name: node.shape[1] for node in graph.nodes if node.op in ("Conv", "Linear")}


def weights(graph: verifier.Graph) -> int:
    return sum(node.constants["weight"].size for node in graph.nodes if "weight" in node.constants)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays(name: str, seed: int) -> None:
    graph = fold(pruned(name, seed), (2, 8, 8)).graph
    small = compact(graph)
    assert weights(small) < weights(graph)
    assert worst(graph, small) < TOLERANCE


@pytest.mark.parametrize("name", ["padded", "residual", "wrn"])
def test_compact_is_a_fixed_point(name: str) -> None:
    small = compact(fold(pruned(name, 0), (2, 8, 8)).graph)
    assert [n.shape for n in compact(small).nodes] == [n.shape for n in small.nodes]


def test_a_network_without_zeros_stays_as_it_is() -> None:
    graph = fold(NETWORKS["paper7"]().eval(), (2, 8, 8)).graph
    assert channels(compact(graph)) == channels(graph)


def convolutions(padding: int, bias: float) -> verifier.Graph:
    """The "padded" network without zeros but for two channels of the first convolution, which hold relu(bias)."""
    torch.manual_seed(1)
    model = two_convolutions(padding)
    model(torch.rand(1, 2, 8, 8))
    with torch.no_grad():
        model[0].weight[1:3] = 0
        model[0].bias[1:3] = bias
    return fold(model.eval(), (2, 8, 8)).graph


@pytest.mark.parametrize(
    ("padding", "bias", "left"),
    [(1, -0.5, 3), (1, 0.0, 3), (0, 0.5, 3), (1, 0.5, 4)],
    ids=["never active", "zero", "taken into the bias", "merged into one, for padding fades it"],
)
def test_dead_channels_go(padding: int, bias: float, left: int) -> None:
    graph = convolutions(padding, bias)
    small = compact(graph)
    assert channels(small) == {**channels(graph), "0": left}
    assert worst(graph, small) < TOLERANCE


def test_channels_that_nobody_reads_go_and_so_does_what_they_alone_read() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(320, 3))
    with torch.no_grad():
        model[5].weight[:, 64:128] = 0  # channel 1 of the second convolution is not read
        model[2].weight[:, 3] = 0
        model[2].weight[1, 3] = 1  # which alone reads channel 3 of the first
    graph = fold(model.eval(), (2, 8, 8)).graph
    assert channels(compact(graph)) == {"0": 3, "2": 4, "5": 3}
    assert worst(graph, compact(graph)) < TOLERANCE


@pytest.mark.parametrize(("dead_in_both", "left"), [(True, 5), (False, 6)])
def test_an_add_loses_a_channel_only_where_both_sides_agree(dead_in_both: bool, left: int) -> None:
    torch.manual_seed(1)
    model = Residual()
    with torch.no_grad():
        for layer in (model.first, model.body) if dead_in_both else (model.body,):
            layer.weight[2], layer.bias[2] = 0, -1
    graph = fold(model.eval(), (2, 8, 8)).graph
    assert channels(compact(graph))["first"] == left
    assert worst(graph, compact(graph)) < TOLERANCE


def test_a_network_that_is_all_zero_keeps_one_channel() -> None:
    torch.manual_seed(1)
    model = NETWORKS["paper7"]()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.zero_()
    graph = fold(model.eval(), (2, 8, 8)).graph
    assert set(channels(compact(graph)).values()) == {1, 10}
    assert worst(graph, compact(graph)) < TOLERANCE


def test_an_operation_that_channels_are_not_followed_through_is_named() -> None:
    graph = fold(nn.Sequential(nn.Flatten(), nn.Linear(128, 4), nn.Sigmoid(), nn.Linear(4, 2)).eval(), (2, 8, 8)).graph
    with pytest.raises(verifier.UnsupportedError, match="Sigmoid"):
        compact(graph)


def _forgets_edges(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(subject, "_fades", lambda node: False)


def _forgets_constants(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(subject, "_of_constants", lambda node, given, source: np.broadcast_to(
        node.constants["bias"].reshape(1, -1, *(1,) * (len(node.shape) - 2)), node.shape))


def _believes_all_constant(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(subject._Constant, "uniform", lambda self: np.ones(self.number.shape[1], bool))


@pytest.mark.parametrize("sabotage", [_forgets_edges, _forgets_constants, _believes_all_constant])
def test_a_wrong_rule_is_seen(sabotage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one of its rules broken, at least one of the networks above changes its function."""
    sabotage(monkeypatch)
    graphs = [fold(pruned(name, seed), (2, 8, 8)).graph for name in ("padded", "unpadded", "strided", "residual") for seed in range(3)]
    assert max(worst(graph, compact(graph)) for graph in graphs) > 1e-3
