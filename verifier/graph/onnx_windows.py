"""Sliding windows of ONNX, lowered: Conv, ConvTranspose and the pools, with every way of padding resolved to explicit pads."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.errors import ModelError, ShapeError, UnsupportedError
from verifier.graph.onnx_lowering import Lower, Lowering, OnnxNode, Shape, Value, Variable

# No image has this many pixels along an axis: a larger number in a window is damage, and would overflow 64 bits in products.
LARGEST = 2**20


@dataclass(frozen=True, slots=True)
class Window:
    """A window over `n` spatial axes: `kernel`, `strides` and `dilations` `(n,)`, `pads` `(2 n,)`, begins then ends."""

    kernel: Shape
    strides: Shape
    dilations: Shape
    pads: Shape

    @property
    def extent(self) -> Shape:
        """What one window spans: (kernel - 1) dilation + 1."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations))

    def attributes(self) -> dict[str, Shape]:
        return {"strides": self.strides, "dilations": self.dilations, "pads": self.pads}


def spatial_shape(node: OnnxNode, x: Variable, rank: int | None = None) -> Shape:
    """The spatial axes of x, (1, C, *spatial).

    Raises:
        UnsupportedError: the batch is not 1, or there are not 1 to 3 spatial axes.
        ShapeError: the kernel has another number of axes.
    """
    spatial = x.shape[2:]
    if not 1 <= len(spatial) <= 3:
        raise UnsupportedError(f"an input of shape {x.shape}, which has not 1 to 3 spatial axes")
    if x.shape[0] != 1:
        raise UnsupportedError(f"an input of shape {x.shape}, whose first axis is not a batch of 1")
    if rank is not None and rank != len(spatial):
        raise ShapeError(f"{node.op} {node.name!r} has a kernel with {rank} axes but an input of {x.shape}: is the layout NCHW?")
    return spatial


def read_window(node: OnnxNode, kernel: Shape) -> Window:
    """The window as the attributes say it, pads as given (zeros where `auto_pad` decides later)."""
    n = len(kernel)
    given = tuple(int(k) for k in node.attributes.get("kernel_shape", kernel))
    strides = tuple(node.attributes.get("strides") or (1,) * n)
    dilations = tuple(node.attributes.get("dilations") or (1,) * n)
    pads = tuple(node.attributes.get("pads") or (0,) * 2 * n)
    if given != kernel or len(strides) != n or len(dilations) != n or len(pads) != 2 * n:
        raise ShapeError(f"{node.op} {node.name!r} has kernel {kernel}, kernel_shape {given}, strides {strides}, dilations {dilations} "
                         f"and pads {pads}, which do not fit together: is the file damaged?")
    if min((*kernel, *strides, *dilations)) < 1 or max((*kernel, *strides, *dilations, *pads)) > LARGEST:
        raise ModelError(f"{node.op} {node.name!r} has a kernel, stride, dilation or pad out of range: is the file damaged?")
    if min(pads) < 0:
        raise UnsupportedError(f"the negative pads {pads}")
    return Window(kernel, strides, dilations, pads if automatic(node) == "NOTSET" else (0,) * 2 * n)


def automatic(node: OnnxNode) -> str:
    """`auto_pad`: NOTSET, VALID, SAME_UPPER or SAME_LOWER."""
    mode = node.attributes.get("auto_pad", "NOTSET") or "NOTSET"
    if mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise ModelError(f"{node.op} {node.name!r} has the unknown auto_pad {mode!r}.")
    return mode


def split_pads(totals: Shape, more_at_end: bool) -> Shape:
    """Total pads of each axis as begins then ends; an odd one out goes to the end or to the begin."""
    small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    return small + large if more_at_end else large + small


def same_pads(node: OnnxNode, window: Window, spatial: Shape, extent: Shape) -> Window:
    """The window with the pads that make `auto_pad` SAME true for windows that span `extent`: ceil(size / stride) outputs."""
    mode = automatic(node)
    if not mode.startswith("SAME"):
        return window
    totals = tuple((-(-size // s) - 1) * s + e - size for size, s, e in zip(spatial, window.strides, extent))
    if min(totals) < (-1 if extent == window.extent else 0):
        raise UnsupportedError(f"{mode} with strides {window.strides} that skip values of {spatial}: runtimes disagree on which")
    totals = tuple(max(t, 0) for t in totals)
    return Window(window.kernel, window.strides, window.dilations, split_pads(totals, mode == "SAME_UPPER"))


def output_sizes(node: OnnxNode, window: Window, spatial: Shape) -> Shape:
    """floor((size + pads - extent) / stride) + 1 for each spatial axis."""
    n = len(spatial)
    room = tuple(spatial[i] + window.pads[i] + window.pads[i + n] - window.extent[i] for i in range(n))
    if min(room) < 0:
        raise ShapeError(f"{node.op} {node.name!r} has windows of {window.extent} over an input of {spatial}: is the layout NCHW?")
    return tuple(r // s + 1 for r, s in zip(room, window.strides))


def weights(node: OnnxNode, build: Lowering) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Weight, bias and group of a convolution."""
    weight, bias = node.constant(1, "weights"), node.constant(2, "biases")
    if weight is None or weight.ndim < 3:
        seen = "none" if weight is None else weight.shape
        raise ShapeError(f"{node.op} {node.name!r} has a weight of shape {seen}; (out, in, *kernel) is needed.")
    return build.floats(weight), None if bias is None else build.floats(bias), int(node.attributes.get("group", 1))


def conv(node: OnnxNode, build: Lowering) -> Value:
    """Cross-correlation, weight (out, in / group, *kernel)."""
    x, (weight, bias, group) = node.variable(0), weights(node, build)
    spatial = spatial_shape(node, x, weight.ndim - 2)
    if x.shape[1] != weight.shape[1] * group or weight.shape[0] % group:
        raise ShapeError(f"Conv {node.name!r} has weight {weight.shape} in {group} groups but its input has {x.shape[1]} channels: "
                         "is the input layout NCHW?")
    window = read_window(node, weight.shape[2:])
    window = same_pads(node, window, spatial, window.extent)
    shape = (1, weight.shape[0], *output_sizes(node, window, spatial))
    constants = {"weight": weight, "bias": full_bias(node, bias, weight.shape[0], build)}
    return build.add("Conv", (x,), shape, constants, {**window.attributes(), "group": group})


def full_bias(node: OnnxNode, bias: np.ndarray | None, channels: int, build: Lowering) -> np.ndarray:
    """The bias (channels,), zeros where there is none."""
    if bias is None:
        return build.floats(np.zeros(channels, build.dtype))
    if bias.shape != (channels,):
        raise ShapeError(f"{node.op} {node.name!r} has a bias of shape {bias.shape} but {channels} output channels.")
    return bias


def conv_transpose(node: OnnxNode, build: Lowering) -> Value:
    """The adjoint of a convolution, weight (in, out / group, *kernel)."""
    x, (weight, bias, group) = node.variable(0), weights(node, build)
    spatial = spatial_shape(node, x, weight.ndim - 2)
    if x.shape[1] != weight.shape[0] or weight.shape[0] % group:
        raise ShapeError(f"ConvTranspose {node.name!r} has weight {weight.shape} in {group} groups but {x.shape[1]} input channels.")
    window = read_window(node, weight.shape[2:])
    extra = tuple(node.attributes.get("output_padding") or (0,) * len(spatial))
    free = tuple((size - 1) * s + e + o for size, s, e, o in zip(spatial, window.strides, window.extent, extra))
    window = transposed_pads(node, window, spatial, free)
    n = len(spatial)
    sizes = tuple(free[i] - window.pads[i] - window.pads[i + n] for i in range(n))
    if min(sizes) < 1:
        raise ShapeError(f"ConvTranspose {node.name!r} pads its whole output away: its size would be {sizes}.")
    channels = weight.shape[1] * group
    constants = {"weight": weight, "bias": full_bias(node, bias, channels, build)}
    attributes = {**window.attributes(), "group": group, "output_padding": extra}
    return build.add("ConvTranspose", (x,), (1, channels, *sizes), constants, attributes)


def transposed_pads(node: OnnxNode, window: Window, spatial: Shape, free: Shape) -> Window:
    """The window with the pads that give `output_shape`, or size * stride where `auto_pad` is SAME; `free`: the sizes without pads."""
    mode = automatic(node)
    wanted = node.attributes.get("output_shape")
    if wanted is None:
        if not mode.startswith("SAME"):
            return window
        wanted = tuple(size * s for size, s in zip(spatial, window.strides))
    totals = tuple(f - w for f, w in zip(free, tuple(wanted)[-len(spatial):]))
    if min(totals) < 0 and "output_shape" in node.attributes:
        raise UnsupportedError(f"the output shape {tuple(wanted)}, which would need negative pads")
    totals = tuple(max(t, 0) for t in totals)
    return Window(window.kernel, window.strides, window.dilations, split_pads(totals, mode == "SAME_UPPER"))


def pool_window(node: OnnxNode, x: Variable) -> tuple[Window, Window]:
    """The window of a pool as given, and the same with `ceil_mode` turned into more pads at the ends.

    With ceil_mode a last window counts where it starts inside the input or its begin pads; it may hang over the end. The pads of `auto_pad`
    SAME are those of the kernel without its dilations, as onnxruntime has them.
    """
    kernel = tuple(node.attributes.get("kernel_shape") or ())
    spatial = spatial_shape(node, x, len(kernel))
    window = same_pads(node, read_window(node, kernel), spatial, kernel)
    if not node.flag("ceil_mode"):
        return window, window
    n, ends = len(spatial), []
    for i in range(n):
        begin, end, stride = window.pads[i], window.pads[i + n], window.strides[i]
        room = spatial[i] + begin + end - window.extent[i]
        last = -(-room // stride)
        last -= last * stride >= spatial[i] + begin
        ends.append(end + max(last * stride - room, 0))
    return window, Window(window.kernel, window.strides, window.dilations, window.pads[:n] + tuple(ends))


def max_pool(node: OnnxNode, build: Lowering) -> Value:
    """Maximum over windows; pads never win."""
    if any(node.outputs[1:]):
        raise UnsupportedError("the indices as a second output")
    x = node.variable(0)
    _, window = pool_window(node, x)
    return pooled("MaxPool", node, x, window, build)


def average_pool(node: OnnxNode, build: Lowering) -> Value:
    """Mean over windows, over the true values alone unless `count_include_pad`; what ceil_mode adds is never counted."""
    x = node.variable(0)
    given, window = pool_window(node, x)
    if not node.flag("count_include_pad"):
        return pooled("AveragePool", node, x, window, build, {"count_include_pad": 0})
    if given == window:
        return pooled("AveragePool", node, x, window, build, {"count_include_pad": 1})
    n = len(given.kernel)
    pads = (0, 0, *given.pads[:n], 0, 0, *given.pads[n:])
    shape = tuple(size + pads[i] + pads[i + n + 2] for i, size in enumerate(x.shape))
    padded = build.add("Pad", (x,), shape, {}, {"pads": pads, "value": 0.0})
    hanging = (0,) * n + tuple(window.pads[i + n] - given.pads[i + n] for i in range(n))
    rest = Window(given.kernel, given.strides, given.dilations, hanging)
    return pooled("AveragePool", node, padded, rest, build, {"count_include_pad": 0})


def pooled(op: str, node: OnnxNode, x: Variable, window: Window, build: Lowering, more: dict[str, int] | None = None) -> Variable:
    """A pool whose pads are all explicit."""
    n = len(window.kernel)
    if any(max(window.pads[i], window.pads[i + n]) >= window.extent[i] for i in range(n)):
        raise UnsupportedError(f"pads {window.pads} as wide as its windows {window.extent}, so that a window holds pads alone")
    shape = (*x.shape[:2], *output_sizes(node, window, x.shape[2:]))
    attributes = {"kernel_shape": window.kernel, **window.attributes(), "ceil_mode": 0, **(more or {})}
    return build.add(op, (x,), shape, {}, attributes)


def global_max_pool(node: OnnxNode, build: Lowering) -> Value:
    """Maximum over all spatial positions."""
    x = node.variable(0)
    spatial = spatial_shape(node, x)
    n = len(spatial)
    return pooled("MaxPool", node, x, Window(spatial, (1,) * n, (1,) * n, (0,) * 2 * n), build)


def global_average_pool(node: OnnxNode, build: Lowering) -> Value:
    """Mean over all spatial positions."""
    x = node.variable(0)
    shape = (*x.shape[:2], *(1,) * (len(x.shape) - 2))
    return build.add("ReduceMean", (x,), shape, {}, {"axes": tuple(range(2, len(x.shape)))})


WINDOWS: dict[str, Lower] = {
    "AveragePool": average_pool,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
}
