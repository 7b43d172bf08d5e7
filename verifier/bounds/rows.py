"""Rows: the coefficients that a backward pass carries, whole or cropped to the window that a neuron sees.

A chunk of rows is G groups of S rows. The rows of a group share everything but their coefficients: the problem, and, for neurons of a
convolution, the spatial position. So each value that rows are multiplied with (planes, bounds, shifts) is fetched once a group, by
`Frame.gather`, and broadcast over its rows.

A neuron of an early convolution depends on a small window of the values before it. Its coefficients are kept for that window alone; per
spatial axis the window of the group at position p starts at `stride * p + offset` and has `size` values. All groups of a chunk agree in
these three numbers. Where a window overhangs the value, the coefficients outside it mean nothing: `masked` says that they have been set to
zero.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from verifier.box import flat

# A window that covers this share of the value saves nothing over whole rows.
_DENSE_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Window:
    """`position: (G, d)` of each group on a grid of `counts` positions; `stride`, `offset` and `size` are one number for each spatial
    axis.
    """

    position: Tensor
    counts: tuple[int, ...]
    stride: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]

    def overhang(self, spatial: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How far the first windows reach in front of a value of these spatial sizes, and the last ones behind it (at least 0)."""
        before = tuple(max(0, -o) for o in self.offset)
        ends = ((n - 1) * s + o + k for n, s, o, k in zip(self.counts, self.stride, self.offset, self.size, strict=True))
        return before, tuple(max(0, end - size) for end, size in zip(ends, spatial, strict=True))

    def covers_most(self, spatial: tuple[int, ...]) -> bool:
        return prod(self.size) >= _DENSE_SHARE * prod(spatial)

    def starts(self) -> Tensor:
        """`(G, d)`: each group's first coordinate on each axis (negative where it overhangs)."""
        return self.position * self.position.new_tensor(self.stride) + self.position.new_tensor(self.offset)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the coefficients of G groups lie in a node's value. `problem: (G,)`, or None where group g is problem g.

    `single` is the one problem that all groups belong to, where there is only one: its values are broadcast instead of copied.
    """

    problem: Tensor | None = None
    window: Window | None = None
    single: int | None = None

    def gather(self, value: Tensor) -> Tensor:
        """`(B, *shape)` (or B = 1: the same for all problems) to `(G or 1, 1, *shape or window)`, zeros outside the value."""
        if self.window is not None:
            return self._windows(value, self.window)
        if value.shape[0] == 1 or (self.problem is None and self.single is None):
            return value.unsqueeze(1)
        if self.single is not None:
            return value[self.single : self.single + 1].unsqueeze(1)
        return value.index_select(0, self.problem).unsqueeze(1)

    def _windows(self, value: Tensor, window: Window) -> Tensor:
        rank = len(window.size)
        before, after = window.overhang(tuple(value.shape[-rank:]))
        if any(before) or any(after):
            value = F.pad(value, [n for pair in reversed(list(zip(before, after, strict=True))) for n in pair])
        lead = value.ndim - rank
        for axis, (before_axis, offset, size, stride) in enumerate(zip(before, window.offset, window.size, window.stride, strict=True)):
            # Each unfold appends its window's axis at the end, so the spatial axes stay where they are.
            at, start = lead + axis, offset + before_axis
            value = value.narrow(at, start, value.shape[at] - start).unfold(at, size, stride)
        value = value.permute(0, *range(lead, lead + rank), *range(1, lead), *range(lead + rank, value.ndim))
        batch = self.single if self.single is not None else self.problem
        if value.shape[0] == 1:
            batch = 0
        return value[(batch, *window.position.unbind(1))].unsqueeze(1)


@dataclass(frozen=True, slots=True)
class Rows:
    """Coefficients `coeff: (G, S, *shape or window)` of one node's value."""

    coeff: Tensor
    frame: Frame
    masked: bool = True

    @property
    def window(self) -> Window | None:
        return self.frame.window


def dot(coeff: Tensor, value: Tensor) -> Tensor:
    """<coeff, value> over all but the first two axes: `(G, S, ...)` and `(G or 1, S or 1, ...)` to `(G, S)`."""
    coeff, value = flat(coeff, 2), flat(value, 2)
    if value.shape[1] > 1:
        return (coeff * value).sum(-1)
    if value.shape[0] == 1:
        return (coeff.reshape(-1, coeff.shape[-1]) @ value.reshape(-1)).reshape(coeff.shape[:2])
    return (coeff @ value.transpose(1, 2)).squeeze(-1)


def mask_outside(rows: Rows, shape: tuple[int, ...]) -> Rows:
    """The same rows with zeros where a window overhangs the value."""
    if rows.masked or rows.window is None:
        return rows
    inside = rows.frame.gather(rows.coeff.new_ones(1, *shape))
    return replace(rows, coeff=rows.coeff * inside, masked=True)


def densify(rows: Rows, shape: tuple[int, ...]) -> Rows:
    """The same rows over the whole value of `shape`, zero outside their windows."""
    window = rows.window
    if window is None:
        return rows
    spatial = shape[-len(window.size):]
    scatter = _scatter if rows.coeff.requires_grad or rows.coeff.is_cuda else _copy_windows
    return Rows(scatter(rows.coeff, window, spatial), replace(rows.frame, window=None))


def _copy_windows(coeff: Tensor, window: Window, spatial: tuple[int, ...]) -> Tensor:
    """One group after the other: fast where a group is much work, on CPUs, and without a gradient."""
    lead = coeff.shape[: coeff.ndim - len(spatial)]
    whole = coeff.new_zeros(*lead, *spatial)
    for group, starts in enumerate(window.starts().tolist()):
        inside = [(max(s, 0), min(s + k, n)) for s, k, n in zip(starts, window.size, spatial, strict=True)]
        into = tuple(slice(first, max(first, last)) for first, last in inside)
        taken = tuple(slice(first - s, max(first, last) - s) for (first, last), s in zip(inside, starts, strict=True))
        whole[(group, ..., *into)] = coeff[(group, ..., *taken)]
    return whole


def _scatter(coeff: Tensor, window: Window, spatial: tuple[int, ...]) -> Tensor:
    """All groups at once, by index; what overhangs is cropped."""
    rank = len(spatial)
    before, after = window.overhang(spatial)
    padded = tuple(b + n + a for b, n, a in zip(before, spatial, after, strict=True))
    index = torch.zeros(coeff.shape[0], *(1,) * rank, dtype=torch.int64, device=coeff.device)
    starts = window.starts() + window.position.new_tensor(before)
    for axis in range(rank):
        along = starts[:, axis : axis + 1] + torch.arange(window.size[axis], device=index.device)
        index = index * padded[axis] + along.reshape(-1, *(window.size[axis] if k == axis else 1 for k in range(rank)))
    flat = coeff.flatten(-rank)
    index = index.reshape(index.shape[0], *(1,) * (flat.ndim - 2), -1).expand(flat.shape)
    whole = flat.new_zeros(*flat.shape[:-1], prod(padded)).scatter(-1, index, flat).reshape(*flat.shape[:-1], *padded)
    if any(before) or any(after):
        whole = F.pad(whole, [-n for pair in reversed(list(zip(before, after, strict=True))) for n in pair])
    return whole


def add_rows(left: Rows, right: Rows, shape: tuple[int, ...]) -> Rows:
    """The sum of two coefficients of one value: windows grow to hold both, whole rows swallow windows."""
    if left.window is None or right.window is None or left.window.stride != right.window.stride:
        left, right = densify(left, shape), densify(right, shape)
        return replace(left, coeff=left.coeff + right.coeff)
    first, second = left.window, right.window
    offset = tuple(min(a, b) for a, b in zip(first.offset, second.offset, strict=True))
    ends = tuple(max(a + m, b + n) for a, m, b, n in zip(first.offset, first.size, second.offset, second.size, strict=True))
    union = replace(first, offset=offset, size=tuple(e - o for e, o in zip(ends, offset, strict=True)))
    coeff = _grow(left.coeff, first, union) + _grow(right.coeff, second, union)
    return Rows(coeff, replace(left.frame, window=union), left.masked and right.masked)


def _grow(coeff: Tensor, window: Window, union: Window) -> Tensor:
    pads = []
    for axis in reversed(range(len(window.size))):
        front = window.offset[axis] - union.offset[axis]
        pads += [front, union.size[axis] - window.size[axis] - front]
    return F.pad(coeff, pads) if any(pads) else coeff
