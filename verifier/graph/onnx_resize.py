"""Resize and Upsample of ONNX, lowered: each place of the new grid copies the nearest value of the old one.

The standard gives the places over the reals, onnxruntime computes them in float32 and so takes other values at many fractional scales, and makes
other sizes. What is read here is what onnxruntime computes on the CPU, operation by operation in float32; a way of placing that is not
reproduced exactly is refused.
"""
from __future__ import annotations

import math

import numpy as np

from verifier.errors import ModelError, UnsupportedError
from verifier.graph.onnx_lowering import MOST_VALUES, Lower, Lowering, OnnxNode, Shape, Value, positive_axes

_HALF = np.float32(0.5)
# How near to the middle of two values a place is that onnxruntime 1.31 takes for the middle itself. Older ones ask for equality: where that is
# another pixel, the comparison with the runtime sees it.
_MIDWAY = np.float32(1e-6)
_ROUNDINGS = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")


def resize(node: OnnxNode, build: Lowering) -> Value:
    """The nearest value at each place of a grid: a Gather along each axis. A grid of x's own shape is x, whatever the scales."""
    x = node.variable(0)
    if node.attributes.get("mode", "nearest") != "nearest":
        raise UnsupportedError(f"the mode {node.attributes['mode']!r}")
    if node.flag("antialias") or node.flag("exclude_outside"):
        raise UnsupportedError("antialias or exclude_outside, which nearest values do not have")
    scales, sizes = targets(node, x.shape)
    if sizes == x.shape:
        return x
    for size in sizes:
        if not 0 < size <= MOST_VALUES:
            raise ModelError(f"{node.op} {node.name!r} asks for {size} values along one axis: is the file damaged?")
    for axis, (scale, size) in enumerate(zip(scales, sizes)):
        indices = nearest_indices(node, x.shape[axis], size, scale)
        if not np.array_equal(indices, np.arange(x.shape[axis])):
            x = build.take(x, indices, axis)
    return x


def targets(node: OnnxNode, shape: Shape) -> tuple[tuple[np.float32, ...], Shape]:
    """Scales and output sizes: size = trunc(scale * old size) or scale = size / old size, in float32.

    They are Upsample 7's attribute, its input from opset 9 on, or Resize's `scales` or `sizes`, both for `axes` alone where there are any.
    """
    place = 1 if node.op == "Upsample" or node.opset < 11 else 2
    scales = node.attributes.get("scales") if node.op == "Upsample" and node.opset < 9 else node.constant(place, "scales")
    sizes = node.constant(3, "sizes") if place == 2 else None
    given = [] if scales is None else np.asarray(scales, np.float32).reshape(-1).tolist()
    asked = [] if sizes is None else [int(n) for n in sizes.reshape(-1)]
    axes = node.attributes.get("axes") if node.opset >= 18 else None
    axes = tuple(range(len(shape))) if axes is None else positive_axes(tuple(axes), len(shape))
    if bool(given) == bool(asked) or len(given or asked) != len(axes) or len(set(axes)) != len(axes):
        raise ModelError(f"{node.op} {node.name!r} has scales {given}, sizes {asked} and axes {axes} for a value of shape {shape}.")
    if given:
        least = 1.0 if node.op == "Upsample" else 0.0
        if not all(least <= s < math.inf and s > 0 for s in given):
            raise ModelError(f"{node.op} {node.name!r} has scales {given}, out of range.")
        factors = dict(zip(axes, map(np.float32, given)))
        full = tuple(factors.get(axis, np.float32(1)) for axis in range(len(shape)))
        return full, tuple(int(scale * np.float32(size)) for scale, size in zip(full, shape))
    return by_policy(node, shape, dict(zip(axes, asked)))


def by_policy(node: OnnxNode, shape: Shape, asked: dict[int, int]) -> tuple[tuple[np.float32, ...], Shape]:
    """The sizes asked for, or those of one common scale, the smallest or the largest of them, rounded."""
    policy = node.attributes.get("keep_aspect_ratio_policy", "stretch") if node.opset >= 18 else "stretch"
    sizes = tuple(asked.get(axis, size) for axis, size in enumerate(shape))
    scales = tuple(np.float32(new) / np.float32(old) for new, old in zip(sizes, shape))
    if policy == "stretch":
        return scales, sizes
    if policy not in ("not_larger", "not_smaller"):
        raise ModelError(f"{node.op} {node.name!r} has the unknown keep_aspect_ratio_policy {policy!r}.")
    common = (min if policy == "not_larger" else max)(scales[axis] for axis in asked)
    scales = tuple(common if axis in asked else np.float32(1) for axis in range(len(shape)))
    return scales, tuple(int(_away(scale * np.float32(size))) for scale, size in zip(scales, shape))


def _away(places: np.ndarray) -> np.ndarray:
    """The nearest integer, of two the one farther from zero."""
    wide = np.asarray(places, np.float64)
    return np.copysign(np.floor(np.abs(wide) + 0.5), wide)


def nearest_indices(node: OnnxNode, size: int, new_size: int, scale: np.float32) -> np.ndarray:
    """Which of `size` values each of `new_size` ones copies, `(new_size,)` int64; at a scale of 1 each its own, wherever its place lies."""
    if scale == 1:
        return np.arange(new_size)
    places = old_places(node, size, new_size, scale)
    rounding = node.attributes.get("nearest_mode", "round_prefer_floor")
    if node.op == "Upsample" or node.opset < 11:
        found = np.ceil(places) if scale < 1 else np.trunc(places)
    elif rounding not in _ROUNDINGS:
        raise ModelError(f"Resize {node.name!r} has the unknown nearest_mode {rounding!r}.")
    else:
        found = np.floor(places) if rounding.endswith("floor") else np.ceil(places)
        if rounding.startswith("round"):
            midway = np.abs(places - np.floor(places) - _HALF) <= _MIDWAY
            found = np.where(midway, found, _away(places))
    return np.clip(found, 0, size - 1).astype(np.int64)


def old_places(node: OnnxNode, size: int, new_size: int, scale: np.float32) -> np.ndarray:
    """Where each of `new_size` places lies on the old grid, `(new_size,)` float32."""
    where = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    new = np.arange(new_size).astype(np.float32)
    if node.op == "Upsample" or node.opset < 11 or where == "asymmetric":
        return new / scale
    if where == "tf_half_pixel_for_nn":
        return (new + _HALF) / scale
    if where == "half_pixel" or (where == "pytorch_half_pixel" and new_size > 1):
        return (new + _HALF) / scale - _HALF
    if where == "align_corners" and new_size > 1:
        return new * np.float32(size - 1) / np.float32(new_size - 1)
    if where == "half_pixel_symmetric":
        center = np.float32(size) / np.float32(2)
        shift = center * (np.float32(1) - np.float32(new_size) / (scale * np.float32(size)))
        return (np.float64(shift) + (new.astype(np.float64) + 0.5) / np.float64(scale) - 0.5).astype(np.float32)
    if where in ("align_corners", "pytorch_half_pixel"):
        return np.zeros(1, np.float32)
    raise UnsupportedError(f"the coordinates {where!r}")


RESIZES: dict[str, Lower] = {"Resize": resize, "Upsample": resize}
