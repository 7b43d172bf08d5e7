"""The layers of torch.nn as calls of their functional forms."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from verifier.errors import UnsupportedError
from verifier.graph import torch_calls as calls
from verifier.graph.onnx_lowering import Lowering, Variable

Layer = Callable[[Lowering, Any, Variable], Any]


def module_call(build: Lowering, module: nn.Module, input: Variable) -> Any:
    """A layer of torch.nn as the call of its functional form.

    Raises:
        UnsupportedError: the layer is of another type.
    """
    for hook in module._forward_pre_hooks.values():
        if not type(hook).__module__.startswith("torch.nn.utils."):
            raise UnsupportedError("a hook changes what it is given")
        hook(module, ())  # of pruning and weight norms: computes the weight anew, with its gradient link
    for kinds, call in MODULES:
        if isinstance(module, kinds):
            return call(build, module, input)
    raise UnsupportedError("no rule lowers this layer")


def _conv_module(build: Lowering, m: nn.Module, x: Variable) -> Variable:
    if m.padding_mode != "zeros":
        raise UnsupportedError(f"the padding mode {m.padding_mode!r}")
    return calls.convolution(build, x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


def _transposed_module(build: Lowering, m: nn.Module, x: Variable) -> Variable:
    return calls.transposed_convolution(build, x, m.weight, m.bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation)


MODULES: tuple[tuple[tuple[type, ...], Layer], ...] = (
    ((nn.Linear,), lambda b, m, x: calls.linear(b, x, m.weight, m.bias)),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv_module),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed_module),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
     lambda b, m, x: calls.batch_norm(b, x, m.running_mean, m.running_var, m.weight, m.bias, m.training, 0.0, m.eps)),
    ((nn.ReLU6,), lambda b, m, x: calls.relu6(b, x)),
    ((nn.ReLU,), lambda b, m, x: calls.relu(b, x)),
    ((nn.LeakyReLU,), lambda b, m, x: calls.leaky_relu(b, x, m.negative_slope)),
    ((nn.PReLU,), lambda b, m, x: calls.prelu(b, x, m.weight)),
    ((nn.Sigmoid,), lambda b, m, x: calls.sigmoid(b, x)),
    ((nn.Tanh,), lambda b, m, x: calls.tanh(b, x)),
    ((nn.SiLU,), lambda b, m, x: calls.silu(b, x)),
    ((nn.Hardsigmoid,), lambda b, m, x: calls.hardsigmoid(b, x)),
    ((nn.Hardswish,), lambda b, m, x: calls.hardswish(b, x)),
    ((nn.Hardtanh,), lambda b, m, x: calls.hardtanh(b, x, m.min_val, m.max_val)),
    ((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
     lambda b, m, x: calls.max_pool(b, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)),
    ((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
     lambda b, m, x: calls.avg_pool(
         b, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, getattr(m, "divisor_override", None))),
    ((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), lambda b, m, x: calls.adaptive_avg_pool(b, x, m.output_size)),
    ((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
     lambda b, m, x: calls.adaptive_max_pool(b, x, m.output_size, m.return_indices)),
    ((nn.Flatten,), lambda b, m, x: calls.flatten(b, x, m.start_dim, m.end_dim)),
    ((nn.Unflatten,), lambda b, m, x: calls.unflatten(b, x, m.dim, m.unflattened_size)),
    ((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), lambda b, m, x: calls.dropout(b, x, m.p, m.training)),
    ((nn.Identity,), lambda b, m, x: x),
)
