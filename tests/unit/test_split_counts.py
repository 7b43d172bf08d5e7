"""What a verdict says of branch and bound: which neurons were split, how often, and how many were unstable."""
from __future__ import annotations

import numpy as np
import pytest

from tests.mlp import Mlp, near_truth, random_mlp
from verifier.bab.budget import Deadline
from verifier.bab.driver import Oracle, Search, advance, start
from verifier.config import BabConfig, Config
from verifier.exact.highs import leaf_answer
from verifier.reduced.bound import Effort
from verifier.solve import verify, verify_many
from verifier.spec.spec import Case, Polytope, Spec
from verifier.verdict import NeuronSplit, Status

CONFIG = Config(timeout_s=20, attack=None)
N_IN = 25  # more inputs than input splits are tried on


def one_split() -> Mlp:
    """y = x_0 - relu(x_0 + x_1), at least -1 on [-1, 1]^n; the chord of its only unstable neuron, the third of four, gives -2."""
    first = np.zeros((4, N_IN))
    first[2, :2], first[3, 0] = 1, 1
    return Mlp(((first, np.array([5.0, -5.0, 0.0, 5.0])), (np.array([[0.0, 0.0, -1.0, 1.0]]), np.array([-5.0]))))


def unsafe_below(limit: float) -> Spec:
    case = Case(-np.ones(N_IN), np.ones(N_IN), (Polytope(np.ones((1, 1)), np.array([limit])),))
    return Spec((case,), N_IN, 1)


def test_the_only_unstable_neuron_is_named() -> None:
    verdict = verify(one_split().graph(), unsafe_below(-1.5), CONFIG)
    assert verdict.status is Status.VERIFIED
    assert verdict.splits == (NeuronSplit("h0", 2, 1),)
    assert verdict.unstable == 1


def test_what_the_root_proves_has_no_splits() -> None:
    verdict = verify(one_split().graph(), unsafe_below(-2.5), CONFIG)
    assert verdict.status is Status.VERIFIED and verdict.splits == () and verdict.unstable == 1


def test_several_problems_keep_their_own_counts() -> None:
    specs = [unsafe_below(limit) for limit in (-1.5, -2.5, -1.25)]
    splits = [verdict.splits for verdict in verify_many(one_split().graph(), specs, CONFIG)]
    assert splits == [(NeuronSplit("h0", 2, 1),), (), (NeuronSplit("h0", 2, 1),)]


def test_cases_add_up() -> None:
    (case,) = unsafe_below(-1.5).cases
    verdict = verify(one_split().graph(), Spec((case, case), N_IN, 1), CONFIG)
    assert verdict.splits == (NeuronSplit("h0", 2, 2),) and verdict.unstable == 2


def test_an_empty_specification_has_nothing_unstable() -> None:
    verdict = verify(one_split().graph(), Spec((), N_IN, 1), CONFIG)
    assert verdict.splits == () and verdict.unstable is None


@pytest.mark.parametrize("together", [1, 3])
def test_every_split_makes_two_domains(together: int) -> None:
    """Counts add up to the splits made, over neurons that the problem has, alone and where stacked problems are padded."""
    made = 0
    for seed in range(0, 12, together):
        mlp = random_mlp(seed, (3, 8, 6, 2))
        searches = [Search(k, mlp.problem(near_truth(mlp, seed + k, 2e-3))) for k in range(together)]
        for search in searches:
            start(search, Effort(2))
        advance(searches, BabConfig(batch=16), Oracle(lambda *a: False, leaf_answer), Deadline.after(20))
        for search in searches:
            assert 2 * search.splits.total() == search.domains - len(search.problem.b_o)
            assert set(search.splits) <= set(map(tuple, search.problem.neuron.tolist()))
            made += search.splits.total()
    assert made > 10
