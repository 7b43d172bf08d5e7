"""What a call in a torch module means, in the words of the ONNX lowerings: one short function a call, with torch's own signature.

A call's first argument is the `Lowering`; values that depend on the input are `Variable`s, everything else is what torch would see
(numbers, tensors, parameters). Tensors stay what they are, so that bounds are differentiable in them. A call refuses as a lowering does,
with an `UnsupportedError` that holds the reason alone.
"""
from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from verifier.errors import UnsupportedError
from verifier.graph import onnx_elementwise, onnx_linear, onnx_shapes, onnx_windows
from verifier.graph.onnx_lowering import Lower, Lowering, OnnxNode, Variable, positive_axes, positive_axis

Call = Callable[..., Any]
Ints = int | tuple[int, ...] | list[int] | torch.Size


class TorchLowering(Lowering):
    """A Lowering whose constants are tensors: the module's own where they come from it."""

    def __init__(self, taken: frozenset[str], like: Tensor) -> None:
        super().__init__(taken, np.dtype(np.float64 if like.dtype == torch.float64 else np.float32))
        self.like = like

    def keep(self, value: Tensor | np.ndarray) -> Tensor:
        return value if isinstance(value, Tensor) else torch.as_tensor(value, device=self.like.device)

    def floats(self, array: Tensor | np.ndarray | float) -> Tensor:
        """A tensor of the module's type; a number in float64, for without axes it changes no other tensor's type."""
        if np.ndim(array) == 0 and not isinstance(array, Tensor):
            return torch.tensor(float(array), dtype=torch.float64, device=self.like.device)
        if isinstance(array, Tensor):
            return array if array.is_floating_point() else array.to(self.like)
        return torch.as_tensor(array, dtype=self.like.dtype, device=self.like.device)


def through(lower: Lower, op: str, inputs: tuple, build: Lowering, attributes: Mapping[str, Any] | None = None, outputs: int = 1) -> Any:
    """The ONNX operation `op` on these inputs, by its own lowering."""
    return lower(OnnxNode(op, op, 21, inputs, ("value",) * outputs, attributes or {}), build)


def as_tuple(value: Ints, count: int) -> tuple[int, ...]:
    """torch's one number for all axes, or one for each."""
    return (int(value),) * count if isinstance(value, int) else tuple(int(v) for v in value)


def linear(build: Lowering, input: Variable, weight: Tensor, bias: Tensor | None = None) -> Variable:
    return onnx_linear.linear(input, weight, bias, build)


def convolution(build: Lowering, input: Variable, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Ints | str = 0,
                dilation: Ints = 1, groups: int = 1) -> Variable:
    n = weight.ndim - 2
    if padding == "same":
        totals = tuple((k - 1) * d for k, d in zip(weight.shape[2:], as_tuple(dilation, n)))
        pads = onnx_windows.split_pads(totals, more_at_end=True)
    else:
        pads = as_tuple(0 if padding == "valid" else padding, n) * 2
    attributes = {"strides": as_tuple(stride, n), "pads": pads, "dilations": as_tuple(dilation, n), "group": groups}
    return through(onnx_windows.conv, "Conv", (input, weight, bias), build, attributes)


def transposed_convolution(build: Lowering, input: Variable, weight: Tensor, *given: Any, **named: Any) -> Variable:
    """torch's order: bias, stride, padding, output_padding, groups, dilation."""
    defaults = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
    bias, stride, padding, output_padding, groups, dilation = options(defaults, given, named)
    n = weight.ndim - 2
    attributes = {
        "strides": as_tuple(stride, n), "pads": as_tuple(padding, n) * 2, "dilations": as_tuple(dilation, n), "group": groups,
        "output_padding": as_tuple(output_padding, n),
    }
    return through(onnx_windows.conv_transpose, "ConvTranspose", (input, weight, bias), build, attributes)


def batch_norm(build: Lowering, input: Variable, running_mean: Any, running_var: Any, *given: Any, **named: Any) -> Variable:
    """x s + (bias - mean s), s = weight / sqrt(var + eps); torch's order: weight, bias, training, momentum, eps."""
    defaults = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}
    weight, bias, training, _, eps = options(defaults, given, named)
    if training or running_mean is None or running_var is None:
        raise UnsupportedError("statistics of the batch itself: call eval() on the module")
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    offset = -running_mean * scale if bias is None else bias - running_mean * scale
    shape = (-1, *(1,) * (len(input.shape) - 2))
    return build.scale(input, scale.reshape(shape), offset.reshape(shape))


def options(defaults: dict[str, Any], given: tuple, named: dict[str, Any]) -> tuple:
    """The arguments in the order of `defaults`, by place or by name."""
    unknown = set(named) - set(defaults)
    if unknown:
        raise UnsupportedError(f"the arguments {sorted(unknown)}")
    return tuple({**defaults, **dict(zip(defaults, given)), **named}.values())


def relu(build: Lowering, input: Variable, inplace: bool = False) -> Variable:
    return build.relu(input)


def relu6(build: Lowering, input: Variable, inplace: bool = False) -> Variable:
    return onnx_elementwise.clamp(input, 0.0, 6.0, build)


def leaky_relu(build: Lowering, input: Variable, negative_slope: float = 0.01, inplace: bool = False) -> Variable:
    return onnx_elementwise.sloped(input, np.array(float(negative_slope)), build)


def prelu(build: Lowering, input: Variable, weight: Tensor) -> Variable:
    """(1 - s) max(x, 0) + s x, the slope a parameter that stays one."""
    slope = weight if weight.numel() == 1 else weight.reshape(-1, *(1,) * max(len(input.shape) - 2, 0))
    return build.sum_of("Add", build.scale(build.relu(input), 1.0 - slope, 0.0), build.scale(input, slope, 0.0))


def sigmoid(build: Lowering, input: Variable) -> Variable:
    return build.add("Sigmoid", (input,), input.shape)


def tanh(build: Lowering, input: Variable) -> Variable:
    return build.add("Tanh", (input,), input.shape)


def silu(build: Lowering, input: Variable, inplace: bool = False) -> Variable:
    return build.product(input, sigmoid(build, input))


def hardsigmoid(build: Lowering, input: Variable, inplace: bool = False) -> Variable:
    return onnx_elementwise.clamp(build.scale(input, 1 / 6, 0.5), 0.0, 1.0, build)


def hardswish(build: Lowering, input: Variable, inplace: bool = False) -> Variable:
    return build.product(input, hardsigmoid(build, input))


def hardtanh(build: Lowering, input: Variable, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Variable:
    return onnx_elementwise.clamp(input, float(min_val), float(max_val), build)


def clamp(build: Lowering, input: Variable, min: float | None = None, max: float | None = None) -> Variable:
    if isinstance(min, (Variable, Tensor)) or isinstance(max, (Variable, Tensor)):
        raise UnsupportedError("bounds that are tensors")
    return onnx_elementwise.clamp(input, -math.inf if min is None else float(min), math.inf if max is None else float(max), build)


def absolute(build: Lowering, input: Variable) -> Variable:
    return through(onnx_elementwise.absolute, "Abs", (input,), build)


def same(build: Lowering, input: Variable, *ignored: Any, **also: Any) -> Variable:
    return input


def dropout(build: Lowering, input: Variable, p: float = 0.5, training: bool = True, inplace: bool = False) -> Variable:
    if training and p > 0:
        raise UnsupportedError("training mode: call eval() on the module, and pass training=self.training")
    return input


def max_pool(build: Lowering, input: Variable, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0, dilation: Ints = 1,
             ceil_mode: bool = False, return_indices: bool = False) -> Variable:
    if return_indices:
        raise UnsupportedError("the indices as a second output")
    n = len(input.shape) - 2
    attributes = {"kernel_shape": as_tuple(kernel_size, n), "strides": as_tuple(stride or kernel_size, n), "pads": as_tuple(padding, n) * 2,
                  "dilations": as_tuple(dilation, n), "ceil_mode": int(ceil_mode)}
    return through(onnx_windows.max_pool, "MaxPool", (input,), build, attributes)


def avg_pool(build: Lowering, input: Variable, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0, ceil_mode: bool = False,
             count_include_pad: bool = True, divisor_override: int | None = None) -> Variable:
    if divisor_override is not None:
        raise UnsupportedError("a divisor of its own")
    n = len(input.shape) - 2
    attributes = {"kernel_shape": as_tuple(kernel_size, n), "strides": as_tuple(stride or kernel_size, n), "pads": as_tuple(padding, n) * 2,
                  "ceil_mode": int(ceil_mode), "count_include_pad": int(count_include_pad)}
    return through(onnx_windows.average_pool, "AveragePool", (input,), build, attributes)


def adaptive_avg_pool(build: Lowering, input: Variable, output_size: Ints) -> Variable:
    """To one position a mean, to a divisor of the size a pool."""
    kernel = adaptive_kernel(input, output_size)
    if kernel == input.shape[2:]:
        return through(onnx_windows.global_average_pool, "GlobalAveragePool", (input,), build)
    return avg_pool(build, input, kernel)


def adaptive_max_pool(build: Lowering, input: Variable, output_size: Ints, return_indices: bool = False) -> Variable:
    return max_pool(build, input, adaptive_kernel(input, output_size), return_indices=return_indices)


def adaptive_kernel(input: Variable, output_size: Ints) -> tuple[int, ...]:
    """The windows of an adaptive pool whose sizes divide.

    Raises:
        UnsupportedError: they do not, so that windows overlap unevenly.
    """
    spatial = input.shape[2:]
    given = (output_size,) * len(spatial) if output_size is None or isinstance(output_size, int) else output_size
    sizes = tuple(size if wanted is None else int(wanted) for size, wanted in zip(spatial, given))
    if any(size % wanted for size, wanted in zip(spatial, sizes)):
        raise UnsupportedError(f"an output of {sizes} that does not divide the input's {spatial}")
    return tuple(size // wanted for size, wanted in zip(spatial, sizes))


def flatten(build: Lowering, input: Variable, start_dim: int = 0, end_dim: int = -1) -> Variable:
    rank = max(len(input.shape), 1)
    start, end = positive_axis(start_dim, rank), positive_axis(end_dim, rank)
    return build.reshape(input, (*input.shape[:start], math.prod(input.shape[start:end + 1]), *input.shape[end + 1:]))


def unflatten(build: Lowering, input: Variable, dim: int, sizes: Ints) -> Variable:
    axis = positive_axis(dim, len(input.shape))
    return reshape(build, input, (*input.shape[:axis], *sizes, *input.shape[axis + 1:]))


def sizes_of(given: tuple) -> tuple[int, ...]:
    """view(1, 2), view((1, 2)) and view([1, 2]) mean the same."""
    return tuple(given[0]) if len(given) == 1 and not isinstance(given[0], int) else tuple(given)


def reshape(build: Lowering, input: Variable, *shape: Any) -> Variable:
    sizes = sizes_of(shape)
    if sizes.count(-1) == 1:
        rest = math.prod(size for size in sizes if size != -1)
        sizes = tuple(math.prod(input.shape) // max(rest, 1) if size == -1 else size for size in sizes)
    return build.reshape(input, sizes)


def permute(build: Lowering, input: Variable, *dims: Any) -> Variable:
    perm = positive_axes(sizes_of(dims), len(input.shape))
    return through(onnx_shapes.transpose, "Transpose", (input,), build, {"perm": perm})


def transpose(build: Lowering, input: Variable, dim0: int = 0, dim1: int = 1) -> Variable:
    order = list(range(len(input.shape)))
    first, second = positive_axis(dim0, len(order)), positive_axis(dim1, len(order))
    order[first], order[second] = order[second], order[first]
    return permute(build, input, tuple(order))


def squeeze(build: Lowering, input: Variable, dim: Ints | None = None) -> Variable:
    axes = range(len(input.shape)) if dim is None else positive_axes(as_tuple(dim, 1), len(input.shape))
    return build.reshape(input, tuple(size for i, size in enumerate(input.shape) if i not in axes or size != 1))


def unsqueeze(build: Lowering, input: Variable, dim: int) -> Variable:
    return through(onnx_shapes.unsqueeze, "Unsqueeze", (input,), build, {"axes": (dim,)})


def expand(build: Lowering, input: Variable, *sizes: Any) -> Variable:
    wanted = sizes_of(sizes)
    own = (1,) * (len(wanted) - len(input.shape)) + input.shape
    return build.expand(input, tuple(o if w == -1 else w for w, o in zip(wanted, own)))


def concatenate(build: Lowering, tensors: list, dim: int = 0) -> Variable:
    if not all(isinstance(value, Variable) for value in tensors):
        raise UnsupportedError("a part that does not depend on the input")
    return through(onnx_shapes.concat, "Concat", tuple(tensors), build, {"axis": dim})


def stack(build: Lowering, tensors: list, dim: int = 0) -> Variable:
    return concatenate(build, [unsqueeze(build, value, dim) for value in tensors if isinstance(value, Variable)] or tensors, dim)


def split(build: Lowering, tensor: Variable, split_size_or_sections: Ints, dim: int = 0) -> tuple[Variable, ...]:
    axis = positive_axis(dim, len(tensor.shape))
    size, given = tensor.shape[axis], split_size_or_sections
    parts = [min(given, size - start) for start in range(0, size, given)] if isinstance(given, int) else list(given)
    return through(onnx_shapes.split, "Split", (tensor,), build, {"axis": axis, "split": parts}, len(parts))


def chunk(build: Lowering, input: Variable, chunks: int, dim: int = 0) -> tuple[Variable, ...]:
    return split(build, input, -(-input.shape[positive_axis(dim, len(input.shape))] // chunks), dim)


def pad(build: Lowering, input: Variable, pad: list[int], mode: str = "constant", value: float | None = None) -> Variable:
    """torch names the last axis first, begin and end together."""
    rank, pads = len(input.shape), [0] * 2 * len(input.shape)
    for place, amount in enumerate(pad):
        pads[rank - 1 - place // 2 + rank * (place % 2)] = amount
    return through(onnx_shapes.pad, "Pad", (input,), build, {"mode": mode, "pads": pads, "value": float(value or 0.0)})


def mean(build: Lowering, input: Variable, dim: Ints | None = None, keepdim: bool = False) -> Variable:
    return reduced("ReduceMean", build, input, dim, keepdim)


def total(build: Lowering, input: Variable, dim: Ints | None = None, keepdim: bool = False) -> Variable:
    return reduced("ReduceSum", build, input, dim, keepdim)


def reduced(op: str, build: Lowering, input: Variable, dim: Ints | None, keepdim: bool) -> Variable:
    attributes: dict[str, Any] = {"keepdims": int(keepdim)}
    if dim is not None:
        attributes["axes"] = as_tuple(dim, 1)
    return through(onnx_shapes.reduce, op, (input,), build, attributes)


def add(build: Lowering, x: Any, y: Any, alpha: float = 1) -> Any:
    return onnx_elementwise.add_values(build_value(build, x), build_value(build, y if alpha == 1 else multiply(build, y, alpha)), build)


def subtract(build: Lowering, x: Any, y: Any, alpha: float = 1) -> Any:
    y = y if alpha == 1 else multiply(build, y, alpha)
    return through(onnx_elementwise.subtract, "Sub", (build_value(build, x), build_value(build, y)), build)


def reverse_subtract(build: Lowering, x: Any, y: Any, alpha: float = 1) -> Any:
    return subtract(build, y, x, alpha)


def multiply(build: Lowering, x: Any, y: Any) -> Any:
    if not isinstance(x, Variable) and not isinstance(y, Variable):
        return x * y
    return through(onnx_elementwise.multiply, "Mul", (build_value(build, x), build_value(build, y)), build)


def divide(build: Lowering, x: Any, y: Any) -> Variable:
    if not isinstance(x, Variable) or isinstance(y, Variable):
        raise UnsupportedError("a divisor that depends on the input")
    return build.scale(x, 1.0 / build_value(build, y), 0.0)


def negate(build: Lowering, x: Variable) -> Variable:
    return build.scale(x, -1.0, 0.0)


def power(build: Lowering, x: Variable, exponent: Any) -> Variable:
    if isinstance(exponent, (Variable, Tensor)) or exponent != 2:
        raise UnsupportedError("an exponent other than 2")
    return build.product(x, x)


def square(build: Lowering, x: Variable) -> Variable:
    return build.product(x, x)


def larger(build: Lowering, x: Any, y: Any) -> Variable:
    return extremum(onnx_elementwise.larger, build, x, y)


def smaller(build: Lowering, x: Any, y: Any) -> Variable:
    return extremum(onnx_elementwise.smaller, build, x, y)


def extremum(pick: Call, build: Lowering, x: Any, y: Any) -> Variable:
    """max or min of two variables; torch takes no numbers here."""
    if not isinstance(x, Variable) or not isinstance(y, Variable):
        raise UnsupportedError("a constant operand: use clamp")
    return pick(x, y, build)


def matmul(build: Lowering, x: Any, y: Any) -> Variable:
    return onnx_linear.matrix_product(x, y, build)


def build_value(build: Lowering, value: Any) -> Variable | Tensor:
    """A number as a tensor."""
    return value if isinstance(value, Variable) else build.floats(value)


def item(build: Lowering, value: Any, index: Any) -> Any:
    """value[index]: of a tuple of parts, or slices and numbers along the first axes of a tensor."""
    if not isinstance(value, Variable):
        return value[index]
    index = index if isinstance(index, tuple) else (index,)
    named = [i for i in index if i is not None and i is not Ellipsis]
    whole = [slice(None)] * (len(value.shape) - len(named))
    place = next((i for i, entry in enumerate(index) if entry is Ellipsis), len(index))
    ranges: dict[int, slice] = {}
    shape: list[int | None] = []
    for entry in (*index[:place], *whole, *index[place + 1:]):
        if entry is None:
            shape.append(1)
            continue
        axis = len(ranges)
        if isinstance(entry, int):
            entry = positive_axis(entry, value.shape[axis])
            ranges[axis] = slice(entry, entry + 1)
        elif isinstance(entry, slice):
            ranges[axis] = entry
            shape.append(len(range(*entry.indices(value.shape[axis]))))
        else:
            raise UnsupportedError("an index that is neither a number nor a slice")
    return build.reshape(onnx_shapes.cut(value, ranges, build), tuple(shape))


def attribute(build: Lowering, value: Any, name: str) -> Any:
    """x.shape and x.ndim, which are known."""
    if not isinstance(value, Variable):
        return getattr(value, name)
    known = {"shape": torch.Size(value.shape), "ndim": len(value.shape), "dtype": build.like.dtype, "device": build.like.device}
    if name == "T":
        return permute(build, value, tuple(range(len(value.shape)))[::-1])
    if name not in known:
        raise UnsupportedError(f"the attribute {name!r}")
    return known[name]


def size(build: Lowering, value: Variable, dim: int | None = None) -> Any:
    return torch.Size(value.shape) if dim is None else value.shape[dim]


def dimensions(build: Lowering, value: Variable) -> int:
    return len(value.shape)


FUNCTIONS: dict[Any, Call] = {
    F.linear: linear, F.conv1d: convolution, F.conv2d: convolution, F.conv3d: convolution, torch.conv1d: convolution,
    torch.conv2d: convolution, torch.conv3d: convolution,
    F.conv_transpose1d: transposed_convolution, F.conv_transpose2d: transposed_convolution, F.conv_transpose3d: transposed_convolution,
    F.batch_norm: batch_norm, F.relu: relu, torch.relu: relu, F.relu6: relu6, F.leaky_relu: leaky_relu, F.prelu: prelu,
    torch.prelu: prelu, F.sigmoid: sigmoid, torch.sigmoid: sigmoid, F.tanh: tanh, torch.tanh: tanh, F.silu: silu,
    F.hardsigmoid: hardsigmoid, F.hardswish: hardswish, F.hardtanh: hardtanh, torch.clamp: clamp, torch.clip: clamp,
    torch.abs: absolute, operator.abs: absolute, abs: absolute,
    F.dropout: dropout, F.dropout2d: dropout, F.dropout3d: dropout,
    F.max_pool1d: max_pool, F.max_pool2d: max_pool, F.max_pool3d: max_pool, torch.max_pool2d: max_pool,
    F.avg_pool1d: avg_pool, F.avg_pool2d: avg_pool, F.avg_pool3d: avg_pool,
    F.adaptive_avg_pool1d: adaptive_avg_pool, F.adaptive_avg_pool2d: adaptive_avg_pool, F.adaptive_avg_pool3d: adaptive_avg_pool,
    F.adaptive_max_pool1d: adaptive_max_pool, F.adaptive_max_pool2d: adaptive_max_pool, F.adaptive_max_pool3d: adaptive_max_pool,
    torch.flatten: flatten, torch.unflatten: unflatten, torch.reshape: reshape, torch.permute: permute, torch.transpose: transpose,
    torch.squeeze: squeeze, torch.unsqueeze: unsqueeze, torch.cat: concatenate, torch.concat: concatenate, torch.stack: stack,
    torch.split: split, torch.chunk: chunk, F.pad: pad, torch.mean: mean, torch.sum: total, operator.add: add, operator.iadd: add,
    torch.add: add, operator.sub: subtract, operator.isub: subtract, torch.sub: subtract, torch.rsub: reverse_subtract,
    operator.mul: multiply, operator.imul: multiply, torch.mul: multiply, operator.truediv: divide, operator.itruediv: divide,
    torch.div: divide, operator.neg: negate, torch.neg: negate, operator.pow: power, torch.pow: power, torch.square: square,
    torch.maximum: larger, torch.minimum: smaller, operator.matmul: matmul, torch.matmul: matmul,
    torch.mm: matmul, torch.bmm: matmul, operator.getitem: item, getattr: attribute,
}

METHODS: dict[str, Call] = {
    "relu": relu, "relu_": relu, "sigmoid": sigmoid, "tanh": tanh, "clamp": clamp, "clamp_": clamp, "clip": clamp, "abs": absolute,
    "view": reshape, "reshape": reshape, "flatten": flatten, "unflatten": unflatten, "permute": permute, "transpose": transpose,
    "t": transpose, "squeeze": squeeze, "unsqueeze": unsqueeze, "expand": expand, "split": split, "chunk": chunk, "contiguous": same,
    "clone": same, "float": same, "double": same, "to": same, "type_as": same, "mean": mean, "sum": total, "add": add, "add_": add,
    "sub": subtract, "sub_": subtract, "mul": multiply, "mul_": multiply, "div": divide, "div_": divide, "neg": negate, "pow": power,
    "square": square, "matmul": matmul, "mm": matmul, "bmm": matmul, "size": size, "dim": dimensions,
    "ndimension": dimensions, "maximum": larger, "minimum": smaller,
}
