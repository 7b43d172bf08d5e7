"""What does not depend on the input, computed at loading: with the meaning of the file's opset, and no more of it than the file accounts for.

onnx's reference implementation has the newest meaning of most operations. Those that meant something else before, or that it computes otherwise than
onnxruntime does, are computed here (`OWN`); an operation of an older version that is in neither list is refused.
"""
from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import NodeProto, helper, numpy_helper

from verifier.errors import UnsupportedError
from verifier.graph.onnx_file import attributes_of, first_line
from verifier.graph.onnx_lowering import OnnxNode, Shape, Variable, positive_axes, positive_axis
from verifier.graph.onnx_resize import nearest_indices, targets
from verifier.graph.onnx_windows import Window, pool_window, read_window, spatial_shape, transposed_pads

Arrays = tuple[np.ndarray, ...]
# Constants that a file's weights do not account for: so many values, and so many for each value that the file stores.
_FREE_VALUES, _VALUES_EACH, _MOST_VALUES = 2**25, 8, 2**28
_SMALL = 1024
# Operations whose older versions differ from the newest in types and forms alone, which the reference implementation knows.
SAME_IN_ALL = frozenset("""
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Cast Ceil Celu Clip Compress Concat ConstantOfShape Conv Cos Cosh CumSum
    DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gemm
    GlobalAveragePool Greater GreaterOrEqual HardSigmoid HardSwish Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less
    LessOrEqual Log LpNormalization MatMul Max Min Mish Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow QuantizeLinear Range Reciprocal ReduceL1
    ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round ScatterElements
    ScatterND Selu Shape Sigmoid Sign Sin Sinh Size Slice Softplus Softsign SpaceToDepth Split Sqrt Sub Tan Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Where Xor
""".split())  # noqa: SIM905  (a list of words)


class Constants:
    """Computes nodes whose inputs are known, up to a number of values in all that `stored`, the number in the file, accounts for."""

    def __init__(self, opset: int, stored: int) -> None:
        self.opset, self.limit, self.made = opset, min(_MOST_VALUES, _FREE_VALUES + _VALUES_EACH * stored), 0

    def compute(self, proto: NodeProto, inputs: tuple[np.ndarray | None, ...]) -> Arrays:
        """The outputs of a node; an output without a name is empty.

        Raises:
            UnsupportedError: it cannot be computed, or would be too large.
        """
        attributes = attributes_of(proto)
        if proto.op_type == "Constant":
            return (_constant(attributes),)
        self.make_room(proto, inputs)
        node = OnnxNode(proto.name or proto.output[0], proto.op_type, self.opset, inputs, tuple(proto.output), attributes)
        found = OWN[proto.op_type](node) if proto.op_type in OWN else None
        found = self.reference(proto, inputs) if found is None else found
        self.made += sum(value.size for value in found)
        return found

    def make_room(self, proto: NodeProto, inputs: tuple[np.ndarray | None, ...]) -> None:
        """Asks for the size of a node's outputs before any of them is there."""
        size = _sizes_inferred(proto, inputs, self.opset)
        size = _size_asked(proto, inputs) if size is None else size
        if self.made + size > self.limit:
            raise UnsupportedError(f"the constants computed up to it would hold more than {self.limit:,} values in all")

    def reference(self, proto: NodeProto, inputs: tuple[np.ndarray | None, ...]) -> Arrays:
        """The outputs by onnx's reference implementation."""
        from onnx.reference import ReferenceEvaluator

        if not _is_newest(proto.op_type, self.opset) and proto.op_type not in SAME_IN_ALL:
            raise UnsupportedError(f"a constant of an operation that opset {self.opset} may define otherwise than today: convert the file")
        model = _alone(proto, inputs, self.opset, known=False)
        try:
            results = ReferenceEvaluator(model).run(None, {name: value for name, value in zip(proto.input, inputs) if name})
        except Exception as error:
            raise UnsupportedError(f"a constant that cannot be computed: {first_line(error)}") from None
        if not all(isinstance(result, (np.ndarray, np.generic)) for result in results):
            raise UnsupportedError("a constant that is not a tensor")
        named = iter(results)
        return tuple(np.asarray(next(named)) if name else np.empty(0) for name in proto.output)


def _is_newest(op: str, opset: int) -> bool:
    """Whether an operation's version in that opset is its newest."""
    try:
        return onnx.defs.get_schema(op, opset).since_version == onnx.defs.get_schema(op).since_version
    except onnx.defs.SchemaError:
        return False


def _alone(proto: NodeProto, inputs: tuple[np.ndarray | None, ...], opset: int, known: bool) -> onnx.ModelProto:
    """The node as a model; with the values of its small inputs in it where they are to be `known`."""
    named = {name: value for name, value in zip(proto.input, inputs) if name}
    inside = {name: value for name, value in named.items() if known and value.size <= _SMALL and value.dtype.kind in "ifb"}
    kinds = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape) if known else
             helper.make_value_info(name, onnx.TypeProto()) for name, value in named.items() if name not in inside]
    outputs = [helper.make_value_info(name, onnx.TypeProto()) for name in proto.output if name]
    graph = helper.make_graph([proto], "one node", kinds, outputs, [numpy_helper.from_array(value, name) for name, value in inside.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def _sizes_inferred(proto: NodeProto, inputs: tuple[np.ndarray | None, ...], opset: int) -> float | None:
    """How many values the outputs hold, as onnx infers it; None where it does not."""
    try:
        graph = onnx.shape_inference.infer_shapes(_alone(proto, inputs, opset, known=True)).graph
    except Exception:
        return None
    shapes = [info.type.tensor_type.shape.dim for info in graph.output if info.type.tensor_type.HasField("shape")]
    if len(shapes) != sum(map(bool, proto.output)) or not all(d.HasField("dim_value") for dims in shapes for d in dims):
        return None
    return float(sum(math.prod(d.dim_value for d in dims) for dims in shapes))


def _size_asked(proto: NodeProto, inputs: tuple[np.ndarray | None, ...]) -> float:
    """How many values an operation makes at most of inputs of these sizes and values, roughly."""
    given = [value for value in inputs if value is not None]
    numbers = [np.asarray(value, np.float64).reshape(-1) for value in given if value.dtype.kind in "if" and value.size <= _SMALL]
    sizes = float(sum(value.size for value in given))
    if proto.op_type == "Range" and len(numbers) == 3 and numbers[2].any():
        return float(np.abs((numbers[1] - numbers[0]) / numbers[2]).max())
    if proto.op_type in ("ConstantOfShape", "Expand", "Tile", "Resize", "Upsample", "Pad", "OneHot", "CenterCropPad") and numbers:
        return math.prod(float(np.prod(np.abs(v) + 1)) for v in numbers[-1:]) * max(given[0].size, 1)
    if len(given) > 1 and proto.op_type not in ("Concat", "Where", "Gather"):
        return math.prod(float(max(value.size, 1)) for value in given[:2])
    return sizes


def _constant(attributes: dict) -> np.ndarray:
    """The value of a Constant, in any of its forms."""
    for key, kind in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64), ("value_ints", np.int64)):
        if key in attributes:
            return np.array(attributes[key], kind)
    value = attributes.get("value", attributes.get("sparse_value"))
    if not isinstance(value, np.ndarray):
        raise UnsupportedError("a constant that is not a number")
    return value


def known(node: OnnxNode, index: int) -> np.ndarray:
    """Input `index`, an array that is there."""
    value = node.value(index)
    if isinstance(value, Variable):
        raise UnsupportedError(f"input number {index + 1}, which depends on the network's input")
    return value


def _softmax(node: OnnxNode) -> Arrays | None:
    """Before opset 13 Softmax, LogSoftmax and Hardmax see a matrix: the axes before `axis` by the others."""
    if node.opset >= 13:
        return None
    x = known(node, 0)
    axis = node.attributes.get("axis", 1)
    axis = axis if axis == x.ndim else positive_axis(axis, x.ndim)
    rows = x.reshape(math.prod(x.shape[:axis]), -1).astype(np.float64)
    if node.op == "Hardmax":
        found = np.zeros_like(rows)
        found[np.arange(len(rows)), rows.argmax(1)] = 1
    else:
        shifted = rows - rows.max(1, keepdims=True)
        log = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        found = log if node.op == "LogSoftmax" else np.exp(log)
    return (found.reshape(x.shape).astype(x.dtype),)


def _batch_normalization(node: OnnxNode) -> Arrays:
    """gamma (x - mean) / sqrt(variance + epsilon) + beta on axis 1."""
    if node.flag("training_mode") or any(node.outputs[1:]) or not node.flag("spatial", default=True):
        raise UnsupportedError("training mode, or statistics for each position")
    x = known(node, 0)
    gamma, beta, average, variance = (known(node, i).astype(np.float64).reshape(-1, *(1,) * (x.ndim - 2)) for i in range(1, 5))
    spread = np.sqrt(variance + float(node.attributes.get("epsilon", np.float32(1e-5))))
    return ((gamma * (x - average) / spread + beta).astype(x.dtype),)


def _along(node: OnnxNode, x: np.ndarray, parameter: np.ndarray) -> np.ndarray:
    """A scale or zero point of quantisation, one number or one for each place of `axis`, as it broadcasts to x."""
    if parameter.size == 1:
        return parameter.reshape(())
    axis = positive_axis(node.attributes.get("axis", 1), x.ndim)
    if node.opset < 13 or parameter.shape != (x.shape[axis],):
        raise UnsupportedError(f"a scale or zero point of shape {parameter.shape}")
    return parameter.reshape(-1, *(1,) * (x.ndim - axis - 1))


def _dequantize(node: OnnxNode) -> Arrays | None:
    """(x - zero point) scale."""
    x, scale = known(node, 0), known(node, 1)
    if node.opset >= 19:
        return None
    if x.dtype not in (np.int8, np.uint8, np.int32) or scale.dtype != np.float32:
        raise UnsupportedError(f"numbers of type {x.dtype} scaled by {scale.dtype}")
    zero = np.zeros((), x.dtype) if node.given(2) is None else known(node, 2)
    return ((x.astype(np.int64) - _along(node, x, zero)).astype(np.float32) * _along(node, x, scale),)


def _quantize(node: OnnxNode) -> Arrays | None:
    """round(x / scale) + zero point, ties to even, cut to the type of the zero point."""
    x, scale = known(node, 0), known(node, 1)
    if node.opset >= 19:
        return None
    zero = np.zeros((), np.uint8) if node.given(2) is None else known(node, 2)
    if zero.dtype not in (np.int8, np.uint8) or x.dtype != np.float32:
        raise UnsupportedError(f"numbers of type {x.dtype} quantised to {zero.dtype}")
    limits = np.iinfo(zero.dtype)
    whole = np.rint(x / _along(node, x, scale)).astype(np.float64) + _along(node, x, zero)
    return (np.clip(whole, limits.min, limits.max).astype(zero.dtype),)


def _total(node: OnnxNode) -> Arrays:
    """x_1 + ... + x_n, or that over n."""
    result = known(node, 0)
    for index in range(1, len(node.inputs)):
        result = result + known(node, index)
    return (result / result.dtype.type(len(node.inputs)) if node.op == "Mean" else result,)


def _global_max(node: OnnxNode) -> Arrays:
    x = known(node, 0)
    return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


def _ones(node: OnnxNode) -> Arrays:
    """Squeeze and Unsqueeze: axes of size 1 fewer or more."""
    x, axes = known(node, 0), node.integers(1, "axes")
    if node.op == "Squeeze":
        axes = tuple(i for i, size in enumerate(x.shape) if size == 1) if axes is None else positive_axes(axes, x.ndim)
        return (np.squeeze(x, axes),)
    return (np.expand_dims(x, tuple(axes or ())),)


def _pad(node: OnnxNode) -> Arrays | None:
    """Cut where pads are negative, then padded; only negative pads are computed here, and only with a number."""
    given = node.integers(1, "pads") or ()
    if min(given, default=0) >= 0:
        return None
    x, axes = known(node, 0), node.integers(3, "axes")
    if node.attributes.get("mode", "constant") != "constant":
        raise UnsupportedError("negative pads of a constant in another mode than 'constant'")
    axes = tuple(range(x.ndim)) if axes is None else positive_axes(axes, x.ndim)
    filling = node.attributes.get("value", 0.0) if node.given(2) is None else known(node, 2).reshape(())
    pads = dict(zip(axes, zip(given[:len(axes)], given[len(axes):])))
    kept = tuple(slice(max(-pads.get(i, (0, 0))[0], 0), size - max(-pads.get(i, (0, 0))[1], 0)) for i, size in enumerate(x.shape))
    return (np.pad(x[kept], [tuple(max(p, 0) for p in pads.get(i, (0, 0))) for i in range(x.ndim)], constant_values=filling),)


def _resize(node: OnnxNode) -> Arrays | None:
    """The nearest values, as for what depends on the input."""
    x = known(node, 0)
    scales, sizes = targets(node, x.shape)
    if 0 in sizes:
        raise UnsupportedError(f"a constant of shape {sizes}, which holds no value")
    if node.attributes.get("mode", "nearest") != "nearest":
        return None
    for axis, (scale, size) in enumerate(zip(scales, sizes)):
        x = x if sizes == known(node, 0).shape else np.take(x, nearest_indices(node, x.shape[axis], size, scale), axis)
    return (x,)


def _each(node: OnnxNode, one: Callable[[OnnxNode, np.ndarray], np.ndarray]) -> Arrays:
    """`one` of each sample of a batch, (1, C, *spatial), joined again."""
    if any(node.outputs[1:]):
        raise UnsupportedError("the indices as a second output")
    return (np.concatenate([one(node, sample[None]) for sample in known(node, 0)]),)


def patches(x: np.ndarray, window: Window, filling: float, pads: Shape) -> np.ndarray:
    """What each window sees: `(1, C, *out, *kernel)`."""
    n = len(window.kernel)
    padded = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[i + n]) for i in range(n))], constant_values=filling)
    seen = sliding_window_view(padded, window.extent, tuple(range(2, n + 2)))
    return seen[(slice(None), slice(None), *(slice(None, None, s) for s in window.strides), *(slice(None, None, d) for d in window.dilations))]


def _pool(node: OnnxNode, x: np.ndarray) -> np.ndarray:
    """Maximum, or mean over the true values (and the pads of the file, where they count) of windows."""
    given, window = pool_window(node, Variable("", x.shape))
    n = len(window.kernel)
    axes = tuple(range(2 + n, 2 + 2 * n))
    if node.op == "MaxPool":
        return patches(x, window, -np.inf, window.pads).max(axes)
    count = np.pad(np.ones_like(x), [(0, 0), (0, 0), *((given.pads[i], given.pads[i + n]) for i in range(n))],
                   constant_values=float(node.flag("count_include_pad")))
    hanging = (0,) * n + tuple(window.pads[i + n] - given.pads[i + n] for i in range(n))
    return patches(x, window, 0.0, window.pads).sum(axes, x.dtype) / patches(count, window, 0.0, hanging).sum(axes, x.dtype)


def _conv_transpose(node: OnnxNode, x: np.ndarray) -> np.ndarray:
    """Each value times the kernel, added up where it lands."""
    weight, group = known(node, 1), int(node.attributes.get("group", 1))
    spatial = spatial_shape(node, Variable("", x.shape), weight.ndim - 2)
    window = read_window(node, weight.shape[2:])
    extra = tuple(node.attributes.get("output_padding") or (0,) * len(spatial))
    free = tuple((size - 1) * s + e + o for size, s, e, o in zip(spatial, window.strides, window.extent, extra))
    window = transposed_pads(node, window, spatial, free)
    whole = np.zeros((group, weight.shape[1], *free))
    parts, weights = x[0].reshape(group, -1, *spatial).astype(np.float64), weight.reshape(group, -1, *weight.shape[1:])
    for at in np.ndindex(*window.kernel):
        places = tuple(slice(k * d, k * d + (size - 1) * s + 1, s) for k, d, size, s in zip(at, window.dilations, spatial, window.strides))
        whole[(slice(None), slice(None), *places)] += np.einsum("gi...,gio->go...", parts, weights[(..., *at)])
    n = len(spatial)
    cut = whole[(slice(None), slice(None), *(slice(window.pads[i], free[i] - window.pads[i + n]) for i in range(n)))]
    result = cut.reshape(1, -1, *cut.shape[2:])
    bias = 0.0 if node.given(2) is None else known(node, 2).reshape(-1, *(1,) * n)
    return (result + bias).astype(x.dtype)


OWN: dict[str, Callable[[OnnxNode], Arrays | None]] = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax), **dict.fromkeys(("Sum", "Mean"), _total),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _ones), **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("AveragePool", "MaxPool"), lambda node: _each(node, _pool)), "ConvTranspose": lambda node: _each(node, _conv_transpose),
    "BatchNormalization": _batch_normalization, "DequantizeLinear": _dequantize, "GlobalMaxPool": _global_max, "Pad": _pad,
    "QuantizeLinear": _quantize,
}
