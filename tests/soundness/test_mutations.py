"""Mutated certificates: none of a false claim is accepted, and a checker with a hole is caught."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.soundness import battery
from tests.soundness.battery import Outcome, Subject, outcomes, subjects
from tests.soundness.exact_truth import holds
from tests.soundness.mutations import NEVER
from tests.soundness.proofs import files, judged, whole, write
from tests.soundness.test_ranges import RANGES, verdict
from tests.soundness.test_traps import FAMILIES, is_false, verdicts
from verifier.certificate import arithmetic as rounding
from verifier.certificate import bound, case, check, reduce
from verifier.certificate.arithmetic import RUNTIMES, Exact, Runtime
from verifier.certificate.schema import Record

FEW = ("two polytopes", "boxes", "wide, lemmas")
"""Names of subjects that the quick tests mutate."""


def chosen(arithmetic: str, seed: int = 0) -> list[Subject]:
    return [s for s in subjects(seed, arithmetic) if s.name.rsplit(", ", 1)[0] in FEW]


def wrong(found: list[Outcome]) -> list[Outcome]:
    """False proofs, and what no checker may accept whatever the truth."""
    return [o for o in found if o.verdict == "FALSE" or (o.verdict == "harmless" and o.kind in NEVER)]


@pytest.mark.parametrize("arithmetic", ["real", "float32"])
def test_the_originals_are_accepted_and_their_twins_are_not(arithmetic: str, tmp_path: Path) -> None:
    for subject in subjects(0, arithmetic):
        where = files(subject.net, subject.claims, tmp_path)
        judgement = judged(where, write(whole(where.head(arithmetic), subject.parts, subject.cases), tmp_path / "whole.cert"))
        assert all(holds(subject.net, c) for c in subject.claims) == subject.true, subject.name
        assert judgement.verdict == ("accepted" if subject.true else "rejected"), (subject.name, judgement.sentence)


@pytest.mark.parametrize(("arithmetic", "names"), [
    pytest.param("real", ("two polytopes",), marks=pytest.mark.slow), ("float32", ("boxes", "wide, lemmas"))])
def test_no_mutant_of_a_few_is_a_false_proof(arithmetic: str, names: tuple[str, ...], tmp_path: Path) -> None:
    some = [s for s in chosen(arithmetic) if s.name.rsplit(", ", 1)[0] in names]
    found = [o for s in some for o in outcomes(s, tmp_path, 1, 1)]
    assert wrong(found) == []
    assert len(found) >= 80 and {"bound", "cover", "form", "bytes", "hash", "harmless"} == {o.verdict for o in found}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("arithmetic", ["real", "float32"])
def test_no_mutant_of_thousands_is_a_false_proof(arithmetic: str, seed: int, tmp_path: Path) -> None:
    found = [o for s in subjects(seed, arithmetic) for o in outcomes(s, tmp_path, seed, 2)]
    assert wrong(found) == [] and len(found) > 1500


def test_a_mutant_that_is_accepted_is_accepted_by_rationals_too(tmp_path: Path) -> None:
    subject = next(s for s in subjects(0, "real") if s.name.startswith("two polytopes") and s.true)
    where = files(subject.net, subject.claims, tmp_path)
    kept = [(m.kind, judged(m.where, m.certificate, Exact()).verdict) for m in battery.mutants(subject, where, 3, 1)
            if judged(m.where, m.certificate).verdict == "accepted"]
    assert len(kept) >= 5 and {verdict for _, verdict in kept} == {"accepted"}, kept


# A checker with a hole. Each changes one thing in a module that it is given, and says where the hole should show.


def without_noise(patch: pytest.MonkeyPatch) -> None:
    right = bound.proved

    def bare(problem: Any, rows: Any, *rest: Any) -> np.ndarray:
        return right(replace(problem, noise=0 * problem.noise), replace(rows, slack=0 * rows.slack), *rest)

    patch.setattr(bound, "proved", bare)


def small_errors(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(RUNTIMES, "float32", Runtime(u=2.0**-34))


def without_b(patch: pytest.MonkeyPatch) -> None:
    right = bound.proved
    patch.setattr(bound, "proved", lambda problem, *rest, **named: right(replace(problem, b=0 * problem.b), *rest, **named))


def one_percent(patch: pytest.MonkeyPatch) -> None:
    right = bound.proved

    def tighter(*given: Any, **named: Any) -> np.ndarray:
        value = right(*given, **named)
        return value + 0.01 * abs(value)

    patch.setattr(bound, "proved", lambda *given, **named: tighter(*given, **named) + 1e-6)


def narrow_intervals(patch: pytest.MonkeyPatch) -> None:
    right = bound.minimum
    patch.setattr(bound, "minimum", lambda kind, c, nu, lower, upper: right(kind, c, nu, 0.99 * lower, 0.99 * upper))


def gap(patch: pytest.MonkeyPatch) -> None:
    right = case.narrowed
    apart = lambda paths: [[(e, sign, point + 0.05 * sign) for e, sign, point in path] for path in paths]  # noqa: E731
    patch.setattr(case, "narrowed", lambda lower, upper, paths: right(lower, upper, apart(paths)))


def one_side_only(patch: pytest.MonkeyPatch) -> None:
    right = bound.minimum
    patch.setattr(bound, "minimum", lambda kind, c, nu, lower, upper: np.maximum(right(kind, c, nu, lower, lower), right(kind, c, nu, upper, upper)))


def skipped_child(patch: pytest.MonkeyPatch) -> None:
    right = case._Leaves.bounds

    def lenient(self: Any, leaf: Record, part: list) -> list:
        found = right(self, leaf, part)
        return [*found[:-1], np.inf] if len(found) > 1 else found

    patch.setattr(case._Leaves, "bounds", lenient)


def without_cover(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(check, "covered", lambda *_: None)


def without_hashes(patch: pytest.MonkeyPatch) -> None:
    right = check.load_onnx
    patch.setattr(check, "load_onnx", lambda path: replace(right(path), digest=HASH[0]))


def any_number(patch: pytest.MonkeyPatch) -> None:
    right = Record.array

    def forgiving(self: Record, name: str, types: str, shape: tuple) -> np.ndarray:
        return abs(right(self, name, types, shape)) if name in ("weight", "beta") else right(self, name, types, shape)

    patch.setattr(Record, "array", forgiving)


def thin_inputs(patch: pytest.MonkeyPatch) -> None:
    right = reduce.reduce

    def smaller(graph: Any, statement: Any, *rest: Any) -> Any:
        middle = (statement.lower + statement.upper) / 2
        lower, upper = (middle + 0.99 * (side - middle) for side in (statement.lower, statement.upper))
        return right(graph, replace(statement, lower=lower, upper=upper), *rest)

    patch.setattr(case, "reduce", smaller)


def free_sums(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rounding, "gamma", lambda k, u: 0.0)


def no_underflow(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rounding, "TINY", 0.0)


def free_weights(patch: pytest.MonkeyPatch) -> None:
    right = bound.Problem.weighted

    def bare(self: Any, weight: np.ndarray) -> Any:
        return replace(right(self, weight), slack=self.arithmetic.array(weight) @ self.rows.slack)

    patch.setattr(bound.Problem, "weighted", bare)


def any_size(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reduce, "LARGEST", np.inf)


HASH = [""]

HOLES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "the noise dropped": (without_noise, "float32 traps"),
    "errors of a runtime a thousand times too small": (small_errors, "float32 traps"),
    "constants of neurons dropped": (without_b, "twins"),
    "bounds one percent too high": (one_percent, "twins"),
    "intervals one percent too narrow": (narrow_intervals, "twins"),
    "a gap between the sides of a split": (gap, "twins"),
    "the larger end of an interval": (one_side_only, "twins"),
    "a child of a split skipped": (skipped_child, "twins"),
    "the box one percent too small": (thin_inputs, "twins"),
    "the cover not checked": (without_cover, "mutants"),
    "the model's hash not compared": (without_hashes, "mutants"),
    "signs of weights ignored": (any_number, "mutants"),
    "sums said to be exact, seen in float32": (free_sums, "float32 traps"),
    "sums said to be exact, seen in float64": (free_sums, "120,000 rows in a sum, from below"),
    "underflow forgotten": (no_underflow, "an intermediate coefficient underflows, from 1"),
    "the rounding of weighted sums forgotten": (free_weights, "120,000 rows in a sum, from below"),
    "values of any size": (any_size, "an intermediate coefficient underflows, by 2^960"),
}


def is_red(place: str, folder: Path) -> bool:
    """Whether one part of the battery finds a false proof, or an acceptance that must never be."""
    if place == "float32 traps":
        some = [t for t in islice(FAMILIES["thresholds"](4), 12) if is_false(t, "float32") and t.real]
        return any(a == "float32" and j.verdict == "accepted" for t in some for a, j in verdicts(t, folder))
    if place in RANGES:
        return verdict(RANGES[place](), "real", folder).verdict == "accepted"
    for subject in (s for seed in (0, 1) for arithmetic in ("real", "float32") for s in subjects(seed, arithmetic)):
        where = files(subject.net, subject.claims, folder)
        if place == "twins":
            path = write(whole(where.head(subject.arithmetic), subject.parts, subject.cases), folder / "twin.cert")
            if not subject.true and judged(where, path).verdict == "accepted":
                return True
        elif subject.true and subject.name.startswith("two polytopes"):
            HASH[0] = where.head("real")[1]["model"][::-1]
            if wrong(list(outcomes(subject, folder, 0, 1))):
                return True
    return False


@pytest.mark.parametrize("hole", HOLES)
def test_a_hole_turns_the_battery_red(hole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, place = HOLES[hole]
    patch(monkeypatch)
    assert is_red(place, tmp_path)
