"""The reduced problem: what remains of a network over one input region, and stacks of such problems.

    z = A x + W s(z) + b        m = A_o x + W_o s(z) + b_o        x in [-1, 1]^n

over the neurons z that are not linear on the region (U of them, in topological order, in blocks; W strictly block-lower-triangular) and the
specification rows m. It is exact up to rounding, of which nothing here keeps account: what is found with it is a proposal, and a checker decides.
Stable neurons were substituted, so every network becomes this one shape. Letters: P problems in a stack, K rows (or domains) of each, U neurons, n
free inputs, S specification rows.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

RELU = "relu"


@dataclass(frozen=True, slots=True)
class InputMap:
    """x_full = center + scatter(radius * x): from scaled free inputs back to the network's flattened input.

    `center: (n_full,)`, `radius: (n,)`, `free: (n,)` indices of the inputs that are not fixed.
    """

    center: Tensor
    radius: Tensor
    free: Tensor

    def full(self, x: Tensor) -> Tensor:
        """`(K, n)` scaled to `(K, n_full)` network inputs."""
        result = self.center.expand(len(x), -1).clone()
        result[:, self.free] += x * self.radius
        return result


@dataclass(frozen=True, slots=True)
class ScaledBall:
    """{x : ||(x - center) * radius||_p <= limit}, in scaled inputs, intersected with the box [-1, 1]^n. `center, radius: (n,)`."""

    center: Tensor
    radius: Tensor
    limit: float
    norm: int


@dataclass(frozen=True, slots=True)
class Block:
    """Neurons start..end of one activation, all of one `kind`; `reach` is the first column of W that their rows use."""

    start: int
    end: int
    kind: str
    reach: int = 0

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class ReducedProblem:
    """One network over one region.

    `A (U, n), W (U, U), b (U,)`; `A_o (S, n), W_o (S, U), b_o (S,)`; `lower, upper (U,)` bounds of z;
    `polytope (S,)`: which polytope each row belongs to: it is unreachable where a convex combination of its rows is positive;
    `margin (S,)`: rows count as positive above it. It is no proof of anything: it is there so that a checker, who accounts for rounding, refuses few;
    `neuron (U, 2)`: graph node of each neuron and its number there, the flat index counted on over the node's activations where it makes several;
    `split (U,)` int8: signs that hold on the whole problem (0: none).
    """

    A: Tensor
    W: Tensor
    b: Tensor
    A_o: Tensor
    W_o: Tensor
    b_o: Tensor
    lower: Tensor
    upper: Tensor
    blocks: tuple[Block, ...]
    polytope: Tensor
    margin: Tensor
    neuron: Tensor
    split: Tensor
    inputs: InputMap
    ball: ScaledBall | None = None

    @property
    def unstable(self) -> int:
        return len(self.b)

    @property
    def n(self) -> int:
        return self.A.shape[1]

    @property
    def is_relu(self) -> bool:
        return all(block.kind == RELU for block in self.blocks)

    def row_size(self) -> Tensor:
        """The sum of the absolute terms of each row m, `(S,)`: the scale of its values."""
        size = torch.maximum(self.lower.abs(), self.upper.abs())
        for block in self.blocks:
            at = slice(block.start, block.end)
            size[at] = activation(block.kind, size[at]).abs()
        return self.b_o.abs() + self.A_o.abs().sum(1) + self.W_o.abs() @ size

    def with_bounds(self, lower: Tensor, upper: Tensor) -> ReducedProblem:
        """The same problem with these bounds; where rounding crosses them, the upper one moves."""
        return replace(self, lower=lower, upper=torch.maximum(lower, upper))

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Exact values at scaled inputs `x (K, n)`: `z (K, U)` and `m (K, S)`."""
        z = x @ self.A.T + self.b
        h = torch.empty_like(z)
        for block in self.blocks:
            own = z[:, block.start:block.end]
            if block.start > block.reach:
                own += h[:, block.reach:block.start] @ self.W[block.start:block.end, block.reach:block.start].T
            h[:, block.start:block.end] = activation(block.kind, own)
        return z, x @ self.A_o.T + h @ self.W_o.T + self.b_o


def activation(kind: str, z: Tensor) -> Tensor:
    """s(z) of one kind of neuron."""
    return _ACTIVATIONS[kind](z)


_ACTIVATIONS = {RELU: torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "square": torch.square}


def blocks_of(sizes: list[int], kinds: list[str], W: Tensor) -> tuple[Block, ...]:
    """Consecutive blocks of these sizes, each with the first column of W `(U, U)` that its rows use."""
    blocks, start = [], 0
    for size, kind in zip(sizes, kinds):
        used = W[start:start + size, :start].ne(0).any(0).nonzero() if size and start else None
        reach = int(used[0]) if used is not None and len(used) else start
        blocks.append(Block(start, start + size, kind, reach))
        start += size
    return tuple(blocks)


@dataclass(frozen=True, slots=True)
class FastInputs:
    """The first `count` rows of A, `rows (count, n)` and `transposed (n, count)`, in compressed rows; the others in bfloat16, or None."""

    count: int
    rows: Tensor
    transposed: Tensor
    rough: Tensor | None


@dataclass(frozen=True, slots=True)
class Stack:
    """P reduced problems of one network side by side, blocks padded to one size: `A (P, U, n)`, `W (P, U, U)`, and so on.

    `real (P, U)` is False at padding neurons (all their coefficients are zero); `index[p]` places problem p's neurons: `(U_p,)`.
    A stack of one problem shares its tensors.
    """

    problems: tuple[ReducedProblem, ...]
    A: Tensor
    W: Tensor
    b: Tensor
    A_o: Tensor
    W_o: Tensor
    b_o: Tensor
    lower: Tensor
    upper: Tensor
    blocks: tuple[Block, ...]
    real: Tensor
    index: tuple[Tensor, ...]
    fast: FastInputs | None = None

    @property
    def is_relu(self) -> bool:
        return all(block.kind == RELU for block in self.blocks)

    @property
    def ball(self) -> ScaledBall | None:
        return self.problems[0].ball


def stack(problems: list[ReducedProblem]) -> Stack:
    """Lays problems side by side. All must come from one network, and those with a ball stand alone (see `stackable`)."""
    first = problems[0]
    if len(problems) == 1:
        add = [t.unsqueeze(0) for t in (first.A, first.W, first.b, first.A_o, first.W_o, first.b_o, first.lower, first.upper)]
        real = torch.ones(1, first.unstable, dtype=torch.bool, device=first.b.device)
        return Stack((first,), *add, first.blocks, real, (torch.arange(first.unstable, device=first.b.device),))
    sizes = [max(p.blocks[k].size for p in problems) for k in range(len(first.blocks))]
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    count, n, rows = sum(sizes), max(p.n for p in problems), max(len(p.b_o) for p in problems)
    blank = lambda *shape: first.A.new_zeros(len(problems), *shape)  # noqa: E731
    A, W, b, A_o, W_o, b_o = blank(count, n), blank(count, count), blank(count), blank(rows, n), blank(rows, count), blank(rows)
    lower, upper, real, index = blank(count) - 1, blank(count) + 1, blank(count).bool(), []
    for p, problem in enumerate(problems):
        at = torch.cat([torch.arange(block.size, device=b.device) + start for block, start in zip(problem.blocks, starts)] or [problem.neuron[:, 0]])
        index.append(at)
        A[p, at, :problem.n], b[p, at], real[p, at] = problem.A, problem.b, True
        W[p, at[:, None], at[None, :]] = problem.W
        lower[p, at], upper[p, at] = problem.lower, problem.upper
        s = len(problem.b_o)
        A_o[p, :s, :problem.n], b_o[p, :s], W_o[p, :s, at] = problem.A_o, problem.b_o, problem.W_o
    blocks = blocks_of(sizes, [block.kind for block in first.blocks], W.abs().amax(0))
    return Stack(tuple(problems), A, W, b, A_o, W_o, b_o, lower, upper, blocks, real, tuple(index))


def stackable(a: ReducedProblem, b: ReducedProblem) -> bool:
    """Whether two problems may share a stack: the same sequence of blocks, and boxes only."""
    return a.ball is None and b.ball is None and a.A.dtype == b.A.dtype and [k.kind for k in a.blocks] == [k.kind for k in b.blocks]
