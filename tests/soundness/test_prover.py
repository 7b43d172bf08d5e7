"""The prover's own certificates: their mutants prove nothing false, and networks made to fool get none where the claim is false."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import verifier
from tests.soundness import prover
from tests.soundness.battery import Outcome, Subject, mutants, outcomes
from tests.soundness.proofs import files, judged, whole, write
from tests.soundness.test_mutations import wrong
from tests.soundness.test_traps import FAMILIES, is_false
from tests.soundness.traps import Trap


def by_kind(subject: Subject) -> set[str]:
    return {kind for kind, _, _ in subject.parts}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("arithmetic", ["real", "float32"])
def test_no_mutant_of_the_provers_certificates_is_a_false_proof(arithmetic: str, seed: int, tmp_path: Path) -> None:
    found: list[Outcome] = []
    for subject in prover.subjects(seed, arithmetic, tmp_path / "proved"):
        where = files(subject.net, subject.claims, tmp_path / "whole")
        path = write(whole(where.head(arithmetic), subject.parts, subject.cases), tmp_path / "whole.cert")
        assert judged(where, path).verdict == ("accepted" if subject.true else "rejected")
        found += outcomes(subject, tmp_path / "mutants", seed, 1)
    assert wrong(found) == [] and len(found) > 400
    assert {"alpha: replaced", "beta: replaced", "boxes: a node dropped"} <= {o.kind for o in found}


@pytest.mark.slow
def test_no_mutant_of_a_tree_by_neurons_is_a_false_proof(tmp_path: Path) -> None:
    subject = next(made for made in pairs_by_neurons(tmp_path / "proved"))
    found = [o for s in subject for o in outcomes(s, tmp_path / "mutants", 0, 1)]
    assert wrong(found) == [] and len(found) > 60
    assert {"alpha: replaced", "beta: negative", "beta: replaced", "tree: a coordinate that is not"} <= {o.kind for o in found}


def pairs_by_neurons(folder: Path) -> Iterator[tuple[Subject, Subject]]:
    """Subjects whose trees split neurons, with their twins."""
    for name, net, true, false in prover.pairs(1):
        if name == "residual":
            with prover.by_neurons():
                found = prover.prove(files(net, [true], folder), "float32")
            subject = Subject(name, net, (true,), True, "float32", found.parts)
            assert "TREE" in by_kind(subject)
            yield subject, prover.twin(subject, (false,))


@pytest.mark.parametrize(("op", "seed"), [("Sigmoid", 0), ("Tanh", 1)])
def test_no_mutant_of_a_smooth_network_proves_what_a_sample_breaks(op: str, seed: int, tmp_path: Path) -> None:
    made = prover.smooth(tmp_path, seed, op, "float32")
    assert made.parts
    path = tmp_path / "mutant.cert"
    original = judged(made.true, write(whole(made.true.head("float32"), made.parts), path))
    subject = Subject(op, None, (), False, "float32", made.false_parts)  # type: ignore[arg-type]
    said = [(m.kind, judged(m.where, m.certificate)) for m in mutants(subject, made.false, seed, 1)]
    assert original.verdict == "accepted" and len(said) > 15
    assert [kind for kind, judgement in said if judgement.verdict == "accepted"] == []


def check_prover(trap: Trap, folder: Path, timeout_s: float) -> None:
    """`unsat` with a certificate is never said of a false claim."""
    for arithmetic in ("real", "float32") if trap.real else ("real",):
        certified = False
        try:
            certified = bool(prover.prove(files(trap.net, [trap.claim], folder, trap.text), arithmetic, timeout_s).parts)
        except verifier.VerifierError as error:  # numbers beyond a format are refused in a sentence
            assert any(word in str(error) for word in ("overflow", "infinite", "too long")), (trap.name, error)
        assert not (is_false(trap, arithmetic) and certified), (trap.name, arithmetic)


@pytest.mark.parametrize(("family", "every"), [("planted", 1), ("planted, fooling", 1), ("summation", 4), ("decimals", 1)])
def test_the_prover_certifies_no_false_claim(family: str, every: int, tmp_path: Path) -> None:
    tried = list(FAMILIES[family](2))[::every]
    assert len(tried) >= 2
    for trap in tried:
        check_prover(trap, tmp_path, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_prover_certifies_none_of_many(family: str, tmp_path: Path) -> None:
    tried = list(FAMILIES[family](8))
    assert tried
    for trap in tried:
        check_prover(trap, tmp_path, 2.0)
