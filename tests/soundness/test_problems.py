"""What the product says of random problems is right, and those with a clear distance are decided; no two spellings of one problem contradict."""
from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.soundness import balls, pairs, problems, verdicts
from tests.soundness.balls import ball_problem
from tests.soundness.drawn import FAMILIES
from tests.soundness.exact_truth import holds
from tests.soundness.verdicts import Outcome, claim_of

SHARE = 0.9
"""Of the clear problems, at least so many are decided."""


def check(found: list[Outcome]) -> None:
    assert [(o.problem, o.wrong) for o in found if o.wrong] == []
    clear = [o for o in found if o.clear]
    assert len(clear) >= len(found) / 4
    left = [(o.problem, o.answer, o.sentence) for o in clear if not o.decided]
    assert len(left) <= (1 - SHARE) * len(clear), left


def test_a_few_problems_of_every_family(tmp_path: Path) -> None:
    check([verdicts.asked(problems.problem(family, seed), tmp_path) for family in FAMILIES for seed in range(5)])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_problems(family: str, tmp_path: Path) -> None:
    check([verdicts.asked(problems.problem(family, seed), tmp_path) for seed in range(5, 75)])


@pytest.mark.slow
def test_balls(tmp_path: Path) -> None:
    found = [balls.asked(ball_problem(seed), tmp_path) for seed in range(60)]
    check(found)
    assert {"sat", "unsat"} <= {o.answer for o in found}


def check_pairs(kind: str, seeds: range, folder: Path) -> None:
    for seed in seeds:
        first, other, clash = pairs.compared(kind, seed, folder)
        assert not (clash or first.wrong or other.wrong), (clash, first, other)


@pytest.mark.parametrize("kind", pairs.SPELLINGS)
def test_two_spellings_do_not_contradict(kind: str, tmp_path: Path) -> None:
    check_pairs(kind, range(2), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", pairs.SPELLINGS)
def test_many_spellings_do_not_contradict(kind: str, tmp_path: Path) -> None:
    check_pairs(kind, range(2, 20), tmp_path)


def test_the_stated_truth_is_the_exact_one() -> None:
    """Enclosures and thresholds against the enumeration of pieces, where no row is strict."""
    tried = Counter()
    for family in ("dense", "residual", "moves", "stable", "planted"):
        for seed in range(6):
            problem = problems.problem(family, seed)
            if not any(r.strict for _, polytopes in problem.disjuncts for rows in polytopes for r in rows):
                tried[problem.real] += 1
                assert all(holds(problem.net, claim) for claim in claim_of(problem)) == problem.real, problem.name
    assert min(tried[True], tried[False]) >= 5
