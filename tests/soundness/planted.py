"""Planted networks that fool a float solver: a counterexample at a hidden point, by less than the rounding that it does not count.

The spike of `traps.planted` hangs on a sum of large neurons that cancel. Its tip breaks the claim by less than a bound in float32 is off by,
so that the bound, with the best multipliers on every leaf, is positive. Ref: SoundnessBench (arXiv:2412.03154).
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np

from tests.soundness import handmade
from tests.soundness.exact_truth import Net, Step, smallest
from tests.soundness.handmade import Recipe
from tests.soundness.nets import affine, single
from tests.soundness.traps import Trap, above, at, just_above


def float_bound(trap: Trap, kind: type) -> float:
    """The proof rule as a solver without a checker evaluates it: in `kind`, nothing accounted for, the best of the certificate's leaves' worst."""
    lower, upper = handmade.outward(trap.claim)
    (row, offset), = trap.claim.polytopes[0]
    c = handmade.columns(trap.net, lower, upper, np.array([[float(v) for v in row]]), np.array([float(offset)]))
    tree, _, nus, _ = handmade.split_tree(c, np.arange(1), Recipe())
    c = handmade.cast(c, kind)
    rows = np.hstack([c.A_o, c.W_o])[0]
    worst = [handmade.bound(c, rows, c.b_o[0], nu.astype(kind), low, high) for nu, (low, high) in zip(nus, handmade.leaf_bounds(c, tree))]
    return float(min(worst))


def hidden(seed: int) -> tuple[Net, list[Fraction], list[Fraction], np.ndarray]:
    """The network, its box and the spike's place: pairs of large active neurons, and a spike of depth 1 beside them."""
    random = np.random.default_rng([seed, 11])
    n, pairs = 1 + seed % 2, int(random.integers(6, 16))
    point = single(np.round(random.uniform(-0.9, 0.9, n) * 64) / 64)
    large = 10.0 ** random.integers(2, 6)
    w = np.repeat(random.normal(size=(pairs, n)) / 64, 2, 0)
    w[1::2] += random.normal(size=(pairs, n)) / 512
    bias = large * np.repeat(random.uniform(1, 2, pairs), 2)
    first = affine(0, np.vstack([w, np.eye(n), -np.eye(n)]), np.concatenate([bias, -point, point]))
    sharp = float(2 ** random.integers(4, 8))
    c = np.repeat(random.uniform(0.5, 1.5, pairs) / pairs, 2) * np.tile([1.0, -1.0], pairs)
    second = np.vstack([np.concatenate([c, np.zeros(2 * n)]), np.concatenate([np.zeros(2 * pairs), np.full(2 * n, -sharp)])])
    steps = (first, Step("relu", (1,)), affine(2, second, [1.0, 1.0]), Step("relu", (3,)), affine(4, [[1.0, -1.0]], [0.0]))
    return Net(n, steps), [Fraction(-1)] * n, [Fraction(1)] * n, point


def fooling(count: int) -> Iterator[Trap]:
    """`count` claims that are false over the reals and that bounds in float32 prove; networks whose roundings go the safe way are left out."""
    seed = 0
    while count:
        net, lower, upper, point = hidden(seed)
        least, x = smallest(net, lower, upper, [1])
        trap = Trap(f"planted, fooling, seed {seed}", net, above(lower, upper, just_above(least)), False)
        spare = float_bound(trap, np.float32)
        if spare > 0:
            deeper = replace(trap, claim=above(lower, upper, just_above(least + Fraction(spare) / 2)))
            chosen = deeper if float_bound(deeper, np.float32) > 0 else trap
            yield at(chosen, tuple(point), tuple(single([float(v) for v in x])))
            count -= 1
        seed += 1
