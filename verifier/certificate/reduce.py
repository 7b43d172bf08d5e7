"""Graph x input box -> Problem, forwards: what docs/certificate.md calls the reduced problem, in rounded or exact arithmetic.

Every value is carried as columns over (1, symbols), the symbols being the free inputs and the neurons met so far, with an error for each coordinate.
Under a runtime's arithmetic the rounding errors of a layer's active neurons become symbols too, where they are few: later layers see how they cancel.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from verifier.certificate.affine import Affine, Fused, align, is_affine, windows
from verifier.certificate.arithmetic import FLOAT32, LARGEST, LONGEST, Arithmetic, Exact, Runtime
from verifier.certificate.bound import RELU, Ball, Problem, Rows, activation, bound_both_sides, center_and_radius, widened
from verifier.certificate.threads import spread
from verifier.errors import UnsupportedError
from verifier.graph.ir import Graph, Node

FIXED, FEW_INPUTS = 1e-12, 64
"""Inputs whose interval is thinner than this, relative to their size, are constants with an error. Those that are as thin as a number and the

nearest one of the network's type (up to 4 u) are symbols up to so many, else constants with an error too: some networks have hundreds.
"""
LAYER_ERRORS, LARGE_LAYER_ERRORS = 2048, 6000
"""Most active neurons of one layer whose errors become symbols: more where there are few inputs, so that the columns stay few."""
NOTICEABLE = 2.0**-13
"""Share of the intervals' widths that a layer's errors must reach to become symbols."""
MOST_EXACT = 100_000
"""Most weights of a network in rationals."""
MOST = 2**30
"""Most numbers in the columns of one value: 8 GiB."""


class Value(NamedTuple):
    """A value over the box: `columns (1 + symbols, *shape)`, off by at most `error`; `size` >= its absolute terms and `most` >= |value|.

    The last three are `(*shape)` each.
    """

    columns: np.ndarray
    error: np.ndarray
    size: np.ndarray
    most: np.ndarray

    def view(self, *shape: int) -> Value:
        return Value(self.columns.reshape(len(self.columns), *shape), *(part.reshape(shape) for part in self[1:]))


@dataclass(frozen=True, slots=True)
class Statement:
    """What is asked: the box `lower, upper (n_in,)`, rows `output (S, n_out)`, `input (S, n_in)`, `offset (S,)`, and names of neurons.

    `names` gives (node, number) a position in the certificate's table; neurons at the positions `kept` stay in the problem whatever their bounds.
    `ball`: the inputs lie in it too, {x : ||x - center||_norm <= radius}, norm 1 or 2.
    """

    lower: np.ndarray
    upper: np.ndarray
    output: np.ndarray
    input: np.ndarray
    offset: np.ndarray
    names: Mapping[tuple[str, int], int]
    kept: frozenset[int]
    ball: tuple[np.ndarray, float, int] | None = None


def reduce(graph: Graph, statement: Statement, arithmetic: Arithmetic, runtime: Runtime | None) -> Problem:
    """The reduced problem of a graph (numpy constants) over the statement's box, as a `runtime` computes it or, for None, over the reals.

    Raises:
        UnsupportedError: an operation is not covered, memory would be exhausted, or the runtime's numbers may overflow.
    """
    if graph.computed:
        raise UnsupportedError(f"Node {graph.computed[0]!r} computes a constant in floating point, which runtimes may round otherwise: fold it.")
    if isinstance(arithmetic, Exact) and (weights := sum(c.size for node in graph.nodes for c in node.constants.values())) > MOST_EXACT:
        raise UnsupportedError(f"The network has {weights:,} weights; rationals are for up to {MOST_EXACT:,}: check it without --exact.")
    builder = _Builder(statement, arithmetic, runtime)
    builder.check(builder.source, graph.input)
    values = {graph.input.name: builder.source.view(*graph.input_shape)}
    last = {name: k for k, node in enumerate(graph.nodes) for name in node.inputs}
    for k, node in enumerate(graph.nodes[1:], 1):
        values[node.name] = builder.apply(node, [builder.grown(values[name]) for name in node.inputs])
        for name in node.inputs:
            if last[name] == k and name not in (graph.output, graph.input.name):
                values.pop(name, None)
    return builder.finish(values[graph.output].view(-1), values[graph.input.name].view(-1))


def free_inputs(statement: Statement, runtime: Runtime | None) -> np.ndarray:
    """Which inputs are symbols, `(n_in,)`. With a ball no thin one is: what a runtime receives for it may lie outside of the ball."""
    width, size = statement.upper - statement.lower, np.maximum(abs(statement.lower), abs(statement.upper))
    free, thin = width > FIXED * size, width <= 4 * (runtime or FLOAT32).u * size
    return free & ~thin if statement.ball is not None or (free & thin).sum() > FEW_INPUTS else free


class _Builder:
    """The problem as far as it is built. `low, high`: the symbols' ranges; `is_neuron`: which of them are outputs of neurons, not inputs.

    `largest`: a bound of all values up to now.
    """

    def __init__(self, statement: Statement, arithmetic: Arithmetic, runtime: Runtime | None) -> None:
        self.statement, self.arithmetic, self.runtime, self.calls = statement, arithmetic, runtime, Counter()
        self.fused = None if runtime is None else Fused(runtime, arithmetic)
        lower, upper = arithmetic.array(statement.lower), arithmetic.array(statement.upper)
        center, radius = center_and_radius(arithmetic, lower, upper)
        free = free_inputs(statement, runtime)
        index = np.nonzero(free)[0]
        columns = np.zeros((1 + len(index), len(center)), arithmetic.dtype)
        columns[0], columns[np.arange(1, len(columns)), index] = center, radius[index]
        size = arithmetic.up(abs(center) + radius)
        self.source, self.largest = Value(columns, radius * ~free, size, size), size.max(initial=0)
        self.low, self.high = arithmetic.array(-np.ones(len(index))), arithmetic.array(np.ones(len(index)))
        self.is_neuron = np.zeros(len(index), bool)
        none = np.zeros(0, arithmetic.dtype)
        A, W = np.zeros((0, len(index)), arithmetic.dtype), np.zeros((0, 0), arithmetic.dtype)
        rows = Rows(W, A, none, none)
        scale, ball = (index, center[index], radius[index]), self._ball(center[index], radius[index], index)
        region = statement.lower, statement.upper
        self.problem = Problem(arithmetic, A, W, none, none, none, none, (), np.zeros(0, int), rows, *scale, region, ball)

    def _ball(self, center: np.ndarray, radius: np.ndarray, index: np.ndarray) -> Ball | None:
        """The statement's ball on the scale of the symbols: what is no symbol is left out, which makes the ball no smaller."""
        if self.statement.ball is None:
            return None
        middle, size, norm = self.statement.ball
        reach = self.arithmetic.up(self.arithmetic.array(size) / radius)
        return Ball((self.arithmetic.array(middle)[index] - center) / radius, reach, norm)

    def grown(self, value: Value) -> Value:
        """`value` with zero columns for the symbols that are new to it."""
        missing = 1 + len(self.low) - len(value.columns)
        more = np.zeros((missing, *value.columns.shape[1:]), value.columns.dtype)
        return value._replace(columns=np.concatenate([value.columns, more])) if missing else value

    def apply(self, node: Node, inputs: list[Value]) -> Value:
        """The value of one node, with the runtime's error."""
        if len(inputs[0].columns) * max(1, int(np.prod(node.shape))) > MOST:
            raise UnsupportedError(f"Node {node.name!r} needs more than {8 * MOST / 2**30:.0f} GiB here: check the certificate on a larger machine.")
        if not is_affine(node) and node.op not in _NONLINEAR:
            raise UnsupportedError(f"Node {node.name!r}: the checker does not cover the operation {node.op!r}.")
        value = self._affine(Affine(node, self.arithmetic), inputs) if is_affine(node) else _NONLINEAR[node.op](self, node, inputs)
        self.check(value, node)
        self.largest = max(self.largest, value.most.max(initial=0))
        return value

    def check(self, value: Value, node: Node, times: int = 1) -> None:
        """Refuses values that, `times` as large, may not be numbers of the runtime, or are too large for the accounting of underflow."""
        limit = min(LARGEST, self.runtime.largest if self.runtime else LARGEST)
        if not np.all(times * value.most < limit):
            raise UnsupportedError(f"Node {node.name!r}: its values may exceed {limit:.6g}, which the checker does not follow.")

    def _affine(self, affine: Affine, inputs: list[Value]) -> Value:
        node, shift, terms, k = affine.node, affine.shift(), affine.shift_terms(), affine.products(inputs[0].error.shape)
        if k > LONGEST:
            raise UnsupportedError(f"Node {node.name!r} sums {k:,} products: the checker follows up to {LONGEST:,}.")
        columns = affine.linear([value.columns for value in inputs])
        if np.any(shift != 0):
            columns[0] += shift  # no view of the input: operations that only move values have no shift
        error, size, most = affine.absolute([np.stack(value[1:]) for value in inputs])
        if k == 0:
            if self.fused is not None:
                self.fused.moved(affine)
            return Value(columns, error, size + terms, most + terms)
        value = Value(columns, *(self.arithmetic.up(part) for part in (error, size + terms, most + terms)))
        read = self.arithmetic.array(2.0**-48 if affine.is_rounded() else 0.0)
        value = value._replace(error=self.arithmetic.up(error + self.arithmetic.room(k + EXTRA_TERMS, size) + read * most))
        if self.runtime and node.op in ("AveragePool", "ReduceMean"):
            self.check(value, node, k)
        there = affine.terms([(own.most != 0) * 1.0 for own in inputs])
        value = self.computed(value, there, value.most)
        more = None if self.fused is None else self.fused.room(affine, [own.most[None] for own in inputs], terms, self.largest)
        return value if more is None else self.off(value, np.broadcast_to(more, (1, *value.most.shape))[0])

    def computed(self, value: Value, k: int | np.ndarray, terms: np.ndarray) -> Value:
        """`value` off by what the runtime rounds in sums of k products, of absolute values `terms` in all."""
        return value if self.runtime is None else self.off(value, self.runtime.room(k, terms, self.arithmetic))

    def off(self, value: Value, room: np.ndarray | float) -> Value:
        """`value` off by `room` more."""
        return value._replace(error=self.arithmetic.up(value.error + room), most=self.arithmetic.up(value.most + room))

    def combined(self, *parts: tuple[np.ndarray | float, Value], shift: np.ndarray | float = 0.0) -> Value:
        """sum of factor * value + shift, exactly up to this arithmetic's rounding; factors broadcast to the values' shape."""
        factors, values = [self.arithmetic.array(f) for f, _ in parts], [self.grown(v) for _, v in parts]
        shift = self.arithmetic.array(shift)
        columns = values[0].columns * factors[0]
        for f, v in zip(factors[1:], values[1:]):
            columns += v.columns if f.ndim == 0 and f == 1 else f * v.columns
        columns[0] += shift
        error, size, most = (sum(abs(f) * v[k] for f, v in zip(factors, values)) for k in (1, 2, 3))
        size, most = self.arithmetic.up(size + abs(shift)), self.arithmetic.up(most + abs(shift))
        return Value(columns, self.arithmetic.up(error + self.arithmetic.room(len(parts) + EXTRA_TERMS, size)), size, most)

    def bounds(self, value: Value) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bounds of a flat value's coordinates, and the sums of their absolute terms.

        An interval over the symbols, then the proof rule where that leaves the sign open.
        """
        flat = self.grown(value).columns
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        both, step = np.stack([half, abs(middle)]), max(1, 2**19 // len(flat))
        parts = spread(lambda k: (both @ abs(flat[1:, k:k + step]), middle @ flat[1:, k:k + step]), range(0, max(1, flat.shape[1]), step))
        reach, center = (np.concatenate(part, -1) for part in zip(*parts))
        center, size = flat[0] + center, self.arithmetic.up(abs(flat[0]) + reach.sum(0))
        room = self.arithmetic.up(self.arithmetic.room(2 * len(flat) + EXTRA_TERMS, size) + value.error)
        lower, upper = center - reach[0] - room, center + reach[0] + room
        if (ball := self.problem.ball) is not None:
            own = flat[1:1 + len(ball.center)].T
            inward = [np.fmax(ball.least(sign * own, self.arithmetic) + abs(own).sum(1), 0) for sign in (1, -1)]
            lower, upper = lower + inward[0], upper - inward[1]
        lower, upper = np.maximum(lower, -value.most), np.minimum(upper, value.most)
        open_rows = np.nonzero(~((lower >= 0) | (upper <= 0)))[0]
        if len(self.problem.b) and len(open_rows):
            bound_both_sides(self.problem, self._rows(flat, open_rows, value.error), open_rows, lower, upper)
        return lower, upper, size

    def _rows(self, flat: np.ndarray, index: np.ndarray, error: np.ndarray) -> Rows:
        """The rows at `index` of columns `(1 + symbols, K)`."""
        neurons = self.is_neuron[:len(flat) - 1]
        w, a = (flat[np.ix_(np.nonzero(which)[0] + 1, index)].T for which in (neurons, ~neurons))
        return Rows(w, a, flat[0, index], error[index])

    def activate(self, value: Value, kind: str, node: Node) -> Value:
        """s(value): ReLUs of known sign are substituted, everything else becomes a neuron.

        A ReLU that reaches no higher than its error is nothing but that error.
        """
        self.check(value, node)
        shape, value = value.error.shape, self.grown(value).view(-1)
        lower, upper, size = self.bounds(value)
        number = np.arange(len(lower)) + self.calls[node.name] * len(lower)
        self.calls[node.name] += 1
        position = np.array([self.statement.names.get((node.name, i), -1) for i in number.tolist()], int)
        active = (lower >= 0) & (kind == RELU)
        dead = (upper <= 2 * value.error) & (kind == RELU)
        stays = ~(active | dead) | np.isin(position, list(self.statement.kept))
        active = active & ~stays
        index = np.nonzero(stays)[0]
        error = np.where(active, value.error, np.where(stays, 0, np.maximum(upper, 0)))
        few = self.runtime and active.sum() <= (LARGE_LAYER_ERRORS if len(self.problem.free) <= FEW_INPUTS else LAYER_ERRORS)
        followed = few and value.error.sum() > NOTICEABLE * (upper - lower).sum()
        own, before = np.nonzero(active & (error > 0))[0] if followed else index[:0], len(value.columns)
        columns = np.empty((before + len(own) + len(index), len(lower)), value.columns.dtype)
        np.multiply(value.columns, active, out=columns[:before])
        columns[before:] = 0
        columns[np.arange(before, before + len(own)), own] = error[own]
        columns[np.arange(before + len(own), len(columns)), index] = 1
        size[own] = self.arithmetic.up(size[own] + error[own])
        error[own] = 0  # of these alone: a dead one's error is no symbol
        rows = self._rows(value.columns, index, value.error)
        self.problem = self.problem.appended(rows, lower[index], upper[index], kind, position[index])
        self._symbols(self.arithmetic.array(-np.ones(len(own))), self.arithmetic.array(np.ones(len(own))), False)
        low, high = activation(kind, lower, upper)
        self._symbols(low[index], high[index], True)
        most = np.maximum(abs(low), abs(high))
        return Value(columns, error, np.where(active, size, most), most).view(*shape)

    def _symbols(self, low: np.ndarray, high: np.ndarray, neurons: bool) -> None:
        self.low, self.high = np.concatenate([self.low, low]), np.concatenate([self.high, high])
        self.is_neuron = np.concatenate([self.is_neuron, np.full(len(low), neurons)])

    def finish(self, value: Value, source: Value) -> Problem:
        """The problem with the statement's rows output @ y + input @ x - offset."""
        value, s, array = self.grown(value), self.statement, self.arithmetic.array
        output, given, offset = array(s.output), array(s.input), array(s.offset)
        rows = output @ value.columns.T
        rows[:, :len(source.columns)] += given @ source.columns.T if s.input.any() else 0
        rows[:, 0] = rows[:, 0] - offset
        size = abs(output) @ value.size + abs(given) @ source.size + abs(offset)
        # Decimals of the property, as floats: a small offset has fewer digits.
        stated = (abs(output) @ value.most + abs(given) @ source.most + abs(offset)) * array(2.0**-52) + array(2.0**-1074)
        terms = output.shape[1] + given.shape[1] + EXTRA_TERMS
        slack = self.arithmetic.up(stated + abs(output) @ value.error + abs(given) @ source.error + self.arithmetic.room(terms, size))
        w, a = (rows[:, 1:][:, which] for which in (self.is_neuron, ~self.is_neuron))
        return replace(self.problem, A=widened(self.problem.A, a.shape[1]), rows=Rows(w, a, rows[:, 0], slack))


EXTRA_TERMS = 8
"""Terms beyond the products of a sum: the shift, a factor's own rounding."""


def _leaky(builder: _Builder, node: Node, inputs: list[Value]) -> Value:
    slope = builder.arithmetic.array(node.attributes["slope"])
    value = builder.combined((slope, inputs[0]), (1 - slope, builder.activate(inputs[0], RELU, node)))
    return builder.computed(value, 1, abs(slope) * inputs[0].most)


def _clip(builder: _Builder, node: Node, inputs: list[Value]) -> Value:
    low, high, bounded = node.attributes["lower"], node.attributes["upper"], inputs[0]
    if np.isfinite(low):
        bounded = builder.combined((1.0, builder.activate(builder.combined((1.0, bounded), shift=-low), RELU, node)), shift=low)
    if np.isfinite(high):
        bounded = builder.combined((1.0, bounded), (-1.0, builder.activate(builder.combined((1.0, bounded), shift=-high), RELU, node)))
    return bounded


def _max_pool(builder: _Builder, node: Node, inputs: list[Value]) -> Value:
    kernel, shape = tuple(node.attributes["kernel_shape"]), inputs[0].error.shape
    pads = tuple(node.attributes.get("pads") or (0,) * len(kernel))[:len(kernel)]
    index = windows(np.arange(np.prod(shape)).reshape(shape), node, kernel, pads, -1).reshape(*node.shape[:2], -1, int(np.prod(node.shape[2:])))
    index = np.moveaxis(index, 2, 0).reshape(index.shape[2], -1)
    if not np.all(index.max(0) >= 0):
        raise UnsupportedError(f"Node {node.name!r} has a window that lies in the padding alone: its maximum is not a number.")
    index = np.where(index < 0, index.max(0), index)
    flat = inputs[0].view(-1)
    players, most = [Value(flat.columns[:, row], *(part[row] for part in flat[1:])) for row in index], flat.most[index].max(0)
    while len(players) > 1:
        pairs = zip(players[::2], players[1::2])
        won = [builder.combined((1.0, a), (1.0, builder.activate(builder.combined((1.0, b), (-1.0, a)), RELU, node))) for a, b in pairs]
        players = won + players[len(players) - len(players) % 2:]
    return builder.grown(players[0])._replace(most=most).view(*node.shape)


def _product(builder: _Builder, node: Node, inputs: list[Value]) -> Value:
    """x0 y + y0 (x - x0) + ((dx s + dy/s)^2 - (dx s - dy/s)^2)/4: right for any floats x0, y0 and any power of two s."""
    wide = lambda part: np.broadcast_to(align(part, len(node.shape)), (len(part), *node.shape))  # noqa: E731
    x, y = (Value(wide(value.columns), *wide(np.stack(value[1:]))) for value in inputs)
    sides = [[part.reshape(node.shape).astype(np.float64) for part in builder.bounds(value.view(-1))[:2]] for value in (x, y)]
    (x0, y0), (wide_x, wide_y) = ([(u + l) / 2 for l, u in sides], [np.maximum(u - l, 1e-12) for l, u in sides])
    scale = np.exp2(np.rint(np.log2(wide_y / wide_x) / 2))  # any power of two is right; this one is the prover's
    dx, dy = builder.combined((1.0, x), shift=-x0), builder.combined((1.0, y), shift=-y0)
    plus = builder.activate(builder.combined((scale, dx), (1 / scale, dy)), "square", node)
    minus = builder.activate(builder.combined((scale, dx), (-1 / scale, dy)), "square", node)
    corner = builder.combined((x0, y), (y0, dx))
    value = builder.combined((1.0, corner), (0.25, plus), (-0.25, minus))
    if builder.fused is not None:
        builder.fused.multiplied(node, [x.most[None], y.most[None]])
    return builder.computed(value, 1, x.most * y.most)


def _smooth(builder: _Builder, node: Node, inputs: list[Value]) -> Value:
    if isinstance(builder.arithmetic, Exact):
        raise UnsupportedError(f"Node {node.name!r} is a {node.op}: exact mode knows rationals only, check without it.")
    value = builder.activate(inputs[0], node.op.lower(), node)
    if builder.runtime is None:
        return value
    return builder.off(value, builder.runtime.transcendental)


_NONLINEAR = {
    "Relu": lambda builder, node, inputs: builder.activate(inputs[0], RELU, node), "LeakyRelu": _leaky, "Clip": _clip, "MaxPool": _max_pool,
    "Mul": _product, "Sigmoid": _smooth, "Tanh": _smooth,
}
