"""The checker's reader of properties against the verifier's: the same disjuncts, and what the verifier proves covers what the checker reads."""
from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import SHARED
from tests.formulas import box, declared, holds
from tests.property.test_vnnlib_fuzz import N_IN, N_OUT, NAMES, constants, points
from verifier.certificate import property as checked
from verifier.certificate.property import Form, Property, covered, read_property
from verifier.spec.normal import load_vnnlib
from verifier.spec.spec import Spec

Disjunct = tuple[tuple[float, ...], tuple[float, ...], frozenset]


def of_reader(prop: Property) -> set[Disjunct]:
    """(lower, upper, rows) of each disjunct, bounds rounded to nearest."""
    return {disjunct([(form, near) for form, (near, _) in (*prop.common.items(), *part.items())], prop.n_in) for part in prop.disjuncts}


def disjunct(rows: Iterable[tuple[Form, float]], n_in: int) -> Disjunct:
    """Bounds of single inputs, and the least offset of every other row that says something."""
    least: dict = {}
    for form, offset in rows:
        least[form] = min(offset, least.get(form, offset))
    upper, lower = ([float(sign * least.pop(((f"X_{i}", sign),), 10**9)) + 0.0 for i in range(n_in)] for sign in (1.0, -1.0))
    return tuple(lower), tuple(upper), frozenset((form, offset) for form, offset in least.items() if form)


def cases_of(spec: Spec) -> list:
    """The cases as a certificate states them: what a runtime receives for their boxes."""
    found = []
    for case in spec.cases:
        polytopes = [(p.output, p.offset, np.zeros((len(p.offset), spec.n_in)) if p.input is None else p.input) for p in case.polytopes]
        found.append((*case.received(), polytopes))
    return found


def of_spec(spec: Spec) -> set[Disjunct]:
    """The same of the verifier's cases."""
    found = set()
    for case, (_, _, polytopes) in zip(spec.cases, cases_of(spec)):
        box = [(((f"X_{i}", sign),), sign * end) for sign, ends in ((1.0, case.upper), (-1.0, case.lower)) for i, end in enumerate(ends.tolist())]
        found |= {disjunct([*box, *checked._rows_of(*polytope)], spec.n_in) for polytope in polytopes}
    return found


def complaints(path: Path) -> list[str]:
    """What the two readers do not agree on."""
    prop, spec = read_property(path), load_vnnlib(path)
    sizes = [] if (prop.n_in, prop.n_out) == (spec.n_in, spec.n_out) else ["sizes"]
    same = [] if of_reader(prop) == of_spec(spec) else ["disjuncts"]
    return [*sizes, *same, *filter(None, [covered(prop, cases_of(spec))])]


PROPERTIES = [path for path in sorted((SHARED / "vnncomp").rglob("*.vnnlib.gz")) if path.stat().st_size < 80_000]  # larger: minutes


@pytest.mark.parametrize("path", PROPERTIES[::6], ids=lambda p: p.name)
def test_properties_of_the_competition(shared: Path, path: Path) -> None:
    assert complaints(path) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", PROPERTIES, ids=lambda p: p.name)
def test_all_properties_of_the_competition(shared: Path, path: Path) -> None:
    assert complaints(path) == []


def formulas_of(comparisons: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Formulas of all that the readers take."""
    several = [
        lambda inner, head=head: st.builds(lambda parts: f"({head} {' '.join(parts)})", st.lists(inner, min_size=1, max_size=3))
        for head in ("and", "or")
    ]
    one, two = (lambda inner: st.builds("(not {})".format, inner)), (lambda inner: st.builds("(=> {} {})".format, inner, inner))
    leaves = st.one_of(comparisons, st.sampled_from(["true", "false"]))
    return st.recursive(leaves, lambda inner: st.one_of(*(some(inner) for some in (*several, one, two))), max_leaves=8)


operators, two = st.sampled_from(["<=", ">=", "<", ">", "="]), st.permutations(NAMES)
terms = st.recursive(
    st.one_of(st.sampled_from(NAMES), constants),
    lambda inner: st.one_of(*(st.builds(form.format, inner, inner) for form in ("(+ {} {})", "(- {} {})", "(- {})", "(+ {})", "(* {})")),
                            st.builds("(/ {} {})".format, inner, st.sampled_from(["4", "-0.5", "(* 2 -4)", "(/ 3 6)"])),
                            st.builds("(* {} {} {})".format, constants, inner, constants),
                            st.builds("(* {} {})".format, constants, inner), st.builds("(* {1} {0})".format, constants, inner)),
    max_leaves=4,
)  # fmt: skip
compared = st.builds("({} {} {})".format, operators, terms, terms)
chains = st.builds("({} {} {} {})".format, operators, terms, terms, terms)
plain = st.builds(
    lambda op, names, c, d, one: f"({op} {names[0]} {d})" if one else f"({op} (+ {names[0]} (* {c} {names[1]})) (- {d} {names[2]}))",
    operators, two, st.sampled_from(["2.5", "-0.75"]), constants, st.booleans(),
)  # fmt: skip


@settings(max_examples=120)
@given(parts=st.lists(formulas_of(plain), max_size=3))
def test_generated_properties(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    """Every comparison mentions a variable: of others, the checker's reader takes strict ones as non-strict, too."""
    path = tmp_path_factory.mktemp("fuzz") / "p.vnnlib"
    path.write_text(declared(N_IN, N_OUT, *box(N_IN), *parts))
    assert complaints(path) == []


@settings(max_examples=120)
@given(parts=st.lists(formulas_of(st.one_of(compared, chains)), max_size=3), seed=st.integers(0, 10**6))
def test_no_unsafe_point_is_lost(tmp_path_factory: pytest.TempPathFactory, parts: list[str], seed: int) -> None:
    path, text = tmp_path_factory.mktemp("fuzz") / "p.vnnlib", declared(N_IN, N_OUT, *box(N_IN), *parts)
    path.write_text(text)
    prop = read_property(path)
    for point in points(seed, generic=False):
        values = dict(zip(NAMES, point))
        inside = [all(said(form, values) <= Fraction(exact) for form, (_, exact) in (*prop.common.items(), *part.items())) for part in prop.disjuncts]
        assert any(inside) or not holds(text, values)


def said(form: tuple, values: dict[str, Fraction]) -> Fraction:
    return sum((Fraction(c) * values[name] for name, c in form), Fraction(0))


@settings(max_examples=150)
@given(parts=st.lists(formulas_of(st.one_of(compared, chains)), max_size=3))
def test_the_readers_take_the_same_language(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    """What one reads, the other reads, and what the verifier proves covers what the checker reads; constants of all kinds, too."""
    path = tmp_path_factory.mktemp("fuzz") / "p.vnnlib"
    path.write_text(declared(N_IN, N_OUT, *box(N_IN), *parts))
    spec = load_vnnlib(path)
    prop = read_property(path)
    assert covered(prop, cases_of(spec)) is None


WRITTEN = {
    "implications": ["(=> (<= X_0 0) (<= Y_0 0))", "(=> (and (<= Y_0 1) (not (<= Y_1 2))) false)"],
    "chains": ["(<= -1 X_0 0.5 1)", "(not (< -1 Y_0 Y_1 2))", "(>= Y_0 Y_1 X_0)", "(= Y_0 0.25 X_1)"],
    "divisions": ["(<= (/ Y_0 3) 0.1)", "(<= (/ (+ X_0 X_1) 2 2) (/ 1 3))", "(>= (* 2 (/ 1 7) X_0) (* 0.1 0.1))"],
    "truth": ["(or false (<= Y_0 0) (and true (<= Y_1 0)))", "true"],
    "false": ["false"],
    "symbols in bars": ["(<= |Y_0| 0.5)", "(or (<= |X_0| 0.5) (<= Y_1 |X_1|))"],
    "constants compared strictly": ["(or (< 1 1) (<= Y_0 0))", "(not (<= 2 2))"],
    "many equal ors": ["(or (<= Y_0 0) (<= Y_1 0))"] * 25,
    "duplicates": ["(or (<= Y_0 0) (<= Y_0 0))", "(<= Y_0 Y_1)", "(<= Y_0 Y_1)"],
    "contradictions": ["(or (and (<= X_0 -1) (>= X_0 1)) (>= X_0 3) (<= Y_0 0))"],
    "all contradictory": ["(or (<= X_0 -3) (>= X_0 3))"],
    "bounds that say nothing new": ["(or (and (>= X_0 -5) (<= Y_0 0)) (and (<= X_0 2) (<= Y_1 0)))"],
    "rows of one input": ["(<= (* 4 X_0) 3)", "(>= (- X_1) 0.125)", "(or (<= (+ X_0 X_0) 1) (= (- 0.5 X_1) 0.25))"],
    "one box, many rows": ["(or (and (<= Y_0 0) (<= Y_1 0)) (and (<= Y_0 -1) (>= Y_1 1)) (>= (+ Y_0 Y_1 (* -2 X_1)) 2.5))"],
    "many boxes": ["(or " + " ".join(f"(and (>= X_0 {i / 64}) (<= X_0 {(i + 1) / 64}) (<= Y_{i % 2} {i}))" for i in range(64)) + ")"],
    "product of pieces": [f"(or {' '.join(f'(and (>= X_{i} {k}) (<= X_{i} {k + 1}))' for k in range(-2, 2))})" for i in range(2)],
    "constants": ["(or (< 2 1) (<= Y_0 0))", "(<= 1 1)", "(not (or (<= 1 0) (<= Y_1 0)))"],
    "decimals": ["(<= (* 0.1 Y_0) 0.3)", "(or (<= X_0 0.1) (>= X_0 0.7))", "(<= (+ Y_0 (* 1e-1 Y_1)) 1e-17)"],
    "decimal arithmetic": ["(<= (+ Y_0 0.1) (* 0.3 3))", "(<= (* 3 X_0) 0.3)", "(<= (- (* 0.1 Y_1) (* Y_1 0.7)) 0.1)"],
    "infinitely many digits": ["(<= (* 3 Y_0) 1)", "(<= (* 0.3 X_0) 1)"],
    "nothing of the outputs": ["(<= X_0 0.5)"],
    "negation": ["(not (or (> Y_0 0.5) (not (< X_0 1))))", "(not (= Y_0 Y_1))", "(not (and (<= X_1 0) (<= Y_0 Y_1)))"],
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_properties(tmp_path: Path, name: str) -> None:
    path = tmp_path / "p.vnnlib"
    path.write_text(declared(N_IN, N_OUT, *box(N_IN), *WRITTEN[name]))
    assert complaints(path) == []
