"""CROWN: rows carried backward through planes, with intermediate bounds by a strategy of the caller's choice.

Ref: Zhang et al., arXiv:1811.00866; CROWN-IBP: Zhang et al., arXiv:1906.06316.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from verifier.bounds.backward import AnyRelaxation, FixedPlanes, lower_bounds
from verifier.bounds.chunks import Chunk, chunks_of, frame_of, row_bytes, starts_windows, unit_rows, with_memory
from verifier.bounds.engine import BoundRequest, BoundResult, Region
from verifier.bounds.ibp import output_bounds, signed_rows, split_sides
from verifier.bounds.network import Network, prepare
from verifier.bounds.rows import Frame, Rows
from verifier.box import Box
from verifier.ops import NonlinearOp

DEFAULT_MEMORY_BYTES = 2**28
# On CPUs larger chunks only leave the caches (measured: 2**25 takes 0.8 times as long as 2**28 on small residual networks).
_CACHE_BYTES = 2**25
# Coefficients alive at once in a pass: a node's, its inputs', the positive part and a pending sum.
_COPIES = 4.0

# Lower bounds of s z for the neurons z of a chunk of a node and signs s, both `(G, S)`.
ChunkBounds = Callable[[str, Chunk, Tensor], Tensor]


class Intermediate(Protocol):
    """Which neurons get a row of their own, and what becomes of the interval bounds."""

    def wanted(self, exact: bool, unstable: Tensor) -> Tensor:
        """Neurons to bound by rows, from those whose planes better bounds would tighten; `exact`: their intervals are exact already."""
        ...

    def combine(self, interval: Box, lower: Tensor, upper: Tensor) -> Box:
        """The box from interval bounds and rows' bounds (equal to the interval's where no row was asked)."""
        ...


@dataclass(frozen=True, slots=True)
class IbpThenCrown:
    """Rows for neurons that the intervals leave unstable, intersected with the intervals: neither dominates the other."""

    def wanted(self, exact: bool, unstable: Tensor) -> Tensor:
        return torch.zeros_like(unstable) if exact else unstable

    def combine(self, interval: Box, lower: Tensor, upper: Tensor) -> Box:
        return interval.intersect(Box(lower, torch.maximum(lower, upper)))


@dataclass(frozen=True, slots=True)
class PureCrown:
    """Rows for neurons that the intervals leave unstable, which replace their intervals: what other tools compute, for comparison with
    them.
    """

    def wanted(self, exact: bool, unstable: Tensor) -> Tensor:
        return unstable

    def combine(self, interval: Box, lower: Tensor, upper: Tensor) -> Box:
        return Box(lower, torch.maximum(lower, upper))


@dataclass(frozen=True, slots=True)
class IbpOnly:
    """No rows: interval bounds inside, CROWN for the output alone (CROWN-IBP)."""

    def wanted(self, exact: bool, unstable: Tensor) -> Tensor:
        return torch.zeros_like(unstable)

    def combine(self, interval: Box, lower: Tensor, upper: Tensor) -> Box:
        return interval


def crown(request: BoundRequest, intermediate: Intermediate | None = None, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> BoundResult:
    """CROWN bounds of the rows, with adaptive lower slopes. Differentiable in the graph's constants and in the box.

    Args:
        intermediate: `IbpThenCrown()` (None), `PureCrown()` or `IbpOnly()`.
        memory_bytes: what a chunk of rows may use; rows are cut into chunks by it.

    Raises:
        OutOfMemory: not even a single row fits into memory.

    Sound: in real arithmetic.
    """
    strategy = IbpThenCrown() if intermediate is None else intermediate
    network = prepare(request.graph, request.box.lower)
    state = propagate(network, request, strategy, memory_bytes)
    planes = FixedPlanes(network, state.relaxations)
    rows = signed_rows(request)
    bounds = bound_output(network, rows, memory_bytes, lambda part: lower_bounds(network, network.output.name, part, planes, state.region))
    lower, upper = split_sides(bounds, request)
    if not isinstance(strategy, PureCrown):
        lower, upper = tighter((lower, upper), output_bounds(network, request, state.boxes))
    return BoundResult(lower, upper, state.intermediate)


@dataclass(frozen=True, slots=True)
class State:
    """What a forward sweep leaves behind: each node's box, and its value at the centre of the input box; planes of nonlinear nodes, and
    the boxes that those were made from."""

    boxes: dict[str, Box]
    centers: dict[str, Tensor]
    relaxations: dict[str, AnyRelaxation]
    intermediate: dict[str, Box]
    region: Region


Refine = Callable[[State, str, Tensor, Box], Box]


def propagate(network: Network, request: BoundRequest, strategy: Intermediate, memory_bytes: int, refine: Refine | None = None) -> State:
    """Boxes and planes of all nodes, forwards: intervals, refined by rows before each nonlinear node.

    `refine(state, name, mask, box)` improves a box further after the strategy's rows.
    """
    start = network.nodes[0].name
    state = State({start: request.box}, {start: request.box.center.detach()}, {}, {}, Region(request.box, request.ball))
    planes, asked = FixedPlanes(network, state.relaxations), {}

    def by_rows(name: str, chunk: Chunk, signs: Tensor) -> Tensor:
        start, rows, bias = unit_rows(network, name, chunk, signs)
        return bias + lower_bounds(network, start, rows, planes, state.region)

    for node in network.nodes[1:]:
        rule = network.rules[node.name]
        if isinstance(rule, NonlinearOp):
            masks = rule.unstable(node, *network.boxes_of(node, state.boxes))
            for name, mask in zip(node.inputs, masks, strict=True):
                if name in request.intermediate:
                    box = request.intermediate[name]
                else:
                    mask = mask & ~asked.get(name, torch.zeros_like(mask))  # another reader may have asked before
                    asked[name] = mask | asked.get(name, mask)
                    exact = request.ball is None and network.interval_is_exact(name)
                    box = bound_neurons(network, (name, strategy.wanted(exact, mask)), state, memory_bytes, (strategy, by_rows))
                    box = box if refine is None or exact else refine(state, name, mask, box)
                state.boxes[name] = state.intermediate[name] = box
            state.relaxations[node.name] = rule.relax(node, *network.boxes_of(node, state.boxes))
        given = request.intermediate.get(node.name)
        with torch.no_grad():
            state.centers[node.name] = rule.forward(node, *(state.centers[name] for name in node.inputs))
        state.boxes[node.name] = rule.interval(node, *network.boxes_of(node, state.boxes)) if given is None else given
    return state


def bound_neurons(
    network: Network, task: tuple[str, Tensor], state: State, memory_bytes: int, how: tuple[Intermediate, ChunkBounds]
) -> Box:
    """The box of a node, with rows for some of its neurons.

    Where only signs matter, each neuron's sign at the centre of the region is tried first, and one that this settles gets no second row.

    Args:
        task: the node's name, and which neurons get rows, `(B, *shape)`.
        how: the way to combine rows' bounds with the box so far, and the way to bound a chunk.
    """
    (name, mask), (strategy, chunk_bounds), box = task, how, state.boxes[task[0]]
    lower, upper = box.lower.flatten(), box.upper.flatten()
    by_sign = network.decided_by_sign(name)
    signs = torch.where(state.centers[name].flatten() < 0, -1.0, 1.0).to(lower.dtype) if by_sign else torch.ones_like(lower)
    memory_bytes = memory_bytes if box.lower.is_cuda else min(memory_bytes, _CACHE_BYTES)
    most = max(1, memory_bytes // row_bytes(network, name, _COPIES, box.lower.element_size()))
    for _ in range(2):
        if not bool(mask.any()):
            break

        def work(chunk: Chunk, signs: Tensor = signs) -> tuple[Tensor, Tensor]:
            at = chunk.flat(network.shapes[name])
            return at[chunk.valid], chunk_bounds(name, chunk, signs[at])[chunk.valid]

        results = with_memory(chunks_of(mask, starts_windows(network, name)), most, work)
        at, found = (torch.cat(parts) for parts in zip(*results, strict=True))
        lower = lower.index_copy(0, at, torch.where(signs[at] > 0, found, lower[at]))
        upper = upper.index_copy(0, at, torch.where(signs[at] > 0, upper[at], -found))
        if by_sign:
            mask = mask & ~torch.zeros_like(mask).flatten().index_fill(0, at[found >= 0], True).reshape(mask.shape)
        signs = -signs
    return strategy.combine(box, lower.reshape(box.lower.shape), upper.reshape(box.upper.shape))


def bound_output(network: Network, rows: Tensor, memory_bytes: int, bound: Callable[[Rows], Tensor]) -> Tensor:
    """Lower bounds `(B, S)` of rows `(B, S, n_out)` of the output, in as few chunks as the memory budget allows."""
    batch, count = rows.shape[:2]
    most = max(1, memory_bytes // row_bytes(network, network.output.name, _COPIES, rows.element_size()))
    if batch * count <= most:
        return bound(Rows(rows.reshape(batch, count, *network.output.shape), Frame()))
    mask = torch.ones(batch, count, dtype=torch.bool, device=rows.device)

    def work(chunk: Chunk) -> tuple[Tensor, Tensor]:
        part = rows[chunk.problem[:, None], chunk.index].reshape(*chunk.index.shape, *network.output.shape)
        bounds = bound(Rows(part, frame_of(chunk.problem)))
        return (chunk.problem[:, None] * count + chunk.index)[chunk.valid], bounds[chunk.valid]

    at, values = (torch.cat(parts) for parts in zip(*with_memory(chunks_of(mask, False), most, work), strict=True))
    return values.new_zeros(batch * count).index_copy(0, at, values).reshape(batch, count)


def tighter(first: tuple[Tensor, Tensor | None], second: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """The larger lower and the smaller upper bounds of two sound pairs."""
    upper = None if first[1] is None or second[1] is None else torch.minimum(first[1], second[1])
    return torch.maximum(first[0], second[0]), upper
