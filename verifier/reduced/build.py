"""Graph x input region -> ReducedProblem, forwards, layer by layer.

Every value is carried as explicit columns `(1 + n + U, *shape)`: the constant, the free inputs, the unstable neurons met so far. Columns are pushed
through an affine operation like a batch of images; at an activation the rows are read, bounded (an interval over the columns first, a backward
pass over the blocks so far for what that leaves unstable), active neurons keep their columns, inactive ones lose them, and every unstable one
gets a unit column. This is CROWN with every intermediate layer bounded, and no operation needs a backward rule.

Everything piecewise linear becomes ReLUs: max(a, b) = a + relu(b - a), a clip is two ReLUs, a leaky one a ReLU and a multiple of its input;
a product of x and y around their centres is dx dy = ((dx s + dy/s)^2 - (dx s - dy/s)^2)/4, with s^2 near width(y)/width(x): two squares.

Rounding is not accounted for, with one exception: the interval of a row is wider by a roundoff of its terms, so that a neuron whose sign no float
tells stays a neuron, which splits can still decide. What the problem proves is checked by others; `MARGIN` makes them refuse little.
"""
from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import verifier.ops  # noqa: F401  (registers the rules)
from verifier.errors import OutOfMemory, OutOfTime, UnsupportedError
from verifier.graph.ir import Graph, Node
from verifier.ops.rule import AffineOp, rule_for
from verifier.reduced.bound import Rows, backward
from verifier.reduced.eliminate import eliminate
from verifier.reduced.planes import Domains, fixed_planes, planes_at, start_alpha
from verifier.reduced.problem import RELU, InputMap, ReducedProblem, ScaledBall, activation, blocks_of, stack
from verifier.spec.spec import Case

MARGIN = 1e-6
"""The least bound that counts as positive, relative to the row's absolute terms: eight roundoffs of float32; a thousandth of it in float64."""


@dataclass(frozen=True, slots=True)
class BuildConfig:
    """`memory_bytes` bounds the columns of one value and the rows of one backward pass; after `until_s` of the monotonic clock it gives up.

    `margin`: of the rows, relative to their absolute terms (`ReducedProblem.margin`).
    """

    memory_bytes: int = 4 * 2**30
    until_s: float = math.inf
    margin: float = MARGIN


def input_map(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[InputMap, ScaledBall | None]:
    """The region as center + radius * x; an input with one value is fixed at the nearest representable number.

    Sound: the radius is rounded up so that center - radius <= lower and upper <= center + radius. However thin an interval is, its input stays
    free: between two neighbouring floats lie two inputs.
    """
    number = np.float64 if dtype == torch.float64 else np.float32
    center = ((case.lower + case.upper) / 2).astype(number)
    exact = center.astype(np.float64)
    radius = np.nextafter(np.maximum(case.upper - exact, exact - case.lower).astype(number), number(np.inf))
    free = np.nonzero(case.upper > case.lower)[0]
    tensor = lambda value: torch.as_tensor(value, device=device)  # noqa: E731
    inputs = InputMap(tensor(center), tensor(radius[free]), tensor(free))
    if case.ball is None:
        return inputs, None
    at = tensor(((case.ball.center[free] - exact[free]) / radius[free]).astype(number))
    return inputs, ScaledBall(at, inputs.radius, case.ball.radius, case.ball.norm)


class _Builder:
    """The reduced problem as far as it is built; grows by a block at each activation. Values are columns `(1 + n + U, *shape)`."""

    def __init__(self, inputs: InputMap, ball: ScaledBall | None, config: BuildConfig) -> None:
        self.config = config
        n, like = len(inputs.free), inputs.radius
        none = like.new_zeros(0)
        self.problem = ReducedProblem(
            A=like.new_zeros(0, n), W=like.new_zeros(0, 0), b=none, A_o=like.new_zeros(0, n), W_o=like.new_zeros(0, 0), b_o=none,
            lower=none, upper=none, blocks=(), polytope=none.long(), margin=none, neuron=like.new_zeros(0, 2).long(),
            split=none.to(torch.int8), inputs=inputs, ball=ball,
        )
        self.kinds: list[str] = []
        self.sizes: list[int] = []
        self.calls: Counter[int] = Counter()

    def grown(self, columns: Tensor) -> Tensor:
        """`columns` with a zero column for every neuron met since they were computed."""
        missing = 1 + self.problem.n + self.problem.unstable - len(columns)
        return columns if missing == 0 else torch.cat([columns, columns.new_zeros(missing, *columns.shape[1:])])

    def combined(self, *parts: tuple[float | Tensor, Tensor], shift: float | Tensor = 0.0) -> Tensor:
        """sum of factor * value, plus a constant; the factors are numbers or broadcast to the values' shape."""
        columns = sum(factor * self.grown(value) for factor, value in parts)
        columns[0] += shift
        return columns

    def room(self, shape: tuple[int, ...]) -> None:
        size = self.problem.b.element_size() * (1 + self.problem.n + self.problem.unstable) * int(np.prod(shape))
        if size > self.config.memory_bytes:
            budget = self.config.memory_bytes / 2**30
            raise OutOfMemory(f"The columns of a value of shape {shape} take {size / 2**30:.1f} GiB, the budget is {budget:.1f}: raise memory_bytes.")

    def bounds(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds `(M,)` of a flat value's rows: interval, then backward where that leaves the sign open; wider by a roundoff of the row's terms."""
        problem, n = self.problem, self.problem.n
        center, reach = flat[0].clone(), flat.new_ones(n) @ flat[1:1 + n].abs()  # ten times faster than a norm over rows
        if problem.unstable:
            low, high = self.activation_range()
            mid, half = (low + high) / 2, (high - low) / 2
            neurons = flat[1 + n:]
            center += mid @ neurons
            for chunk in torch.arange(flat.shape[1], device=flat.device).split(max(1, 2**24 // max(1, len(neurons)))):
                reach[chunk] += half @ neurons[:, chunk[0]:chunk[-1] + 1].abs()
        roundoff = torch.finfo(flat.dtype).eps * (flat[0].abs() + center.abs() + reach)
        lower, upper = center - reach - roundoff, center + reach + roundoff
        open_rows = ((lower < 0) & (upper > 0)).nonzero().squeeze(-1)
        if problem.unstable and len(open_rows):
            self._backward(flat, open_rows, lower, upper, roundoff)
        return lower, torch.maximum(lower, upper)

    def activation_range(self) -> tuple[Tensor, Tensor]:
        low, high = self.problem.lower.clone(), self.problem.upper.clone()
        for block in self.problem.blocks:
            at = slice(block.start, block.end)
            if block.kind == "square":
                ends = torch.stack([low[at].square(), high[at].square()])
                inside = (low[at] < 0) & (high[at] > 0)
                low[at], high[at] = torch.where(inside, 0.0, ends.amin(0)), ends.amax(0)
            else:
                low[at], high[at] = activation(block.kind, low[at]), activation(block.kind, high[at])
        return low, high

    def _backward(self, flat: Tensor, open_rows: Tensor, lower: Tensor, upper: Tensor, roundoff: Tensor) -> None:
        """Improves `lower` and `upper` in place at `open_rows`; upper bounds only where the lower one leaves the sign open."""
        problem, n = self.problem, self.problem.n
        single = stack([problem])
        alpha = start_alpha(single).unsqueeze(1)
        cuts = (None, None) if single.is_relu else (single.lower.unsqueeze(1), single.upper.unsqueeze(1))
        domains = Domains(torch.zeros_like(alpha, dtype=torch.int8), *cuts)
        fixed = fixed_planes(single, domains)
        size = max(1, min(4096, self.config.memory_bytes // (32 * (problem.unstable + n + 1))))

        def bound(rows: Tensor, sign: float) -> Tensor:
            picked = flat[:, rows].T * sign
            planes = planes_at(single, domains, fixed, alpha)
            found = backward(single, Rows(picked[None, :, 1 + n:], picked[None, :, 1:1 + n], picked[None, :, 0]), domains, planes, None)
            return found.lower[0] - roundoff[rows]

        for chunk in open_rows.split(size):
            if time.monotonic() > self.config.until_s:
                return
            lower[chunk] = torch.maximum(lower[chunk], bound(chunk, 1.0))
            still = chunk[lower[chunk] < 0]
            if len(still):
                upper[still] = torch.minimum(upper[still], -bound(still, -1.0))

    def activate(self, columns: Tensor, kind: str, node_index: int) -> Tensor:
        """s(value): stable ReLUs are substituted, everything else becomes a neuron of a new block."""
        shape = columns.shape[1:]
        flat = _flat(self.grown(columns))
        lower, upper = self.bounds(flat)
        keep = lower >= 0 if kind == RELU else torch.zeros_like(lower, dtype=torch.bool)
        open_rows = ~(keep | (upper <= 0)) if kind == RELU else torch.ones_like(keep)  # NaN bounds stay open
        index = open_rows.nonzero().squeeze(-1)
        count = len(index)
        self.room((len(lower),))
        result = flat.new_zeros(len(flat) + count, flat.shape[1])
        torch.mul(flat, keep, out=result[:len(flat)])
        result[torch.arange(len(flat), len(flat) + count, device=flat.device), index] = 1
        if count:
            neuron = torch.stack([torch.full_like(index, node_index), index + self.calls[node_index] * flat.shape[1]], 1)
            self._append(flat[:, index].T, (lower[index], upper[index]), kind, neuron)
        self.calls[node_index] += 1
        return result.view(-1, *shape)

    def _append(self, rows: Tensor, bounds: tuple[Tensor, Tensor], kind: str, neuron: Tensor) -> None:
        p, n, count, (lower, upper) = self.problem, self.problem.n, len(rows), bounds
        W = p.W.new_zeros(p.unstable + count, p.unstable + count)
        W[:p.unstable, :p.unstable], W[p.unstable:, :p.unstable] = p.W, rows[:, 1 + n:]
        self.sizes.append(count)
        self.kinds.append(kind)
        self.problem = replace(
            p, A=torch.cat([p.A, rows[:, 1:1 + n]]), W=W, b=torch.cat([p.b, rows[:, 0]]), lower=torch.cat([p.lower, lower]),
            upper=torch.cat([p.upper, upper]), neuron=torch.cat([p.neuron, neuron]), blocks=blocks_of(self.sizes, self.kinds, W),
            split=torch.cat([p.split, p.split.new_zeros(count)]),
        )

    def finish(self, value: Tensor, source: Tensor, case: Case) -> ReducedProblem:
        """Adds the specification rows output @ y + input @ x - offset of every polytope."""
        value, source, n = _flat(self.grown(value)), _flat(self.grown(source)), self.problem.n
        to = lambda array: torch.as_tensor(array, dtype=value.dtype, device=value.device)  # noqa: E731
        parts, offsets = [value.new_zeros(0, len(value))], [to(polytope.offset) for polytope in case.polytopes]
        for polytope, offset in zip(case.polytopes, offsets):
            rows = to(polytope.output) @ value.T
            if polytope.input is not None:
                rows = rows + to(polytope.input) @ source.T
            rows[:, 0] -= offset
            parts.append(rows)
        rows, polytope = torch.cat(parts), torch.cat([torch.full((len(part),), k, device=value.device) for k, part in enumerate(parts, -1)])
        own = replace(self.problem, A_o=rows[:, 1:1 + n].clone(), W_o=rows[:, 1 + n:].clone(), b_o=rows[:, 0].clone(), polytope=polytope)
        size = own.row_size() + torch.cat([offset.abs() for offset in offsets] or [rows[:, 0]])
        return replace(own, margin=self.config.margin * size * (1e-3 if rows.dtype == torch.float64 else 1.0))


def _flat(columns: Tensor) -> Tensor:
    """Columns `(C, *shape)` as `(C, M)`, a value without axes as one number."""
    return columns.reshape(len(columns), -1)


def build(graph: Graph, case: Case, config: BuildConfig = BuildConfig()) -> ReducedProblem:
    """The reduced problem of a graph (constants are tensors of one device and floating type; float64 where it has none) over a case's region.

    Raises:
        UnsupportedError: an operation that is neither affine nor reducible to the kinds of neurons.
        OutOfMemory: the columns of one value exceed the budget.
        OutOfTime: `config.until_s` came first.
    """
    like = next((t for node in graph.nodes for t in node.constants.values() if t.is_floating_point()), torch.zeros(0, dtype=torch.float64))
    inputs, ball = input_map(case, like.device, like.dtype)
    builder = _Builder(inputs, ball, config)
    start = like.new_zeros(1 + len(inputs.free), len(inputs.center))
    start[0] = inputs.center
    start[torch.arange(1, len(start), device=like.device), inputs.free] = inputs.radius
    source = start.view(-1, *graph.input_shape)
    values = {graph.input.name: source}
    last_use = {name: k for k, node in enumerate(graph.nodes) for name in node.inputs}
    keep = {graph.output, graph.input.name}
    for k, node in enumerate(graph.nodes):
        if node.op == "Input":
            continue
        if time.monotonic() > config.until_s:
            raise OutOfTime(f"The time was over at node {node.name!r}, before the network was reduced.")
        builder.room(node.shape)
        values[node.name] = _apply(builder, node, k, [builder.grown(values[name]) for name in node.inputs])
        for name in node.inputs:
            if last_use[name] == k and name not in keep:
                values.pop(name, None)
    return eliminate(builder.finish(values[graph.output], source, case))


def _apply(builder: _Builder, node: Node, index: int, inputs: list[Tensor]) -> Tensor:
    rule = rule_for(node)
    if isinstance(rule, AffineOp):
        return _affine(rule, node, inputs)
    if node.op in ("Relu", "Sigmoid", "Tanh"):
        return builder.activate(inputs[0], node.op.lower(), index)
    special = {"LeakyRelu": _leaky, "Clip": _clip, "MaxPool": _max_pool, "Mul": _product}.get(node.op)
    if special is None:
        raise UnsupportedError(f"Node {node.name!r}: the reduced problem has no neurons for operation {node.op!r}; add a case in reduced/build.py.")
    return special(builder, node, index, inputs)


def _affine(rule: AffineOp, node: Node, inputs: list[Tensor]) -> Tensor:
    """The linear part pushes the columns, the whole operation the constant."""
    columns = rule.linear(node, *inputs)
    columns[0] = rule.forward(node, *(value[:1] for value in inputs))[0]
    return columns


def _leaky(builder: _Builder, node: Node, index: int, inputs: list[Tensor]) -> Tensor:
    """slope z + (1 - slope) relu(z)."""
    slope = node.attributes["slope"]
    return builder.combined((slope, inputs[0]), (1 - slope, builder.activate(inputs[0], RELU, index)))


def _clip(builder: _Builder, node: Node, index: int, inputs: list[Tensor]) -> Tensor:
    """lower + relu(z - lower) - relu(z - upper), either end possibly infinite."""
    low, high, bounded = node.attributes["lower"], node.attributes["upper"], inputs[0]
    if np.isfinite(low):
        bounded = builder.combined((1.0, builder.activate(builder.combined((1.0, bounded), shift=-low), RELU, index)), shift=low)
    if np.isfinite(high):
        over = builder.activate(builder.combined((1.0, bounded), shift=-high), RELU, index)
        bounded = builder.combined((1.0, bounded), (-1.0, over))
    return bounded


def _max_pool(builder: _Builder, node: Node, index: int, inputs: list[Tensor]) -> Tensor:
    """A tournament of max(a, b) = a + relu(b - a) over each window."""
    window = window_index(node, tuple(inputs[0].shape[1:])).to(inputs[0].device)
    players = [inputs[0].flatten(1)[:, row] for row in window]
    while len(players) > 1:
        winners = []
        for a, b in zip(players[::2], players[1::2]):
            gain = builder.activate(builder.combined((1.0, b), (-1.0, a)), RELU, index)
            winners.append(builder.combined((1.0, a), (1.0, gain)))
        players = winners + players[len(players) - len(players) % 2:]
    return builder.grown(players[0]).view(-1, *node.shape)


def window_index(node: Node, shape: tuple[int, ...]) -> Tensor:
    """Flat input indices `(window size, outputs)` of a pooling node; padding repeats an index of the same window."""
    spatial = len(node.attributes["kernel_shape"])
    kernel, strides = node.attributes["kernel_shape"], node.attributes.get("strides", (1,) * spatial)
    dilations, pads = node.attributes.get("dilations", (1,) * spatial), node.attributes.get("pads", (0,) * (2 * spatial))
    index = torch.arange(int(np.prod(shape))).view(shape)
    for axis in range(spatial):
        reach, dim = dilations[axis] * (kernel[axis] - 1) + 1, len(shape) - spatial + axis
        length = (node.shape[dim] - 1) * strides[axis] + reach
        begin = index.new_full((*index.shape[:dim], pads[axis], *index.shape[dim + 1:]), -1)
        end = max(0, length - pads[axis] - shape[dim])
        index = torch.cat([begin, index, index.new_full((*index.shape[:dim], end, *index.shape[dim + 1:]), -1)], dim)
        index = index.unfold(dim, reach, strides[axis])[..., ::dilations[axis]].narrow(dim, 0, node.shape[dim])
    flat = index.reshape(int(np.prod(node.shape)), -1).T
    return torch.where(flat < 0, flat.amax(0), flat)


def _product(builder: _Builder, node: Node, index: int, inputs: list[Tensor]) -> Tensor:
    """x y = x0 y + y0 x - x0 y0 + dx dy around the centres, and dx dy by two squares: no looser than McCormick's planes at equal widths."""
    x, y = (_broadcast(value, node.shape) for value in inputs)
    (x0, wx), (y0, wy) = (_center_and_width(builder, value) for value in (x, y))
    narrow = torch.finfo(wx.dtype).tiny  # of a factor that is a constant
    scale = torch.exp2(((wy.clamp(min=narrow) / wx.clamp(min=narrow)).log2() / 2).round())  # a power of two: a checker can invert it exactly
    dx, dy = builder.combined((1.0, x), shift=-x0), builder.combined((1.0, y), shift=-y0)
    plus = builder.activate(builder.combined((scale, dx), (1 / scale, dy)), "square", index)
    minus = builder.activate(builder.combined((scale, dx), (-1 / scale, dy)), "square", index)
    return builder.combined((x0, y), (y0, x), (0.25, plus), (-0.25, minus), shift=-x0 * y0)


def _center_and_width(builder: _Builder, columns: Tensor) -> tuple[Tensor, Tensor]:
    lower, upper = (t.view(columns.shape[1:]) for t in builder.bounds(_flat(builder.grown(columns))))
    return (lower + upper) / 2, upper - lower


def _broadcast(columns: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Expanded to `shape` as an elementwise operation does, ones inserted behind the batch."""
    ones = (1,) * (len(shape) + 1 - columns.dim())
    return columns.view(len(columns), *ones, *columns.shape[1:]).expand(-1, *shape)
