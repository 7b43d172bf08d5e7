"""Neurons whose sign is known leave the reduced problem: active ones by substitution, inactive ones by omission."""
from __future__ import annotations

from dataclasses import replace

from verifier.reduced.problem import RELU, ReducedProblem, blocks_of


def eliminate(problem: ReducedProblem) -> ReducedProblem:
    """The same function of x without its stable ReLUs: a smaller U, the blocks kept (possibly empty).

    A neuron that the problem's own split fixes stays, because its constraint (and multiplier) lives on it.
    Sound: relu(z) = z where lower >= 0, relu(z) = 0 where upper <= 0.
    """
    relu = problem.split == 0
    for block in problem.blocks:
        if block.kind != RELU:
            relu[block.start:block.end] = False
    active, inactive = relu & (problem.lower >= 0), relu & (problem.upper <= 0) & (problem.lower < 0)
    keep = ~(active | inactive)
    if bool(keep.all()):
        return problem
    A, W, b, A_o, W_o, b_o = (t.clone() for t in (problem.A, problem.W, problem.b, problem.A_o, problem.W_o, problem.b_o))
    for block in reversed(problem.blocks):
        gone = active[block.start:block.end].nonzero().squeeze(-1) + block.start
        if len(gone):
            for into, rest, constant in ((W, A, b), (W_o, A_o, b_o)):
                column = into[:, gone]
                into += column @ W[gone]
                rest += column @ A[gone]
                constant += column @ b[gone]
    sizes = [int(keep[block.start:block.end].sum()) for block in problem.blocks]
    W = W[keep][:, keep]
    return replace(
        problem, A=A[keep], W=W, b=b[keep], A_o=A_o, W_o=W_o[:, keep], b_o=b_o,
        lower=problem.lower[keep], upper=problem.upper[keep],
        blocks=blocks_of(sizes, [block.kind for block in problem.blocks], W), neuron=problem.neuron[keep], split=problem.split[keep],
    )
