"""The truth about small piecewise linear networks, in rational numbers: every linear piece of the network over a box, by its vertices.

A `Net` is a list of values, each computed from earlier ones. It is the only description of a network in this battery: `pieces` enumerates it
exactly, `nets.save` writes it as a model, `nets.run_float32` runs it in several orders of summation. Nothing here imports the verifier.
"""
from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf
from typing import Any

import numpy as np

INPUT = 0
"""The number of the value that is the network's input."""


@dataclass(frozen=True)
class Step:
    """One value: `kind` affine (matrix (out, in), bias), relu, add (two sources) or max (groups of indices of its source).

    Also leaky (max of z and slope z, `numbers` its slope, at most 1), clip (`numbers` its two ends, infinite ones allowed), abs, larger (the maximum
    of two sources) and concat (several sources). mul (two sources), sigmoid and tanh have no linear pieces: `pieces` refuses them.
    `form` tells the writer of models what to write for the value; it changes nothing of the meaning.
    """

    kind: str
    sources: tuple[int, ...]
    matrix: np.ndarray | None = None
    bias: np.ndarray | None = None
    groups: tuple[tuple[int, ...], ...] = ()
    form: dict[str, Any] = field(default_factory=dict)
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class Net:
    """Value 0 is the input, value k + 1 comes from `steps[k]`; the last one is the output. Weights are float32 numbers in float64 arrays."""

    n_in: int
    steps: tuple[Step, ...]

    @property
    def n_out(self) -> int:
        return self.sizes()[-1]

    def sizes(self) -> list[int]:
        """The length of every value."""
        sizes = [self.n_in]
        for step in self.steps:
            counts = {"affine": len(step.matrix) if step.matrix is not None else 0, "max": len(step.groups)}
            counts["concat"] = sum(sizes[s] for s in step.sources)
            sizes.append(counts.get(step.kind, sizes[step.sources[0]]))
        return sizes


def exact(values: np.ndarray | Sequence[float]) -> np.ndarray:
    """The same numbers as fractions."""
    flat = np.asarray(values, dtype=object).ravel()
    return np.array([Fraction(v) if isinstance(v, (int, Fraction)) else Fraction(float(v)) for v in flat], dtype=object).reshape(np.shape(values))


def output(net: Net, x: Sequence[Fraction | float]) -> list[Fraction]:
    """The network at one point, in real arithmetic."""
    point = [Fraction(v) for v in x]
    ((cell, columns),) = pieces(net, point, point)
    return [cell.values(column)[0] for column in columns]


@dataclass(frozen=True)
class Cell:
    """A polytope as its vertices, each with the numbers of the half-spaces that it lies on the border of. Coordinates: the inputs that are free."""

    vertices: tuple[tuple[tuple[Fraction, ...], frozenset[int]], ...]
    borders: int

    def values(self, column: Sequence[Fraction]) -> list[Fraction]:
        """constant + coefficients @ x at every vertex."""
        return [sum((c * v for c, v in zip(column[1:], x)), column[0]) for x, _ in self.vertices]

    def cut(self, column: Sequence[Fraction]) -> Cell:
        """The part where constant + coefficients @ x >= 0; it may be empty, or flat. (Motzkin's double description, one half-space.)"""
        new, signs = self.borders, self.values(column)
        kept = [(x, on | {new} if value == 0 else on) for (x, on), value in zip(self.vertices, signs) if value >= 0]
        inside = [k for k, value in enumerate(signs) if value > 0]
        outside = [k for k, value in enumerate(signs) if value < 0]
        for a, b in itertools.product(inside, outside):
            common = self.vertices[a][1] & self.vertices[b][1]
            if any(common <= on for k, (_, on) in enumerate(self.vertices) if k not in (a, b)):
                continue
            share = signs[a] / (signs[a] - signs[b])
            point = tuple(p + share * (q - p) for p, q in zip(self.vertices[a][0], self.vertices[b][0]))
            kept.append((point, common | {new}))
        return Cell(tuple(kept), new + 1)


def box_cell(lower: Sequence[Fraction], upper: Sequence[Fraction]) -> Cell:
    """A box whose inputs are all free."""
    sides = [((low, 2 * i), (high, 2 * i + 1)) for i, (low, high) in enumerate(zip(lower, upper))]
    corners = itertools.product(*sides)
    return Cell(tuple((tuple(v for v, _ in corner), frozenset(side for _, side in corner)) for corner in corners), 2 * len(sides))


Column = Sequence[Fraction]


def pieces(
    net: Net, lower: Sequence[Fraction], upper: Sequence[Fraction], limits: Sequence[Column] = ()
) -> Iterator[tuple[Cell, list[list[Fraction]]]]:
    """Every linear piece of the network over the box: the cell, and each output there as (constant, coefficients of the inputs that are free).

    `limits`: such columns that are to be at least 0, so that the region is a part of the box.
    """
    low, high = ([Fraction(v) for v in side] for side in (lower, upper))
    free = [i for i in range(net.n_in) if low[i] < high[i]]
    start = [[Fraction(0) if i in free else low[i]] + [Fraction(int(i == j)) for j in free] for i in range(net.n_in)]
    weights = [(exact(s.matrix), exact(s.bias)) if s.matrix is not None and s.bias is not None else None for s in net.steps]
    cell = box_cell([low[i] for i in free], [high[i] for i in free])
    for limit in limits:
        cell = cell.cut(limit)
    yield from _pieces(net, weights, cell, [start], [])


def _pieces(net: Net, weights: list, cell: Cell, values: list, partial: list) -> Iterator[tuple[Cell, list[list[Fraction]]]]:
    """`values` are complete so far, `partial` the first entries of the next; where the cell must be cut, both parts go on from there."""
    while len(values) <= len(net.steps):
        step = net.steps[len(values) - 1]
        source = values[step.sources[0]]
        if step.kind == "affine":
            matrix, bias = weights[len(values) - 1]
            values = [*values, [_affine(row, b, source) for row, b in zip(matrix, bias)]]
        elif step.kind == "add":
            values = [*values, [[a + b for a, b in zip(p, q)] for p, q in zip(source, values[step.sources[1]])]]
        elif step.kind == "concat":
            values = [*values, [column for s in step.sources for column in values[s]]]
        else:
            assert step.kind in ("relu", "max", "leaky", "clip", "abs", "larger"), f"{step.kind} has no linear pieces"
            count = len(step.groups) if step.kind == "max" else len(source)
            while len(partial) < count:
                best, parts = _activated(cell, step, [values[s] for s in step.sources], len(partial))
                if best is None:
                    for part in parts:
                        yield from _pieces(net, weights, part, values, partial)
                    return
                partial = [*partial, best]
            values, partial = [*values, partial], []
    yield cell, values[-1]


def _activated(cell: Cell, step: Step, sources: list, k: int) -> tuple[list[Fraction] | None, list[Cell]]:
    """Coordinate k of a step that is no affine map: its column, or None and the cell in two."""
    z = sources[0][k] if step.kind != "max" else []
    level = lambda value: [Fraction(value)] + [Fraction(0)] * (len(sources[0][0]) - 1)  # noqa: E731
    minus = lambda column: [-v for v in column]  # noqa: E731
    if step.kind != "clip":
        players = {"relu": lambda: [level(0), z], "leaky": lambda: [[Fraction(step.numbers[0]) * v for v in z], z], "abs": lambda: [minus(z), z],
                   "larger": lambda: [z, sources[1][k]], "max": lambda: [sources[0][j] for j in step.groups[k]]}[step.kind]()
        return _largest(cell, players)
    low, high = step.numbers
    best, parts = (z, []) if low == -inf else _largest(cell, [level(low), z])
    if best is None or high == inf:
        return best, parts
    best, parts = _largest(cell, [level(-high), minus(best)])
    return (None if best is None else minus(best)), parts


def _affine(row: np.ndarray, bias: Fraction, source: list) -> list[Fraction]:
    used = [(w, column) for w, column in zip(row, source) if w != 0]
    return [sum((w * column[i] for w, column in used), bias if i == 0 else Fraction(0)) for i in range(len(source[0]))]


def _largest(cell: Cell, players: list) -> tuple[list[Fraction] | None, list[Cell]]:
    """The player that is largest on all of the cell, or None and the cell in two where two of them change places."""
    best = players[0]
    for player in players[1:]:
        gap = [a - b for a, b in zip(player, best)]
        signs = cell.values(gap)
        if min(signs) < 0 < max(signs):
            return None, [cell.cut(gap), cell.cut([-g for g in gap])]
        best = player if max(signs) > 0 else best
    return best, []


@dataclass(frozen=True)
class Claim:
    """No x with lower <= x <= upper reaches one of the polytopes, each a list of rows (output coefficients, offset): coefficients @ y <= offset."""

    lower: tuple[Fraction, ...]
    upper: tuple[Fraction, ...]
    polytopes: tuple[tuple[tuple[tuple[Fraction, ...], Fraction], ...], ...]


def holds(net: Net, claim: Claim) -> bool:
    """Whether the claim is true in real arithmetic. Exact."""
    for cell, columns in pieces(net, claim.lower, claim.upper):
        for polytope in claim.polytopes:
            part = cell
            for coefficients, offset in polytope:
                row = _affine(np.array(coefficients, dtype=object), Fraction(0), columns)
                row[0] -= offset
                part = part.cut([-v for v in row])
            if part.vertices:
                return False
    return True


def smallest(
    net: Net, lower: Sequence[Fraction], upper: Sequence[Fraction], row: Sequence[Fraction],
    within: Sequence[tuple[Sequence[Fraction], Fraction]] = (), limits: Sequence[Column] = (),
) -> tuple[Fraction, tuple[Fraction, ...]]:
    """min of row @ y over the inputs of the box whose outputs satisfy `within` (coefficients @ y <= offset), exactly, and where it is attained.

    Raises:
        LookupError: none satisfies it.
    """
    best: tuple[Fraction, tuple[Fraction, ...]] | None = None
    exactly = lambda values: np.array([Fraction(v) for v in values], dtype=object)  # noqa: E731
    for cell, columns in pieces(net, lower, upper, limits):
        for coefficients, offset in within:
            limit = _affine(exactly(coefficients), Fraction(0), columns)
            limit[0] -= offset
            cell = cell.cut([-v for v in limit])
        if not cell.vertices:
            continue
        value, x = min(zip(cell.values(_affine(exactly(row), Fraction(0), columns)), (x for x, _ in cell.vertices)))
        if best is None or value < best[0]:
            best = value, x
    if best is None:
        raise LookupError("no input of the box has outputs within")
    free = iter(best[1])
    return best[0], tuple(next(free) if low < high else Fraction(low) for low, high in zip(lower, upper))
