"""Modules loaded as graphs: torch itself is the oracle, for values and for gradients; what cannot be loaded is refused in one sentence."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import verifier
from verifier.errors import ModelError, UnsupportedError
from verifier.graph.execute import execute
from verifier.graph.passes import simplify
from verifier.graph.torch_load import load_torch, trace_torch

TOLERANCE = 1e-10  # float64, sums reordered
IMAGE = (3, 8, 9)


class Apply(nn.Module):
    """A function as a module; `free` and `bound` are parameters that it may use."""

    def __init__(self, function: Callable[[Apply, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.free = nn.Parameter(torch.randn(9))
        self.weight = nn.Parameter(torch.randn(4, 9))
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("var", torch.rand(3) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Residual(nn.Module):
    """relu(bn(conv(relu(x)))) + x with every in-place form, as networks in the wild have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(self.relu(x)))
        y += x
        return self.relu(y)


def prepared(module: nn.Module) -> nn.Module:
    """In float64 and eval mode, its BatchNorms with statistics of their own."""
    torch.manual_seed(5)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            for parameter in part.parameters():
                nn.init.normal_(parameter)
    return module.double().eval()


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(4, 3), (4,)),
    "linear without bias, rows": (nn.Linear(4, 3, bias=False), (2, 4)),
    "conv1d": (nn.Conv1d(3, 4, 3, 2, 1), (3, 9)),
    "conv2d": (nn.Conv2d(3, 6, (3, 2), (2, 1), (1, 0), (1, 2), groups=3), IMAGE),
    "conv2d same": (nn.Conv2d(3, 4, (4, 3), padding="same", bias=False), IMAGE),
    "conv2d valid": (nn.Conv2d(3, 4, 3, padding="valid"), IMAGE),
    "conv3d": (nn.Conv3d(2, 3, 2, padding=1), (2, 3, 4, 5)),
    "transposed 1d": (nn.ConvTranspose1d(3, 4, 3, 2, 1, 1), (3, 5)),
    "transposed 2d": (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=2), (4, 5, 4)),
    "batch norm 1d": (nn.BatchNorm1d(4), (4,)),
    "batch norm 1d of rows": (nn.BatchNorm1d(4), (4, 5)),
    "batch norm 2d": (nn.BatchNorm2d(3), IMAGE),
    "batch norm without weights": (nn.BatchNorm2d(3, affine=False), IMAGE),
    "relu": (nn.ReLU(), IMAGE),
    "leaky": (nn.LeakyReLU(0.2), IMAGE),
    "prelu": (nn.PReLU(3), IMAGE),
    "prelu of one": (nn.PReLU(), (4,)),
    "sigmoid": (nn.Sigmoid(), (4,)),
    "tanh": (nn.Tanh(), (4,)),
    "silu": (nn.SiLU(), (4,)),
    "hardtanh": (nn.Hardtanh(-0.5, 0.7), (4,)),
    "relu6": (nn.Sequential(nn.Linear(4, 4), nn.ReLU6()), (4,)),
    "hard sigmoid": (nn.Hardsigmoid(), (4,)),
    "hard swish": (nn.Hardswish(), (4,)),
    "max pool": (nn.MaxPool2d(3, 2, 1), IMAGE),
    "max pool ceil": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "max pool dilated": (nn.MaxPool2d(2, 1, dilation=2), IMAGE),
    "max pool 1d": (nn.MaxPool1d(2), (3, 9)),
    "average pool": (nn.AvgPool2d(2), IMAGE),
    "average pool counts pads": (nn.AvgPool2d(3, 2, 1), IMAGE),
    "average pool without pads": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE),
    "average pool ceil": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "average pool ceil without pads": (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), IMAGE),
    "adaptive average to one": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "adaptive average to a divisor": (nn.AdaptiveAvgPool2d((4, None)), IMAGE),
    "adaptive max": (nn.AdaptiveMaxPool2d((2, 3)), IMAGE),
    "flatten": (nn.Flatten(), IMAGE),
    "flatten some": (nn.Flatten(2), IMAGE),
    "unflatten": (nn.Unflatten(1, (2, 3)), (6,)),
    "dropout and identity": (nn.Sequential(nn.Dropout(), nn.Identity(), nn.Dropout2d()), IMAGE),
    "residual in place": (nn.Sequential(Residual(3), nn.Flatten(), nn.Linear(216, 4)), IMAGE),
}
FUNCTIONS: dict[str, tuple[Callable[[Apply, Tensor], Tensor], tuple[int, ...]]] = {
    "arithmetic": (lambda m, x: 2 - (x * 3 + m.free) / 4 - m.free * x, (2, 9)),
    "two variables": (lambda m, x: (x - F.relu(x)) * x + torch.add(x, x, alpha=0.5), (2, 9)),
    "negate, square, abs": (lambda m, x: -x + x**2 + x.pow(2) + torch.square(x) + x.abs(), (9,)),
    "in place": (lambda m, x: (x * 1).relu_().add_(1).mul_(m.free), (9,)),
    "linear": (lambda m, x: F.linear(x, m.weight, m.free[:4]), (9,)),
    "matmul": (lambda m, x: x @ m.weight.t() + torch.matmul(x, m.weight.T), (9,)),
    "matmul left": (lambda m, x: m.weight @ x, (9, 2)),
    "matmul of variables": (lambda m, x: torch.bmm(x, x.transpose(1, 2)), (2, 3)),
    "masked weights": (lambda m, x: F.linear(x, m.weight * (m.weight > 0)), (9,)),
    "convolution": (lambda m, x: F.conv2d(x, m.kernel, stride=2, padding=(1, 0)), IMAGE),
    "transposed convolution": (lambda m, x: F.conv_transpose2d(x, m.kernel.transpose(0, 1), m.free[:4], stride=2, output_padding=1), IMAGE),
    "batch norm": (lambda m, x: F.batch_norm(x, m.mean, m.var, weight=m.free[:3], eps=0.1), IMAGE),
    "activations": (lambda m, x: F.leaky_relu(x, 0.3) + torch.sigmoid(x) + x.tanh() + F.hardtanh(x) + F.relu6(x) + torch.relu(x), (9,)),
    "clamps": (lambda m, x: x.clamp(-0.5, 0.5) + torch.clamp(x, min=0.1) + x.clamp(max=0.2) + F.silu(x), (9,)),
    "extrema": (lambda m, x: torch.maximum(x, -x) + torch.minimum(x, x * 2), (9,)),
    "pools": (lambda m, x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2, 2) + F.adaptive_avg_pool2d(x, 1), IMAGE),
    "shapes": (lambda m, x: x.view(x.size(0), -1).reshape(1, 3, -1).flatten(1).unsqueeze(2).squeeze(-1), IMAGE),
    "shape arithmetic": (lambda m, x: x.view(x.shape[0], x.shape[1] * x.shape[2], -1), IMAGE),
    "order": (lambda m, x: torch.flatten(x.permute(0, 2, 3, 1).transpose(1, -1).contiguous(), 1), IMAGE),
    "cat": (lambda m, x: torch.cat([x, F.relu(x), -x], 1), IMAGE),
    "stack": (lambda m, x: torch.stack([x, F.relu(x)], dim=-1), (9,)),
    "split": (lambda m, x: F.relu(torch.split(x, 3, dim=-1)[0]) - torch.split(x, [3, 3, 3], -1)[2], (9,)),
    "chunk": (lambda m, x: torch.cat([x.chunk(3, dim=2)[2], x.chunk(3, dim=2)[0]], 2), IMAGE),
    "items": (lambda m, x: x[:, 1:, ..., ::2] + x[:, 0, None, :, -1:], IMAGE),
    "reductions": (lambda m, x: x.mean((2, 3)) + torch.sum(x, dim=(-1, -2)) + x.mean([2, 3], keepdim=True).flatten(1), IMAGE),
    "pad": (lambda m, x: F.pad(x, (1, 2, 0, 1), value=0.5), IMAGE),
    "expand": (lambda m, x: x.unsqueeze(1).expand(-1, 4, -1) * m.weight, (9,)),
    "dropout": (lambda m, x: F.dropout(x, 0.5, training=m.training), (9,)),
}
ALL = {**LAYERS, **{f"call {name}": (Apply(function), shape) for name, (function, shape) in FUNCTIONS.items()}}


@pytest.mark.parametrize("name", ALL)
def test_as_torch(name: str) -> None:
    """The graph, and the simplified graph, give the module's values, sample by sample."""
    module, shape = ALL[name]
    module = prepared(module)
    graph = load_torch(module, shape)
    x = 2 * torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([module(row[None].clone()) for row in x]).detach()
    assert graph.input_shape == (1, *shape) and graph.output_shape == tuple(expected.shape[1:])
    for loaded in (graph, simplify(graph)):
        torch.testing.assert_close(execute(loaded, x[:, None]).detach(), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["linear", "conv2d", "batch norm 2d", "prelu", "transposed 2d", "residual in place", "call masked weights",
                                  "call batch norm", "call matmul left"])
def test_gradients_are_the_modules(name: str) -> None:
    """Backwards through the graph, simplified or not, every parameter gets the gradient that it gets through the module."""
    module, shape = ALL[name]
    module = prepared(module)
    x = torch.randn(1, *shape, dtype=torch.float64)
    wanted = torch.autograd.grad(module(x.clone()).square().sum(), tuple(module.parameters()), allow_unused=True)
    assert any(gradient is not None for gradient in wanted)
    for change in (lambda graph: graph, simplify):
        loaded = change(load_torch(module, shape))
        found = torch.autograd.grad(execute(loaded, x[None]).square().sum(), tuple(module.parameters()), allow_unused=True)
        for ours, theirs in zip(found, wanted):
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_parameters_are_shared_not_copied() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    graph = load_torch(module, (4,))
    assert graph.nodes[1].constants["weight"] is module[0].weight and graph.nodes[3].constants["bias"] is module[2].bias
    with torch.no_grad():
        module[2].bias += 1
    x = torch.randn(5, 4)
    torch.testing.assert_close(execute(graph, x[:, None])[:, 0], module(x))


def test_a_trace_gives_a_new_graph_after_a_step() -> None:
    """What is computed from parameters, a BatchNorm's scale, follows only in the new graph."""
    module = prepared(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU()))
    trace = trace_torch(module, IMAGE)
    x = torch.randn(1, *IMAGE, dtype=torch.float64)
    old = trace.graph()
    with torch.no_grad():
        module[1].weight *= 2
        module[1].running_var *= 3
    assert not torch.allclose(execute(old, x[None])[0], module(x))
    torch.testing.assert_close(execute(trace.graph(), x[None])[0], module(x), rtol=TOLERANCE, atol=TOLERANCE)


def test_pruned_and_parametrized_layers_keep_their_gradient() -> None:
    pruned = prune.random_unstructured(nn.Linear(6, 4), "weight", amount=0.5)
    masked = nn.Linear(4, 3)
    parametrize.register_parametrization(masked, "weight", nn.Hardtanh(-0.1, 0.1))
    module = nn.Sequential(pruned, nn.ReLU(), masked).eval()
    x = torch.randn(1, 6)
    graph = load_torch(module, (6,))
    torch.testing.assert_close(execute(graph, x[None])[0], module(x))
    execute(graph, x[None]).sum().backward()
    assert pruned.weight_orig.grad is not None and masked.parametrizations.weight.original.grad is not None
    with torch.no_grad():
        pruned.weight_orig += 1
    torch.testing.assert_close(execute(trace_torch(module, (6,)).graph(), x[None])[0], module(x))


def test_training_mode_is_left_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    load_torch(module, (4,))
    assert module.training


def test_all_unsupported_calls_in_one_error() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.soft, self.elu = nn.Softmax(-1), nn.ELU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.elu(self.soft(x)).exp()
            largest, _ = torch.max(y, 1)
            return torch.sqrt(y) + x / y + largest.cumsum(0) + F.pad(x, (1, 0), mode="constant")[:, :-1]

    with pytest.raises(UnsupportedError) as caught:
        load_torch(Odd().eval(), (4,))
    message = str(caught.value)
    assert "\n" not in message and message.startswith("Odd uses 7 call(s)")
    for part in ("Softmax 'soft'", "ELU 'elu'", "exp", "max", "sqrt", "truediv"):
        assert part in message


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class TwoArguments(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class ThroughAView(nn.Module):
    """The call overwrites x through a view of it, which the graph does not see."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        flat = x.view(-1)
        flat.relu_()
        return x


REFUSED: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "training batch norm": (nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), IMAGE, r"training mode \(1\): call eval"),
    "training dropout": (nn.Dropout(), (4,), "training mode"),
    "batch statistics": (nn.BatchNorm2d(3, track_running_stats=False).eval(), IMAGE, "statistics of the batch"),
    "functional dropout": (Apply(lambda m, x: F.dropout(x)).eval(), (9,), "training mode"),
    "branch on values": (Branching().eval(), (4,), "cannot be traced"),
    "two arguments": (TwoArguments().eval(), (4,), "cannot be run|2 arguments"),
    "wrong shape": (nn.Linear(4, 3).eval(), (5,), r"cannot be run on an input of shape \(1, 5\)"),
    "two outputs": (Apply(lambda m, x: (x, -x)).eval(), (9,), "no single tensor"),
    "constant output": (Apply(lambda m, x: m.free).eval(), (9,), "no single tensor"),
    "padding mode": (nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular").eval(), IMAGE, "padding mode 'circular'"),
    "reflect pad": (Apply(lambda m, x: F.pad(x, (1, 1), mode="reflect")).eval(), (3, 9), "reflect"),
    "max pool with indices": (Apply(lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0]).eval(), IMAGE, "return|indices"),
    "uneven adaptive pool": (nn.AdaptiveAvgPool2d(5).eval(), IMAGE, "does not divide"),
    "cube": (Apply(lambda m, x: x**3).eval(), (9,), "other than 2"),
    "random numbers": (Apply(lambda m, x: x + torch.rand_like(x)).eval(), (9,), "rand_like"),
    "overwritten through a view": (ThroughAView().eval(), (9,), "overwrite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name: str) -> None:
    module, shape, sentence = REFUSED[name]
    with pytest.raises(ModelError, match=sentence) as caught:
        load_torch(module, shape)
    assert "\n" not in str(caught.value)


def test_a_foreign_hook_is_refused() -> None:
    module = nn.Linear(4, 3).eval()
    module.register_forward_pre_hook(lambda m, given: (given[0] * 2,))
    with pytest.raises(UnsupportedError, match="hook"):
        load_torch(nn.Sequential(module).eval(), (4,))


def two_slopes(kind: torch.dtype) -> nn.Module:
    """Two classes, (1 + 1e-9) x and x: in float32 they are one."""
    module = nn.Linear(1, 2, bias=False).to(kind)
    module.weight.data = torch.tensor([[1 + 1e-9], [1.0]], dtype=torch.float64).to(kind)
    return module


def test_a_double_module_is_judged_in_double() -> None:
    """Rounded to float32 its classes are tied, which is no counterexample of it."""
    graph, spec = load_torch(two_slopes(torch.float64), (1,)), verifier.robustness(np.array([1.5]), 0, 0.25, 2, clip=None)
    verdict = verifier.verify(graph, spec)
    assert (verdict.status, verdict.proved) == (verifier.Status.VERIFIED, "float64")
    other = verifier.verify(graph, verifier.robustness(np.array([1.5]), 1, 0.25, 2, clip=None)).counterexample
    assert other.x.dtype == other.y.dtype == np.float64 and other.y[0] > other.y[1]
    around, config = verifier.Perturbation(0.25), verifier.Config()
    sides = ((np.array([[1.5]]), np.array([0])), (np.array([[-1.5]]), np.array([1])))
    rows = [row for images, labels in sides for row in verifier.certify(graph, images, labels, around, config)]
    assert [row.verdict.status for row in rows] == [verifier.Status.VERIFIED] * 2


@pytest.mark.parametrize(("to", "back"), [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.int64, torch.float32)])
def test_a_cast_that_rounds_is_refused(to: torch.dtype, back: torch.dtype) -> None:
    class Casts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * x.to(to).to(back)

    with pytest.raises(UnsupportedError, match="it rounds float32 to"):
        load_torch(Casts(), (2,))


def test_a_cast_that_does_not_round_leaves_no_single_arithmetic() -> None:
    class Widens(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * x.double()

    assert load_torch(Widens(), (2,)).arithmetic is None
    assert load_torch(two_slopes(torch.float16), (1,)).input_type == "float16"
    with pytest.raises(UnsupportedError, match="computes in bfloat16"):
        load_torch(two_slopes(torch.bfloat16), (1,))


def overwrites_a_view(apply: Apply, x: Tensor) -> Tensor:
    y = x * 1.0
    y.view(-1, 1)[:1].clamp_(min=-5.0)
    return y * 2


def overwrites_twice(apply: Apply, x: Tensor) -> Tensor:
    y = x * 1.0
    F.hardtanh(F.relu(y, True), 0.0, 5.0, True)
    return y * 2


def overwrites_its_own_view(apply: Apply, x: Tensor) -> Tensor:
    y = x * 1.0
    z = y.flatten(1)
    z.clamp_(max=5.0)
    return y * 2


def overwrites_a_part_that_is_read_alone(apply: Apply, x: Tensor) -> Tensor:
    a, b = (x * 1.0).chunk(2, 1)
    return a.clamp_(max=5.0) + b


@pytest.mark.parametrize("forward", [overwrites_twice, overwrites_its_own_view, overwrites_a_part_that_is_read_alone])
def test_what_is_overwritten_in_place_is_followed(forward: Callable[[Apply, Tensor], Tensor]) -> None:
    """At values that no single random input has."""
    module, x = Apply(forward).eval(), 20 * torch.randn(40, 1, 4)
    graph = load_torch(module, (4,))
    with torch.no_grad():
        assert torch.equal(execute(graph, x).reshape(40, -1), torch.stack([module(each.clone()) for each in x]).reshape(40, -1))


def test_what_is_overwritten_through_another_view_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="another view is read later"):
        load_torch(Apply(overwrites_a_view).eval(), (4,))
