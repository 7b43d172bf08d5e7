"""Work: the domains of several problems laid out side by side for one batched bound, `(P, K, ...)`."""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.bab.domains import DomainBatch, pack_alpha, pack_beta, unpack_alpha
from verifier.reduced.bound import Multipliers, Rows
from verifier.reduced.planes import Domains
from verifier.reduced.problem import RELU, Stack


@dataclass(frozen=True, slots=True)
class Work:
    """K domains of each of P problems: `row, lower, depth, target (P, K)`; problem p has `count[p]` of them, the rest repeat its first.

    A row is done when its bound exceeds `target`, the problem's margin. `id (P, K)` names the domains in their searches' logs.
    """

    row: Tensor
    lower: Tensor
    depth: Tensor
    target: Tensor
    id: Tensor
    rows: Rows
    domains: Domains
    multipliers: Multipliers
    count: tuple[int, ...]

    def repeat(self, times: int) -> Work:
        """Every domain `times` times in a row."""
        again = lambda t: None if t is None else t.repeat_interleave(times, 1)  # noqa: E731
        return Work(
            again(self.row), again(self.lower), again(self.depth), again(self.target), again(self.id),
            Rows(again(self.rows.wo), again(self.rows.ao), again(self.rows.bo)),
            Domains(again(self.domains.split), again(self.domains.lower), again(self.domains.upper)),
            Multipliers(again(self.multipliers.alpha), again(self.multipliers.beta)), tuple(times * c for c in self.count),
        )


def spec_rows(stack: Stack, row: Tensor) -> Rows:
    """The specification rows `row (P, K)` of each problem."""
    p = torch.arange(len(row), device=row.device).unsqueeze(1)
    return Rows(stack.W_o[p, row], stack.A_o[p, row], stack.b_o[p, row])


def load(stack: Stack, batches: list[DomainBatch]) -> Work:
    """Domains of the stack's problems, in its order, padded to one K."""
    count = tuple(len(batch) for batch in batches)
    k = max(count)
    batches = [batch if len(batch) == k else _padded(batch, k) for batch in batches]
    dtype = stack.b.dtype
    row, lower, depth, names = (torch.stack([getattr(batch, name) for batch in batches]) for name in ("row", "lower", "depth", "id"))
    split = _place(stack, [batch.split for batch in batches])
    alpha, beta = unpack_alpha(_place(stack, [batch.alpha for batch in batches]), dtype), _place(stack, [batch.beta for batch in batches]).to(dtype)
    cuts = (None, None) if stack.is_relu else (_place(stack, [b.cut_lower for b in batches]), _place(stack, [b.cut_upper for b in batches]))
    p = torch.arange(len(row), device=row.device).unsqueeze(1)
    margin = torch.stack([torch.nn.functional.pad(q.margin, (0, stack.b_o.shape[1] - len(q.margin))) for q in stack.problems])
    return Work(row, lower, depth, margin[p, row], names, spec_rows(stack, row), Domains(split, *cuts), Multipliers(alpha, beta), count)


def _padded(batch: DomainBatch, k: int) -> DomainBatch:
    return batch.take(torch.arange(k, device=batch.lower.device).clamp(max=len(batch) - 1))


def _place(stack: Stack, parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0].unsqueeze(0)
    placed = parts[0].new_zeros(len(parts), len(parts[0]), stack.b.shape[1])
    for p, part in enumerate(parts):
        placed[p][:, stack.index[p]] = part
    return placed


def unload(stack: Stack, work: Work, p: int, keep: Tensor) -> DomainBatch:
    """The domains `keep` (indices) of problem p, packed."""
    at = stack.index[p]
    pick = lambda t: None if t is None else t[p][keep][:, at]  # noqa: E731
    return DomainBatch(
        work.row[p, keep], work.lower[p, keep], work.depth[p, keep], pick(work.domains.split), pack_alpha(pick(work.multipliers.alpha)),
        pack_beta(pick(work.multipliers.beta)), work.id[p, keep], pick(work.domains.lower), pick(work.domains.upper),
    )


def as_packed(multipliers: Multipliers) -> Multipliers:
    """What packing keeps of multipliers: alpha in 255ths, beta in bfloat16."""
    alpha, beta = multipliers.alpha, multipliers.beta
    return Multipliers(unpack_alpha(pack_alpha(alpha), alpha.dtype), pack_beta(beta).to(beta.dtype))


def children(stack: Stack, work: Work, neuron: Tensor) -> Work:
    """Both sides of `neuron (P, K)` for every domain, `(P, 2K)`: z >= point first, then z <= point.

    The point is 0 for a ReLU, the middle of the remaining interval otherwise. Cover: the two sides share their boundary.
    """
    kids = work.repeat(2)
    at = neuron.repeat_interleave(2, 1).unsqueeze(-1)
    sign = torch.tensor([1, -1], dtype=torch.int8, device=at.device).repeat(neuron.shape[1]).expand(len(at), -1).unsqueeze(-1)
    split = kids.domains.split.scatter(-1, at, sign)
    beta = kids.multipliers.beta.scatter(-1, at, 0.0)
    lower, upper = kids.domains.lower, kids.domains.upper
    if lower is not None:
        low, high = lower.gather(-1, at), upper.gather(-1, at)
        point = split_point(stack, work, neuron).repeat_interleave(2, 1).unsqueeze(-1)
        lower = lower.scatter(-1, at, torch.where(sign > 0, torch.maximum(point, low), low))
        upper = upper.scatter(-1, at, torch.where(sign < 0, torch.minimum(point, high), high))
    return replace(
        kids, depth=kids.depth + 1, domains=Domains(split, lower, upper), multipliers=Multipliers(kids.multipliers.alpha, beta),
    )


def split_point(stack: Stack, work: Work, neuron: Tensor) -> Tensor:
    """Where `neuron (P, K)` is split, `(P, K)`."""
    if work.domains.lower is None:
        return torch.zeros_like(work.lower)
    low, high = (t.gather(-1, neuron.unsqueeze(-1)).squeeze(-1) for t in (work.domains.lower, work.domains.upper))
    return torch.where(_relu_mask(stack)[neuron], torch.zeros_like(low), (low + high) / 2)


def _relu_mask(stack: Stack) -> Tensor:
    mask = torch.zeros(stack.b.shape[1], dtype=torch.bool, device=stack.b.device)
    for block in stack.blocks:
        mask[block.start:block.end] = block.kind == RELU
    return mask
