"""Domains: subsets of a problem's region given by splits, as a struct of arrays; a million of them must fit in memory."""
from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DomainBatch:
    """N domains of one problem, all tensors with N in front.

    `row (N,)` the specification row that is bounded, `lower (N,)` its bound, `depth (N,)`, `split (N, U)` int8 signs, `alpha, beta (N, U)` the
    multipliers that warm-start the children (alpha in 255ths, beta in bfloat16: any value is sound), and the intervals `cut_lower,
    cut_upper (N, U)` for problems with neurons that are not ReLUs (None otherwise). `id (N,)` names each in the log of its search.
    """

    row: Tensor
    lower: Tensor
    depth: Tensor
    split: Tensor
    alpha: Tensor
    beta: Tensor
    id: Tensor
    cut_lower: Tensor | None = None
    cut_upper: Tensor | None = None

    def __len__(self) -> int:
        return len(self.lower)

    def take(self, index: Tensor) -> DomainBatch:
        return DomainBatch(*(None if t is None else t[index] for t in self.arrays()))

    def arrays(self) -> tuple[Tensor | None, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))

    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.arrays() if t is not None)


def pack_alpha(alpha: Tensor) -> Tensor:
    """[0, 1] to 255ths."""
    return (alpha * 255).round().to(torch.uint8)


def unpack_alpha(alpha: Tensor, dtype: torch.dtype) -> Tensor:
    return alpha.to(dtype) / 255


def pack_beta(beta: Tensor) -> Tensor:
    """To bfloat16, which has the range of float32: multipliers have the rows' scale over the neurons'. Larger ones become its largest."""
    return beta.clamp(max=torch.finfo(torch.bfloat16).max).bfloat16()
