"""The same interface over auto_LiRPA (0.6 or later), where it is installed: another tool's bounds for comparison, in tests and benchmarks.

auto_LiRPA bounds a `torch.nn.Module` whose first axis is the batch. A graph's values carry ONNX's leading 1 behind the batch; the module
made here drops it. Operations that this cannot express are refused by name.
"""
from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verifier.bounds.engine import BoundRequest, BoundResult
from verifier.errors import UnsupportedError, VerifierError
from verifier.graph.ir import Graph, Node

METHODS = ("IBP", "CROWN", "alpha-CROWN")


def installed() -> bool:
    return find_spec("auto_LiRPA") is not None


def lirpa(request: BoundRequest, method: str = "CROWN", iterations: int = 20) -> BoundResult:
    """auto_LiRPA's bounds of the rows by `method`, one of METHODS. Holds no intermediate bounds.

    Raises:
        VerifierError: auto_LiRPA is not installed, or the method is not one of METHODS.
        UnsupportedError: the graph, or a part of the request, cannot be handed over.
    """
    return bounded(request, iterations)(method)


def bounded(request: BoundRequest, iterations: int = 20) -> LirpaBounds:
    """The request handed over once, to be bounded several times: making the bounded module is no part of a timing."""
    if not installed():
        raise VerifierError("auto_LiRPA is not installed: install it from its repository, or leave out this engine.")
    if request.ball is not None or request.intermediate:
        raise UnsupportedError("auto_LiRPA takes boxes here: a request with a ball or with intermediate bounds is not handed over.")
    return LirpaBounds(request, iterations)


class LirpaBounds:
    """A request inside auto_LiRPA: call it with a method."""

    def __init__(self, request: BoundRequest, iterations: int) -> None:
        from auto_LiRPA import BoundedModule, BoundedTensor
        from auto_LiRPA.perturbations import PerturbationLpNorm

        self.request = request
        box, single = request.box, request.graph.input_shape[:1] == (1,)
        lower, upper = (bound.squeeze(1) if single else bound for bound in (box.lower, box.upper))
        options = {"conv_mode": "patches", "optimize_bound_args": {"iteration": iterations, "lr_alpha": 0.1}}
        module = GraphModule(request.graph.to(lower.device, lower.dtype))
        self.module = BoundedModule(module, torch.zeros_like(lower[:1]), bound_opts=options, device=lower.device)
        self.input = BoundedTensor((lower + upper) / 2, PerturbationLpNorm(x_L=lower, x_U=upper))

    def __call__(self, method: str) -> BoundResult:
        if method not in METHODS:
            raise VerifierError(f"auto_LiRPA was asked for {method!r}: give one of {', '.join(METHODS)}.")
        bounds = self.module.compute_bounds(x=(self.input,), C=self.request.rows, method=method)
        lower, upper = (bound.detach().flatten(1) for bound in bounds)
        if self.request.constants is not None:
            lower, upper = lower + self.request.constants, upper + self.request.constants
        return BoundResult(lower, upper if self.request.upper_too else None, {})


class GraphModule(nn.Module):
    """A graph as a module that auto_LiRPA can trace: `(B, *node.shape[1:])` for every value."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        wrong = [f"{node.name!r} ({node.op})" for node in graph.nodes if not _expressible(node)]
        if wrong:
            raise UnsupportedError(f"auto_LiRPA cannot be given {', '.join(wrong)}.")
        self.layers = nn.ModuleList([_layer(node) for node in graph.nodes])

    def forward(self, x: Tensor) -> Tensor:
        values = {self.graph.input.name: x}
        for node, layer in zip(self.graph.nodes[1:], self.layers[1:], strict=True):
            inputs = [values[name] for name in node.inputs]
            values[node.name] = layer(*inputs) if not isinstance(layer, nn.Identity) else _apply(node, inputs)
        return values[self.graph.output]


_PLAIN = ("Input", "Linear", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Add", "Sub", "Mul", "Scale", "Reshape")


def _expressible(node: Node) -> bool:
    if not node.shape or node.shape[0] != 1:
        return False
    attributes = node.attributes
    if node.op == "Conv":
        pads = attributes["pads"]
        return len(node.shape) == 4 and tuple(pads[:2]) == tuple(pads[2:])
    if node.op == "Transpose":
        return attributes["perm"][0] == 0
    if node.op == "Concat":
        return attributes["axis"] > 0
    return node.op in _PLAIN


def _layer(node: Node) -> nn.Module:
    """The parametrised layer of a node, with its weights; nothing for the others."""
    if node.op not in ("Linear", "Conv"):
        return nn.Identity()
    weight, bias = node.constants["weight"], node.constants.get("bias")
    if node.op == "Linear":
        layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    else:
        a, group = node.attributes, node.attributes.get("group", 1)
        layer = nn.Conv2d(
            weight.shape[1] * group, weight.shape[0], tuple(weight.shape[2:]), tuple(a["strides"]), tuple(a["pads"][:2]),
            tuple(a["dilations"]), group, bias is not None,
        )
    layer.to(weight.device, weight.dtype)
    layer.weight.data.copy_(weight.detach())
    if bias is not None:
        layer.bias.data.copy_(bias.detach())
    return layer


def _apply(node: Node, inputs: list[Tensor]) -> Tensor:
    x, attributes = inputs[0], node.attributes
    plain: dict[str, Any] = {
        "Relu": lambda: F.relu(x),
        "LeakyRelu": lambda: F.leaky_relu(x, attributes["slope"]),
        "Sigmoid": lambda: torch.sigmoid(x),
        "Tanh": lambda: torch.tanh(x),
        "Add": lambda: x + inputs[1],
        "Sub": lambda: x - inputs[1],
        "Mul": lambda: x * inputs[1],
        "Scale": lambda: x * node.constants["scale"] + node.constants["offset"],
        "Reshape": lambda: x.flatten(1) if len(node.shape) == 2 else x.reshape(-1, *node.shape[1:]),
        "Transpose": lambda: x.permute(*attributes["perm"]),
        "Concat": lambda: torch.cat(inputs, attributes["axis"]),
    }
    return plain[node.op]()
