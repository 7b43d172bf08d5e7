"""Split trees: the walk that shows that the leaves cover the region, and what each leaf knows.

A tree is its nodes in pre-order; a node that is no leaf cuts what it covers at one point of one coordinate, and both sides follow. So a complete
sequence covers its root, whatever the numbers in it are.
"""
from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from verifier.certificate.schema import CertificateError, Record

LEAF = -1
DEEPEST = 1000
Path = tuple  # (the parent's path, coordinate, sign, point), () at the root


def walk(record: Record, trees: int, coordinates: int, first: int) -> Iterator[tuple[int, int, Path]]:
    """The leaves of the record's `trees` trees in order, as (tree, depth, path); the side of sign `first` of every cut comes first.

    Raises:
        CertificateError: the sequence is not exactly so many complete trees, or cuts a coordinate that does not exist.
    """
    codes = record.array("tree", "i4", (None,))
    points = record.array("point", "f8", (len(codes),)).tolist() if "point" in record.arrays else [0.0] * len(codes)
    if len(codes) and not (codes.min() >= LEAF and codes.max() < coordinates):
        raise CertificateError(f"{record.place} splits a coordinate that there is not: {coordinates} are known.")
    nodes = iter(zip(codes.tolist(), points))
    for tree in range(trees):
        waiting: list[tuple[int, Path]] = [(0, ())]
        while waiting:
            depth, path = waiting.pop()
            code, point = next(nodes, (None, 0.0))
            if code is None or depth > DEEPEST:
                raise CertificateError(f"{record.place} has a tree that is not complete, or deeper than {DEEPEST:,} splits: a part is not covered.")
            if code == LEAF:
                yield tree, depth, path
            else:
                waiting += [(depth + 1, (path, code, -first, point)), (depth + 1, (path, code, first, point))]
    if next(nodes, None) is not None:
        raise CertificateError(f"{record.place} goes on after its last tree.")


def splits(path: Path) -> list[tuple[int, int, float]]:
    """The cuts on a path, root first, as (coordinate, sign, point): sign +1 is the side above the point."""
    found = []
    while path:
        path, *cut = path
        found.append(tuple(cut))
    return found[::-1]


def shared(paths: list[list[tuple[int, int, float]]]) -> np.ndarray:
    """How many cuts each path begins with that the one before it has too."""
    found = np.zeros(len(paths), int)
    for leaf, (before, path) in enumerate(pairwise(paths), 1):
        found[leaf] = next((k for k, (one, other) in enumerate(zip(before, path)) if one != other), min(len(before), len(path)))
    return found


def narrowed(lower: np.ndarray, upper: np.ndarray, paths: list[list[tuple[int, int, float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Intervals `(L, U)` of the leaves: `lower, upper (U,)` cut as each of the L paths says."""
    low, high = (np.repeat(side[None], len(paths), 0) for side in (lower, upper))
    for leaf, path in enumerate(paths):
        for coordinate, sign, point in path:
            if sign > 0:
                low[leaf, coordinate] = max(low[leaf, coordinate], point)
            else:
                high[leaf, coordinate] = min(high[leaf, coordinate], point)
    return low, high
