"""Which rows go through the network together: chunks of groups of rows, as large as the memory budget allows.

A `Chunk` names neurons of one node: G groups with the same problem (and, for a node that windows can start at, the same position), each
padded to S rows by rows whose bounds are computed and thrown away (`valid` False). Groups are sorted by size, so little is padded.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from verifier.bounds.network import Network, is_out_of_memory
from verifier.bounds.rows import Frame, Rows, Window
from verifier.bounds.windows import WINDOW_OPS, moved
from verifier.box import flat
from verifier.errors import OutOfMemory
from verifier.ops.conv import spatial_attributes

Result = TypeVar("Result")
# Padding rows that cost about as much as the fixed costs of one more chunk (measured on small convolutional networks), and a share on top.
_PADDING_ROWS, _PADDING_SHARE = 48, 0.15


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows `index: (G, S)` of groups `problem: (G,)`; `position: (G, d)` where the index counts channels, else it counts flattened
    neurons.
    """

    problem: Tensor
    position: Tensor | None
    index: Tensor
    valid: Tensor

    def flat(self, shape: tuple[int, ...]) -> Tensor:
        """Where each row's neuron stands in a flattened batch of values of `shape`, `(G, S)`."""
        if self.position is None:
            return self.problem[:, None] * prod(shape) + self.index
        at = torch.zeros_like(self.problem)
        for axis, count in enumerate(shape[2:]):
            at = at * count + self.position[:, axis]
        return self.problem[:, None] * prod(shape) + self.index * prod(shape[2:]) + at[:, None]


def frame_of(problem: Tensor, window: Window | None = None) -> Frame:
    """The frame of groups of these problems; one problem alone is noticed, and its values need not be copied."""
    first = int(problem[0])
    return Frame(problem, window, first if bool((problem == first).all()) else None)


def starts_windows(network: Network, name: str) -> bool:
    """Whether this node's rows are kept as windows: an image, behind an operation that passes windows on."""
    return network.by_name[name].op in WINDOW_OPS and len(network.shapes[name]) in (3, 4, 5) and network.shapes[name][0] == 1


def chunks_of(mask: Tensor, by_position: bool) -> Callable[[int], Iterator[Chunk]]:
    """How the neurons `mask (B, *shape)` of a node are cut into chunks of at most so many rows (one group's rows at least one)."""
    batch, shape = mask.shape[0], tuple(mask.shape[1:])
    if by_position:
        table = flat(mask, 2).reshape(batch, shape[1], -1).transpose(1, 2).flatten(0, 1)
    else:
        table = flat(mask, 1)
    counts = table.sum(1)
    counts, group = counts.sort(descending=True, stable=True)
    group = group[counts > 0]
    counts = counts[: group.numel()]
    order = table.index_select(0, group).to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    positions = prod(shape[2:]) if by_position else 1

    def cut(most: int) -> Iterator[Chunk]:
        sizes, start = counts.tolist(), 0
        while start < len(sizes):
            chosen = slice(start, start + _together(sizes[start:], most))
            for first in range(0, sizes[start], most):
                last = min(first + most, sizes[start])
                valid = torch.arange(first, last, device=mask.device) < counts[chosen, None]
                yield Chunk(group[chosen] // positions, _positions(group[chosen] % positions, shape[2:]) if by_position else None,
                            order[chosen, first:last], valid)
            start = chosen.stop

    return cut


def _together(sizes: list[int], most: int) -> int:
    """How many of the next groups, largest first, go into one chunk: while all of them, padded to the first one's size, stay within `most` rows,
    and while the padding costs less than a chunk more would."""
    rows = 0
    for count, size in enumerate(sizes):
        rows += size
        padded = (count + 1) * sizes[0]
        if count and (padded > most or padded - rows > _PADDING_ROWS + _PADDING_SHARE * rows):
            return count
    return len(sizes)


def _positions(flat: Tensor, spatial: tuple[int, ...]) -> Tensor:
    parts = []
    for size in reversed(spatial):
        parts.append(flat % size)
        flat = flat // size
    return torch.stack(parts[::-1], 1)


def unit_rows(network: Network, name: str, chunk: Chunk, signs: Tensor) -> tuple[str, Rows, Tensor]:
    """Rows s z of the chunk's neurons z with signs s `(G, S)`: the node to start at, its rows, and their bias `(G, S)`.

    A neuron of a dense or convolutional layer starts at that layer's input, with its own weights: the product with a unit row is never
    formed.
    """
    node, shape = network.by_name[name], network.shapes[name]
    bias = node.constants.get("bias")
    if chunk.position is not None:
        ones = (1,) * (len(shape) - 2)
        frame = frame_of(chunk.problem, Window(chunk.position, shape[2:], ones, (0,) * len(ones), ones))
        if node.op == "Conv" and node.attributes.get("group", 1) == 1 and set(spatial_attributes(node)[2]) == {1}:
            unit = _signed(node.constants["weight"][chunk.index].unsqueeze(2), signs)
            rows = moved(frame, node, unit, network.shapes[node.inputs[0]])
            return node.inputs[0], rows, torch.zeros_like(signs) if bias is None else signs * bias[chunk.index]
        unit = _one_hot(chunk.index, shape[1], signs).reshape(*signs.shape, 1, shape[1], *ones)
        return name, Rows(unit, frame), torch.zeros_like(signs)
    frame = frame_of(chunk.problem)
    if node.op == "Linear" and prod(shape) == shape[-1]:
        unit = _signed(node.constants["weight"][chunk.index], signs).reshape(*signs.shape, *network.shapes[node.inputs[0]])
        return node.inputs[0], Rows(unit, frame), torch.zeros_like(signs) if bias is None else signs * bias[chunk.index]
    unit = _one_hot(chunk.index, prod(shape), signs).reshape(*signs.shape, *shape)
    return name, Rows(unit, frame), torch.zeros_like(signs)


def _signed(values: Tensor, signs: Tensor) -> Tensor:
    return values * signs.reshape(*signs.shape, *(1,) * (values.ndim - 2))


def _one_hot(index: Tensor, size: int, values: Tensor) -> Tensor:
    return values.new_zeros(*index.shape, size).scatter_(-1, index.unsqueeze(-1), values.unsqueeze(-1))


def row_bytes(network: Network, name: str, copies: float, itemsize: int) -> int:
    """What one row of a node needs: `copies` of its widest coefficient."""
    order = [node.name for node in network.nodes]
    return int(copies * itemsize * max(prod(network.shapes[other]) for other in order[: order.index(name) + 1]))


def with_memory(cut: Callable[[int], Iterator[Chunk]], most: int, work: Callable[[Chunk], Result]) -> list[Result]:
    """work(chunk) for every chunk of at most `most` rows; where memory runs out, all of it again in chunks half as large.

    Raises:
        OutOfMemory: one row alone does not fit.
    """
    while True:
        try:
            return [work(chunk) for chunk in cut(max(most, 1))]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if most <= 1:
            raise OutOfMemory("One row of the bound computation does not fit into memory: use a machine with more, or a smaller batch.")
        most //= 2
