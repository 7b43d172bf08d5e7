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
from verifier.bab.domains import DomainBatch, pack_alpha, pack_beta
from verifier.bab.driver import Search, bound_children, log_split, start
from verifier.bab.log import Lemma, Log, outline
from verifier.bab.work import children, load, unload
from verifier.config import BabConfig
from verifier.reduced.bound import Effort, Multipliers
from verifier.reduced.eliminate import eliminate
from verifier.reduced.problem import Block, ReducedProblem, Stack, stack
from verifier.reduced.products import with_fast_inputs
from verifier.reduced.tighten import rows_as_problem

VISIBLE = 1e-3
"""Share of a neuron's interval by which a bound must be better to be a lemma."""


def split_neurons(problem: ReducedProblem, config: BabConfig, seconds_a_block: float, deadline: Deadline, log: Log) -> ReducedProblem:
    """The problem with neuron bounds by branch and bound, `seconds_a_block` for each block after the first; newly stable ones eliminated.

    What was shown of the neurons is added to the log's lemmas.

    Sound: the bound of a row is the minimum over leaves that cover the region.
    """
    for k in range(1, len(problem.blocks)):
        if deadline.expired():
            break
        if problem.blocks[k].size and problem.blocks[k].start:
            problem = eliminate(split_block(problem, k, config, deadline.sooner(seconds_a_block), log))
    return problem


def split_block(problem: ReducedProblem, k: int, config: BabConfig, deadline: Deadline, log: Log) -> ReducedProblem:
    """The problem with better bounds of block k's neurons, as good as the deadline allows."""
    block = problem.blocks[k]
    rows = rows_as_problem(problem, block)
    search = Search(k, rows)
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
    proved = torch.minimum(proved, torch.zeros_like(proved))
    bound = torch.maximum(bound, proved)
    log.add(block_lemma(problem, block, search.log, bound))
    lower, upper, at = problem.lower.clone(), problem.upper.clone(), slice(block.start, block.end)
    lower[at], upper[at] = torch.maximum(lower[at], bound[:block.size]), torch.minimum(upper[at], -bound[block.size:])
    return problem.with_bounds(lower, upper)


def _split(search: Search, shared: Stack, worst: DomainBatch, config: BabConfig, closed: Tensor) -> None:
    """Splits each leaf; one that no split improves is closed with the bound that it has."""
    work = load(shared, [worst])
    neuron, useful = choose(shared, work, config.candidates)
    final = ~useful[0] & ~work.lower[0].isnan()
    closed.scatter_reduce_(0, work.row[0][final], work.lower[0][final], "amin")
    kids = replace(children(shared, work, neuron), id=log_split([search], shared, work, neuron, ~final.unsqueeze(0)))
    best, multipliers, _ = bound_children(shared, kids, config)
    real = ~final.repeat_interleave(2)
    # Open ones too, with their own bounds: which of them count is seen at the end.
    search.log.close(unload(shared, replace(kids, lower=best, multipliers=multipliers), 0, real.nonzero().squeeze(-1)))
    best = torch.maximum(best, kids.lower)
    kids = replace(kids, lower=best, multipliers=multipliers)
    done = (best > kids.target)[0] & real
    search.domains += int(real.sum())
    closed.scatter_reduce_(0, kids.row[0][done], best[0][done], "amin")
    search.frontier.push(unload(shared, kids, 0, (~done & real).nonzero().squeeze(-1)))


def _row_minimum(search: Search, closed: Tensor, count: int) -> Tensor:
    """The smallest bound among each row's leaves."""
    lowest = closed.clone()
    if len(search.frontier):
        own = search.frontier.open
        lowest.scatter_reduce_(0, own.row, own.lower, "amin")
    return lowest


def block_lemma(problem: ReducedProblem, block: Block, log: Log, bound: Tensor) -> Lemma:
    """What the rows +z and -z of a block, bounded by `bound (2 size,)`, say more than the problem."""
    return _lemma(problem, block, log, visible(problem, block, bound))


def visible(problem: ReducedProblem, block: Block, bound: Tensor) -> Tensor:
    """Which of the bounds `(2 size,)` of the rows +z and -z are better than the problem's by a share that is worth a lemma: their indices."""
    at = slice(block.start, block.end)
    width = (problem.upper - problem.lower)[at].repeat(2)
    return (bound > torch.cat([problem.lower[at], -problem.upper[at]]) + VISIBLE * width).nonzero().squeeze(-1)


def _lemma(problem: ReducedProblem, block: Block, log: Log, row: Tensor) -> Lemma:
    sign = torch.ones(2 * block.size, dtype=torch.int64, device=row.device)
    sign[block.size:] = -1
    return Lemma(replace(log, problem=outline(log.problem)), row, problem.neuron[block.start:block.end].repeat(2, 1)[row], sign[row])


def tightened_lemma(problem: ReducedProblem, block: Block, part: Tensor, bound: Tensor, multipliers: Multipliers) -> Lemma:
    """The same of the rows `part (K,)`, which were bounded without splits by `bound (K,)`, with `multipliers (1, K, U)`."""
    whole = bound.new_full((2 * block.size,), -torch.inf)
    whole[part] = bound
    row = visible(problem, block, whole)
    rows, k, s = rows_as_problem(problem, block), len(row), block.start
    log, at = Log(rows), torch.isin(part, row)
    cuts = (None, None) if rows.is_relu else (rows.lower.expand(k, s), rows.upper.expand(k, s))
    log.close(DomainBatch(
        row, whole[row], torch.zeros(k, dtype=torch.int16, device=bound.device), rows.split.expand(k, s),
        pack_alpha(multipliers.alpha[0, at, :s]), pack_beta(multipliers.beta[0, at, :s]), log.open_roots(row), *cuts,
    ))
    return _lemma(problem, block, log, row)
