"""Better bounds of the neurons themselves: every unstable row of a block optimised with alpha (and beta under a split), block after block."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from verifier.bab.budget import Deadline
from verifier.reduced.bound import Effort, Multipliers, Rows, neuron_rows, optimise
from verifier.reduced.eliminate import eliminate
from verifier.reduced.planes import Domains, start_alpha
from verifier.reduced.problem import Block, ReducedProblem, stack
from verifier.reduced.products import with_fast_inputs

Note = Callable[[ReducedProblem, Block, Tensor, Tensor, Multipliers], None]
"""note(problem, block, part (K,) of the rows +z and -z, their bounds (K,), multipliers (1, K, U))"""


def unnoted(*found: object) -> None:
    """The note of whoever wants no proof."""


def tighten(problem: ReducedProblem, effort: Effort, deadline: Deadline, memory_bytes: int = 2**30, note: Note = unnoted) -> ReducedProblem:
    """The problem with optimised bounds of its neurons, newly stable ones eliminated. Stops early, with what it has, at the deadline.

    `note` is told of the rows of every block, part by part.

    Sound: each bound is a lower bound of +z or -z over the problem's region and its own split.
    """
    effort = replace(effort, until_s=min(effort.until_s, deadline.at_s))
    first = 0 if bool(problem.split.any()) else 1
    for k in range(first, len(problem.blocks)):
        if problem.blocks[k].size and not deadline.expired():
            problem = eliminate(tighten_block(problem, problem.blocks[k], effort, deadline, memory_bytes, note))
    return problem


def tighten_block(
    problem: ReducedProblem, block: Block, effort: Effort, deadline: Deadline, memory_bytes: int, note: Note = unnoted
) -> ReducedProblem:
    """The problem with optimised bounds of one block's neurons."""
    rows = neuron_rows(problem, block)
    chunk = max(8, memory_bytes // (64 * (problem.unstable + problem.n + 1)))
    bound = rows.bo.new_full((2 * block.size,), -torch.inf)
    for part in torch.arange(2 * block.size, device=rows.bo.device).split(chunk):
        if deadline.expired():
            break
        bound[part], multipliers = bound_rows(problem, rows.take(part), effort)
        note(problem, block, part, bound[part], multipliers)
    lower, upper, at = problem.lower.clone(), problem.upper.clone(), slice(block.start, block.end)
    lower[at], upper[at] = torch.maximum(lower[at], bound[:block.size]), torch.minimum(upper[at], -bound[block.size:])
    return problem.with_bounds(lower, upper)


def bound_rows(problem: ReducedProblem, rows: Rows, effort: Effort) -> tuple[Tensor, Multipliers]:
    """Optimised lower bounds `(K,)` of rows `(1, K, ...)`, and what they are made from."""
    single, k = with_fast_inputs(stack([problem])), rows.bo.shape[1]
    domains = Domains(problem.split.expand(1, k, -1), *(None if single.is_relu else t.expand(1, k, -1) for t in (single.lower, single.upper)))
    start = Multipliers(start_alpha(single).unsqueeze(1).expand(1, k, -1), torch.zeros_like(rows.wo))
    best, multipliers, _ = optimise(single, rows, domains, start, effort, torch.zeros_like(rows.bo))
    return best[0], multipliers


def rows_as_problem(problem: ReducedProblem, block: Block) -> ReducedProblem:
    """The rows +z and -z of one block as the specification of the problem made of the earlier blocks.

    Each row is a polytope of its own; branch and bound on it bounds the neurons.
    """
    rows = neuron_rows(problem, block)
    s = block.start
    return replace(
        problem, A=problem.A[:s], W=problem.W[:s, :s], b=problem.b[:s], lower=problem.lower[:s], upper=problem.upper[:s],
        neuron=problem.neuron[:s], split=problem.split[:s], blocks=tuple(k for k in problem.blocks if k.end <= s),
        A_o=rows.ao[0], W_o=rows.wo[0, :, :s], b_o=rows.bo[0], polytope=torch.arange(2 * block.size, device=rows.bo.device),
        margin=torch.zeros_like(rows.bo[0]),
    )
