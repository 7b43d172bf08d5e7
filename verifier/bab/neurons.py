"""Branch and bound for the neurons themselves: better bounds of late neurons than any relaxation over the same splits gives.

The rows +z and -z of one block are the specification of the problem made of the earlier blocks (`rows_as_problem`), each row a polytope of its own.
One leaf a row and round is split, the worst first; a row's bound is the minimum over its leaves. A row whose leaves are all proved is a stable
neuron. Newly stable neurons are eliminated before the next block, which sees the better bounds.
"""
from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from verifier.bab.branching import choose
from verifier.bab.budget import Deadline
from verifier.bab.domains import DomainBatch
from verifier.bab.driver import Search, bound_children, start
from verifier.bab.work import children, load, unload
from verifier.config import BabConfig
from verifier.reduced.bound import Effort
from verifier.reduced.eliminate import eliminate
from verifier.reduced.problem import ReducedProblem, Stack, stack
from verifier.reduced.products import with_fast_inputs
from verifier.reduced.tighten import rows_as_problem


def split_neurons(problem: ReducedProblem, config: BabConfig, seconds_a_block: float, deadline: Deadline) -> ReducedProblem:
    """The problem with neuron bounds by branch and bound, `seconds_a_block` for each block after the first; newly stable ones eliminated.

    Sound: the bound of a row is the minimum over leaves that cover the region.
    """
    for k in range(1, len(problem.blocks)):
        if deadline.expired():
            break
        if problem.blocks[k].size and problem.blocks[k].start:
            problem = eliminate(split_block(problem, k, config, deadline.sooner(seconds_a_block)))
    return problem


def split_block(problem: ReducedProblem, k: int, config: BabConfig, deadline: Deadline) -> ReducedProblem:
    """The problem with better bounds of block k's neurons, as good as the deadline allows."""
    block = problem.blocks[k]
    search = Search(k, rows_as_problem(problem, block))
    start(search, Effort(8, until_s=deadline.at_s))
    bound = search.floor.clone()
    closed = torch.full_like(bound, torch.inf)
    shared = with_fast_inputs(stack([search.problem]))
    while len(search.frontier) and not deadline.expired():
        worst = search.frontier.pop_worst_of_each_row()
        for part in torch.arange(len(worst), device=bound.device).split(config.batch):
            if deadline.expired():
                search.frontier.push(worst.take(part))
            else:
                _split(search, shared, worst.take(part), config, closed)
    proved = _row_minimum(search, closed, len(bound))
    bound = torch.maximum(bound, torch.minimum(proved, torch.zeros_like(proved)))
    lower, upper, at = problem.lower.clone(), problem.upper.clone(), slice(block.start, block.end)
    lower[at], upper[at] = torch.maximum(lower[at], bound[:block.size]), torch.minimum(upper[at], -bound[block.size:])
    return problem.with_bounds(lower, upper)


def _split(search: Search, shared: Stack, worst: DomainBatch, config: BabConfig, closed: Tensor) -> None:
    """Splits each leaf; one that no split improves is closed with the bound that it has."""
    work = load(shared, [worst])
    neuron, useful = choose(shared, work, config.candidates)
    final = ~useful[0] & ~work.lower[0].isnan()
    closed.scatter_reduce_(0, work.row[0][final], work.lower[0][final], "amin")
    kids = children(shared, work, neuron)
    best, multipliers, _ = bound_children(shared, kids, config)
    best = torch.maximum(best, kids.lower)
    kids = replace(kids, lower=best, multipliers=multipliers)
    real = ~final.repeat_interleave(2)
    done = (best > kids.target)[0] & real
    search.domains += int(real.sum())
    closed.scatter_reduce_(0, kids.row[0][done], best[0][done], "amin")
    search.frontier.push(unload(shared, kids, 0, (~done & real).nonzero().squeeze(-1)))


def _row_minimum(search: Search, closed: Tensor, count: int) -> Tensor:
    """The smallest bound among each row's leaves, less its rounding."""
    lowest = closed.clone()
    if len(search.frontier):
        own = search.frontier.open
        lowest.scatter_reduce_(0, own.row, own.lower, "amin")
    return lowest - search.problem.slack
