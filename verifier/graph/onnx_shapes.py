"""Operations of ONNX that move values, lowered: reshaping, slicing, joining, padding, repeating; and sums over axes."""
from __future__ import annotations

import math

import numpy as np

from verifier.errors import ModelError, ShapeError, UnsupportedError
from verifier.graph.onnx_lowering import MOST_VALUES, Lower, Lowering, OnnxNode, Value, Variable, positive_axes, positive_axis


def reshape(node: OnnxNode, build: Lowering) -> Value:
    """The same values in another shape: 0 keeps a size (unless `allowzero`), -1 takes what is left."""
    x, wanted = node.variable(0), node.integers(1, "shape")
    if wanted is None:
        raise ModelError(f"Reshape {node.name!r} has no shape.")
    keep = not node.flag("allowzero")
    if keep and any(size == 0 and i >= len(x.shape) for i, size in enumerate(wanted)):
        raise ShapeError(f"Reshape {node.name!r} keeps a size in {wanted} that its input of shape {x.shape} does not have.")
    sizes = [x.shape[i] if size == 0 and keep else size for i, size in enumerate(wanted)]
    if sizes.count(-1) == 1:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = math.prod(x.shape) // max(known, 1)
    return build.reshape(x, tuple(sizes))


def flatten(node: OnnxNode, build: Lowering) -> Value:
    """The axes before `axis` as one, the others as another."""
    x = node.variable(0)
    axis = node.attributes.get("axis", 1)
    axis = axis if axis == len(x.shape) else positive_axis(axis, len(x.shape))
    return build.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def squeeze(node: OnnxNode, build: Lowering) -> Value:
    """Without the given axes of size 1, or without all of them."""
    x, axes = node.variable(0), node.integers(1, "axes")
    axes = tuple(i for i, size in enumerate(x.shape) if size == 1) if axes is None else positive_axes(axes, len(x.shape))
    return build.reshape(x, tuple(size for i, size in enumerate(x.shape) if i not in axes))


def unsqueeze(node: OnnxNode, build: Lowering) -> Value:
    """With new axes of size 1, counted in the output."""
    x, axes = node.variable(0), node.integers(1, "axes") or ()
    rank = len(x.shape) + len(axes)
    new = positive_axes(axes, rank)
    sizes = iter(x.shape)
    if len(set(new)) != len(new):
        raise ShapeError(f"Unsqueeze {node.name!r} names an axis twice: {axes}.")
    return build.reshape(x, tuple(1 if i in new else next(sizes) for i in range(rank)))


def transpose(node: OnnxNode, build: Lowering) -> Value:
    """Axes permuted, by default reversed."""
    x = node.variable(0)
    perm = tuple(node.attributes.get("perm") or range(len(x.shape))[::-1])
    if sorted(perm) != list(range(len(x.shape))):
        raise ShapeError(f"Transpose {node.name!r} permutes {perm} a value of shape {x.shape}: is the file damaged?")
    return build.add("Transpose", (x,), tuple(x.shape[i] for i in perm), {}, {"perm": perm})


def expand(node: OnnxNode, build: Lowering) -> Value:
    """Broadcast to a shape (both ways: a size 1 of the shape changes nothing)."""
    x, shape = node.variable(0), node.integers(1, "shape")
    return build.expand(x, build.broadcast(x.shape, shape or ()))


def tile(node: OnnxNode, build: Lowering) -> Value:
    """Each axis repeated as a whole."""
    x, repeats = node.variable(0), node.integers(1, "repeats") or ()
    for axis, count in enumerate(repeats):
        if count != 1:
            check_size(x.shape[axis] * count, node)
            x = build.take(x, np.tile(np.arange(x.shape[axis]), count), axis)
    return x


def check_size(size: int, node: OnnxNode) -> None:
    """An axis of that size is possible; asked before anything of that size is made."""
    if not 0 < size <= MOST_VALUES:
        raise ModelError(f"{node.op} {node.name!r} asks for {size} values along one axis: is the file damaged?")


def shape_of(node: OnnxNode, build: Lowering) -> Value:
    """The shape, which is known, from `start` to `end`."""
    x = node.variable(0)
    return np.array(x.shape[node.attributes.get("start", 0):node.attributes.get("end", len(x.shape))], np.int64)


def size_of(node: OnnxNode, build: Lowering) -> Value:
    """The number of values, which is known."""
    return np.array(math.prod(node.variable(0).shape), np.int64)


def concat(node: OnnxNode, build: Lowering) -> Value:
    """Joined along an axis. A constant part becomes pads of its neighbour, with the constant as offset."""
    parts = [node.value(i) for i in range(len(node.inputs))]
    rank = len(parts[0].shape)
    axis = positive_axis(node.attributes["axis"], rank)
    others = {(len(p.shape), p.shape[:axis], p.shape[axis + 1:]) for p in parts}
    if len(others) != 1:
        shapes = ", ".join(str(part.shape) for part in parts)
        raise ShapeError(f"Concat {node.name!r} joins the shapes {shapes} along axis {axis}: is the file damaged?")
    groups: list[list[Value]] = [[]]
    for part in (p for p in parts if p.shape[axis] > 0):
        if isinstance(part, Variable) and any(isinstance(p, Variable) for p in groups[-1]):
            groups.append([])
        groups[-1].append(part)
    joined = tuple(surround(group, axis, build) for group in groups)
    if len(joined) == 1:
        return joined[0]
    shape = (*joined[0].shape[:axis], sum(v.shape[axis] for v in joined), *joined[0].shape[axis + 1:])
    return build.add("Concat", joined, shape, {}, {"axis": axis})


def surround(group: list[Value], axis: int, build: Lowering) -> Variable:
    """One variable with constants before and after it on an axis: Pad, then the constants as offset."""
    place = next(i for i, part in enumerate(group) if isinstance(part, Variable))
    x = group[place]
    if len(group) == 1:
        return x
    rank = len(x.shape)
    begin, end = (sum(p.shape[axis] for p in some) for some in (group[:place], group[place + 1:]))
    pads = [0] * 2 * rank
    pads[axis], pads[axis + rank] = begin, end
    shape = (*x.shape[:axis], x.shape[axis] + begin + end, *x.shape[axis + 1:])
    padded = build.add("Pad", (x,), shape, {}, {"pads": tuple(pads), "value": 0.0})
    offset = np.concatenate([np.zeros(p.shape, build.dtype) if isinstance(p, Variable) else build.floats(p) for p in group], axis)
    return build.scale(padded, 1.0, offset)


def cut(x: Variable, ranges: dict[int, slice], build: Lowering) -> Variable:
    """x[..., slice, ...], python's slices, one an axis; no node where all is kept."""
    axes, starts, ends, steps, shape = [], [], [], [], list(x.shape)
    for axis, wanted in sorted(ranges.items()):
        start, end, step = wanted.indices(x.shape[axis])
        kept = len(range(start, end, step))
        if kept == 0:
            raise ModelError(f"A slice keeps nothing of axis {axis} of a value of shape {x.shape}: is the file damaged?")
        if (start, step, kept) == (0, 1, x.shape[axis]):
            continue
        shape[axis] = kept
        axes.append(axis)
        starts.append(start)
        ends.append(end if end >= 0 else -1 - x.shape[axis])
        steps.append(step)
    if not axes:
        return x
    attributes = {"axes": tuple(axes), "starts": tuple(starts), "ends": tuple(ends), "steps": tuple(steps)}
    return build.add("Slice", (x,), tuple(shape), {}, attributes)


def slice_(node: OnnxNode, build: Lowering) -> Value:
    """Python's slices along some axes: attributes up to opset 9, then inputs."""
    x = node.variable(0)
    starts, ends = node.integers(1, "starts"), node.integers(2, "ends")
    if starts is None or ends is None or len(starts) != len(ends):
        raise ModelError(f"Slice {node.name!r} has starts {starts} and ends {ends}, which do not fit together.")
    axes = node.integers(3, "axes")
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = node.integers(4, "steps") or (1,) * len(starts)
    if len(axes) != len(starts) or len(steps) != len(starts) or 0 in steps:
        raise ModelError(f"Slice {node.name!r} has starts {starts}, axes {axes} and steps {steps}, which do not fit together.")
    return cut(x, {axis: slice(*limits) for axis, *limits in zip(positive_axes(axes, len(x.shape)), starts, ends, steps)}, build)


def split(node: OnnxNode, build: Lowering) -> tuple[Value, ...]:
    """Cut along an axis into parts of the given sizes, or into equal ones (the last may be smaller)."""
    x = node.variable(0)
    axis = positive_axis(node.attributes.get("axis", 0), len(x.shape))
    sizes, parts = node.integers(1, "split"), len(node.outputs)
    if sizes is None:
        size = -(-x.shape[axis] // parts)
        sizes = tuple(min(size, x.shape[axis] - i * size) for i in range(parts))
    if sum(sizes) != x.shape[axis] or min(sizes) < 1 or len(sizes) != parts:
        raise ShapeError(f"Split {node.name!r} cuts axis {axis} of {x.shape} into {sizes}, which does not fit.")
    starts = [sum(sizes[:i]) for i in range(parts)]
    return tuple(
        cut(x, {axis: slice(start, start + size)}, build) if name else x for start, size, name in zip(starts, sizes, node.outputs)
    )


def gather(node: OnnxNode, build: Lowering) -> Value:
    """Values at constant indices of one axis."""
    x, indices = node.variable(0), node.constant(1, "indices")
    axis = positive_axis(node.attributes.get("axis", 0), len(x.shape))
    size = x.shape[axis]
    if indices is None or np.any(indices < -size) or np.any(indices >= size):
        raise ModelError(f"Gather {node.name!r} has indices outside axis {axis} of a value of shape {x.shape}.")
    return build.take(x, np.where(indices < 0, indices + size, indices), axis)


def pad(node: OnnxNode, build: Lowering) -> Value:
    """A constant around x; negative pads cut. Attributes up to opset 10, then inputs."""
    x = node.variable(0)
    mode = node.attributes.get("mode", "constant")
    if mode != "constant":
        raise UnsupportedError(f"the mode {mode!r}")
    given, value = node.integers(1, "pads"), node.constant(2, "pad values")
    if value is not None and value.size != 1:
        raise ShapeError(f"Pad {node.name!r} has a value of shape {value.shape}; one number is needed.")
    filling = float(node.attributes.get("value", 0.0)) if value is None else float(value.reshape(()))
    rank = len(x.shape)
    axes = node.integers(3, "axes")
    axes = tuple(range(rank)) if axes is None else positive_axes(axes, rank)
    if given is None or len(given) != 2 * len(axes) or not math.isfinite(filling):
        raise ModelError(f"Pad {node.name!r} has pads {given} and value {filling} for a value of shape {x.shape}.")
    pads = [0] * 2 * rank
    for place, axis in enumerate(axes):
        pads[axis], pads[axis + rank] = given[place], given[place + len(axes)]
    x = cut(x, {i: slice(max(-pads[i], 0), x.shape[i] - max(-pads[i + rank], 0)) for i in range(rank)}, build)
    pads = tuple(max(p, 0) for p in pads)
    if not any(pads):
        return x
    shape = tuple(size + pads[i] + pads[i + rank] for i, size in enumerate(x.shape))
    return build.add("Pad", (x,), shape, {}, {"pads": pads, "value": filling})


def reduce(node: OnnxNode, build: Lowering) -> Value:
    """Sum or mean over axes (all of them where none is given)."""
    x, axes = node.variable(0), node.integers(1, "axes")
    if not axes and node.flag("noop_with_empty_axes"):
        return x
    axes = tuple(sorted(set(positive_axes(axes, len(x.shape))))) if axes else tuple(range(len(x.shape)))
    if not axes:
        return x
    kept = tuple(1 if i in axes else size for i, size in enumerate(x.shape))
    result = build.add(node.op, (x,), kept, {}, {"axes": axes})
    if node.flag("keepdims", default=True):
        return result
    return build.reshape(result, tuple(size for i, size in enumerate(x.shape) if i not in axes))


SHAPES: dict[str, Lower] = {
    "Concat": concat,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Pad": pad,
    "ReduceMean": reduce,
    "ReduceSum": reduce,
    "Reshape": reshape,
    "Shape": shape_of,
    "Size": size_of,
    "Slice": slice_,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
