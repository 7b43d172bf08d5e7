"""The checker's reader of properties against the verifier's: the same disjuncts, and what the verifier proves covers what the checker reads."""
from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import SHARED
from tests.formulas import box, declared
from tests.property.test_vnnlib_fuzz import N_IN, N_OUT, formulas
from verifier.certificate import property as checked
from verifier.certificate.property import Property, covered, read_property
from verifier.spec.normal import load_vnnlib
from verifier.spec.spec import Spec

Disjunct = tuple[tuple[float, ...], tuple[float, ...], frozenset]


def of_reader(prop: Property) -> set[Disjunct]:
    """(lower, upper, rows) of each disjunct, bounds rounded to nearest."""
    found = set()
    for part in prop.disjuncts:
        bound = [Fraction(10**9)] * (2 * prop.n_in)
        for key, value in (*prop.common.bound.items(), *part.bound.items()):
            bound[key] = min(bound[key], value)
        lower, upper = tuple(float(-b) + 0.0 for b in bound[1::2]), tuple(float(b) + 0.0 for b in bound[::2])
        found.add((lower, upper, frozenset([*prop.common.rows, *part.rows])))
    return found


def cases_of(spec: Spec) -> list:
    """The cases as a certificate states them: boxes rounded outwards."""
    found = []
    for case in spec.cases:
        polytopes = [(p.output, p.offset, np.zeros((len(p.offset), spec.n_in)) if p.input is None else p.input) for p in case.polytopes]
        found.append((np.nextafter(case.lower, -np.inf), np.nextafter(case.upper, np.inf), polytopes))
    return found


def of_spec(spec: Spec) -> set[Disjunct]:
    """The same of the verifier's cases; a row without variables says nothing."""
    return {
        (tuple(case.lower + 0.0), tuple(case.upper + 0.0), frozenset(row for row in checked._rows_of(*polytope) if row[0]))
        for case, (_, _, polytopes) in zip(spec.cases, cases_of(spec))
        for polytope in polytopes
    }


def complaints(path: Path) -> list[str]:
    """What the two readers do not agree on."""
    prop, spec = read_property(path), load_vnnlib(path)
    sizes = [] if (prop.n_in, prop.n_out) == (spec.n_in, spec.n_out) else ["sizes"]
    same = [] if of_reader(prop) == of_spec(spec) else ["disjuncts"]
    return [*sizes, *same, *filter(None, [covered(prop, cases_of(spec))])]


PROPERTIES = sorted((SHARED / "vnncomp").rglob("*.vnnlib.gz"))


@pytest.mark.parametrize("path", PROPERTIES[::6], ids=lambda p: p.name)
def test_properties_of_the_competition(shared: Path, path: Path) -> None:
    assert complaints(path) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", PROPERTIES, ids=lambda p: p.name)
def test_all_properties_of_the_competition(shared: Path, path: Path) -> None:
    assert complaints(path) == []


@settings(max_examples=120)
@given(parts=st.lists(formulas, max_size=4))
def test_generated_properties(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "p.vnnlib"
    path.write_text(declared(N_IN, N_OUT, *box(N_IN), *parts))
    assert complaints(path) == []


WRITTEN = {
    "duplicates": ["(or (<= Y_0 0) (<= Y_0 0))", "(<= Y_0 Y_1)", "(<= Y_0 Y_1)"],
    "contradictions": ["(or (and (<= X_0 -1) (>= X_0 1)) (>= X_0 3) (<= Y_0 0))"],
    "all contradictory": ["(or (<= X_0 -3) (>= X_0 3))"],
    "bounds that say nothing new": ["(or (and (>= X_0 -5) (<= Y_0 0)) (and (<= X_0 2) (<= Y_1 0)))"],
    "rows of one input": ["(<= (* 4 X_0) 3)", "(>= (- X_1) (/ 1 8))", "(or (<= (+ X_0 X_0) 1) (= (- 0.5 X_1) 0.25))"],
    "one box, many rows": ["(or (and (<= Y_0 0) (<= Y_1 0)) (and (<= Y_0 -1) (>= Y_1 1)) (>= (+ Y_0 Y_1 (* -2 X_1)) 2.5))"],
    "many boxes": ["(or " + " ".join(f"(and (>= X_0 {i / 64}) (<= X_0 {(i + 1) / 64}) (<= Y_{i % 2} {i}))" for i in range(64)) + ")"],
    "product of pieces": [f"(or {' '.join(f'(and (>= X_{i} {k}) (<= X_{i} {k + 1}))' for k in range(-2, 2))})" for i in range(2)],
    "constants": ["(or (< 1 1) (<= Y_0 0))", "(<= 1 1)", "(or true (<= Y_1 0))"],
    "decimals": ["(<= (* 0.1 Y_0) 0.3)", "(or (<= X_0 0.1) (>= X_0 0.7))", "(<= (+ Y_0 (* 1e-1 Y_1)) 1e-17)"],
    "decimal arithmetic": ["(<= (+ Y_0 0.1) (* 0.3 3))", "(<= (* 3 X_0) 0.3)", "(<= (* (- 0.1 0.7) Y_1) (/ 0.1 3))"],
    "infinitely many digits": ["(<= (* 3 Y_0) 1)", "(<= (/ X_0 0.3) 1)"],
    "nothing of the outputs": ["(<= X_0 0.5)"],
    "negation": ["(not (or (> Y_0 0.5) (not (< X_0 1))))", "(not (= Y_0 Y_1))", "(not (=> (<= X_1 0) (<= Y_0 Y_1)))"],
    "chains": ["(<= -1 X_0 1)", "(not (<= -1 Y_0 1))"],
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_properties(tmp_path: Path, name: str) -> None:
    path = tmp_path / "p.vnnlib"
    path.write_text(declared(N_IN, N_OUT, *box(N_IN), *WRITTEN[name]))
    assert complaints(path) == []
