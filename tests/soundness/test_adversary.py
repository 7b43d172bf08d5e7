"""No certificate of a false claim is accepted, however favourable its multipliers."""
from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.soundness import adversary
from tests.soundness.adversary import Attempt
from tests.soundness.exact_truth import holds
from tests.soundness.orders import ORDERS, reaches, runs, worst

COUNT = 1000


def accepted(count: int, folder: Path) -> tuple[list[str], Counter[str]]:
    """Names of what was accepted, and how many attempts there were of each family."""
    wrong, tried = [], Counter()
    for attempt in adversary.every(count):
        for arithmetic, judgement in adversary.answers(attempt, folder):
            tried[attempt.family] += 1
            if judgement.verdict == "accepted":
                wrong.append(f"{attempt.name}, {arithmetic}")
    return wrong, tried


def test_no_false_claim_is_accepted(tmp_path: Path) -> None:
    wrong, tried = accepted(COUNT, tmp_path)
    assert wrong == []
    assert tried.total() >= COUNT and min(tried.values()) >= 30


def test_the_claims_are_false(tmp_path: Path) -> None:
    """Over the reals by exact enumeration; in float32 because an order of summation reaches the offset at a point of the box."""
    for attempt in adversary.every(150):
        assert is_false(attempt), attempt.name


def is_false(attempt: Attempt) -> bool:
    if "real" in attempt.arithmetics:
        return not holds(attempt.net, attempt.claim)
    point = [[float(v) for v in attempt.claim.lower]]
    (polytope,) = attempt.claim.polytopes
    outputs = [worst(attempt.net, point, polytope[0][0]), *(runs(attempt.net, point, name) for name in ORDERS)]
    return attempt.claim.lower == attempt.claim.upper and any(reaches(polytope, y[0]) for y in outputs)
