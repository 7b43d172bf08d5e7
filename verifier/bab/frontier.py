"""The open domains of one problem: growing arrays, the worst taken first."""
from __future__ import annotations

import torch
from torch import Tensor

from verifier.bab.domains import DomainBatch

GROWTH = 1.125
"""Of a full array's size: a million domains of 300 neurons, 1.2 GB, and the old copy of the largest array stay under 2 GiB while they grow."""


class Frontier:
    """Open domains in arrays that grow one after the other when they are full; a removed domain's place is taken by the last one."""

    def __init__(self) -> None:
        self._arrays: list[Tensor | None] = []
        self._capacity = self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def open(self) -> DomainBatch:
        """A view of the open domains (empty frontiers have none to show)."""
        return DomainBatch(*(None if t is None else t[:self._count] for t in self._arrays))

    def nbytes(self) -> int:
        return sum(t.nbytes for t in self._arrays if t is not None)

    def push(self, batch: DomainBatch) -> None:
        need = self._count + len(batch)
        if need > self._capacity:
            self._grow(batch, max(need, int(GROWTH * self._count), 64))
        for own, new in zip(self._arrays, batch.arrays()):
            if own is not None:
                own[self._count:need] = new
        self._count = need

    def _grow(self, like: DomainBatch, capacity: int) -> None:
        """Room for `capacity` domains; each array is copied and freed before the next one."""
        if not self._arrays:
            self._arrays = [None] * len(like.arrays())
        for position, new in enumerate(like.arrays()):
            if new is None:
                continue
            array = new.new_empty(capacity, *new.shape[1:])
            if self._count:
                array[:self._count] = self._arrays[position][:self._count]
            self._arrays[position] = array
        self._capacity = capacity

    def pop_worst(self, count: int) -> DomainBatch:
        """Removes and returns the `count` domains of smallest bound."""
        lower = self.open.lower
        index = torch.arange(len(lower), device=lower.device) if count >= len(lower) else lower.topk(count, largest=False).indices
        return self.pop(index)

    def pop_worst_of_each_row(self) -> DomainBatch:
        """Removes and returns, for every specification row that has open domains, the one of smallest bound."""
        own = self.open
        order = own.lower.argsort()
        order = order[own.row[order].argsort(stable=True)]
        rows = own.row[order]
        first = torch.ones_like(rows, dtype=torch.bool)
        first[1:] = rows[1:] != rows[:-1]
        return self.pop(order[first])

    def pop(self, index: Tensor) -> DomainBatch:
        """Removes and returns the domains at `index` (distinct)."""
        taken = self.open.take(index)
        left = self._count - len(index)
        holes = index[index < left]
        tail = torch.ones(len(index), dtype=torch.bool, device=index.device)
        gone = index[index >= left] - left
        tail[gone] = False
        fill = tail.nonzero().squeeze(-1) + left
        for array in self._arrays:
            if array is not None:
                array[holes] = array[fill]
        self._count = left
        return taken

    def discard(self, keep: Tensor) -> None:
        """Drops the open domains where `keep (N,)` is False."""
        if not bool(keep.all()):
            self.pop((~keep).nonzero().squeeze(-1))

    def minimum(self) -> float | None:
        return float(self.open.lower.min()) if self._count else None
