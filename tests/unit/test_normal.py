"""AST -> Spec: cases, polytopes and notes; the meaning itself is tested against the text's own truth in tests/property."""
from __future__ import annotations

import math

import pytest

from tests.formulas import box, declared
from verifier.errors import SpecError
from verifier.spec import normal
from verifier.spec.normal import load_vnnlib, normalize
from verifier.spec.spec import Spec
from verifier.spec.vnnlib1 import parse_vnnlib1


def spec_of(n_in: int, n_out: int, *assertions: str) -> Spec:
    return normalize(parse_vnnlib1(declared(n_in, n_out, *assertions)))


def test_a_global_box_and_one_or_is_one_case() -> None:
    spec = spec_of(2, 3, *box(2), "(or (and (>= Y_0 Y_2)) (and (>= Y_1 Y_2) (<= Y_1 0.5)))")
    (case,) = spec.cases
    assert case.lower.tolist() == [-2, -2] and case.upper.tolist() == [2, 2]
    first, second = case.polytopes
    assert first.output.tolist() == [[-1, 0, 1]] and first.offset.tolist() == [0] and first.input is None
    assert second.output.tolist() == [[0, -1, 1], [0, 1, 0]] and second.offset.tolist() == [0, 0.5]


def test_boxes_in_disjuncts_become_cases_and_equal_boxes_share_one() -> None:
    spec = spec_of(
        1, 2, *box(1),
        "(or (and (<= X_0 0) (<= Y_0 1)) (and (>= X_0 1) (<= Y_0 2)) (and (<= X_0 0) (<= Y_0 3)) (and (<= X_0 5) (<= Y_1 4)))",
    )
    assert [(c.lower[0], c.upper[0], len(c.polytopes)) for c in spec.cases] == [(-2, 0, 2), (1, 2, 1), (-2, 2, 1)]
    assert [p.offset[0] for p in spec.cases[0].polytopes] == [1, 3]


def test_asserts_after_an_or_hold_for_every_disjunct() -> None:
    (case,) = spec_of(1, 2, "(or (<= Y_0 1) (<= Y_1 2))", *box(1), "(>= Y_0 -9)").cases
    assert [p.offset.tolist() for p in case.polytopes] == [[9, 1], [9, 2]]


def test_two_ors_multiply() -> None:
    (case,) = spec_of(1, 2, *box(1), "(or (<= Y_0 1) (<= Y_0 2))", "(or (<= Y_1 3) (<= Y_1 4))").cases
    assert [p.offset.tolist() for p in case.polytopes] == [[1, 3], [1, 4], [2, 3], [2, 4]]


def test_rows_over_several_inputs_and_mixed_rows() -> None:
    ((polytope,),) = (c.polytopes for c in spec_of(2, 1, *box(2), "(<= (+ X_0 X_1) 1)", "(>= (- Y_0 (* 2 X_1)) 3)").cases)
    assert polytope.output.tolist() == [[0], [-1]] and polytope.input.tolist() == [[1, 1], [0, 2]] and polytope.offset.tolist() == [1, -3]


def test_a_disjunct_without_outputs_is_reached_by_any_point_of_its_box() -> None:
    ((polytope,),) = (c.polytopes for c in spec_of(1, 2, *box(1)).cases)
    assert not polytope.output.any() and polytope.offset.tolist() == [0]


@pytest.mark.parametrize(
    ("bound", "lower", "upper"),
    [
        ("(<= (* 3 X_0) 1)", -2, 1 / 3),
        ("(>= (- X_0) 1)", -2, -1),
        ("(< 0.5 X_0)", 0.5, 2),
        ("(= X_0 0.25)", 0.25, 0.25),
        ("(<= (+ X_0 X_0 1) (/ 6 4))", -2, 0.25),
        ("(not (> X_0 1))", -2, 1),
        ("(<= -1 X_0 1)", -1, 1),
        ("(<= (- (* 2 X_0) X_0) 1.5)", -2, 1.5),
        ("(and (<= 1 2) (<= X_0 X_0) (<= X_0 0))", -2, 0),
    ],
)
def test_bounds_of_one_input_in_any_guise(bound: str, lower: float, upper: float) -> None:
    (case,) = spec_of(1, 1, *box(1), bound, "(<= Y_0 0)").cases
    assert (case.lower[0], case.upper[0]) == (lower, upper)


@pytest.mark.parametrize(
    ("assertions", "note"),
    [
        ((*box(1), "(>= X_0 3)"), "X_0 has lower bound 3 above upper bound 2"),
        ((*box(1), "(or (and (<= X_0 -3) (<= Y_0 0)) (and (>= X_0 2.5) (<= Y_0 0)))"), "X_0 has lower bound -2 above upper bound -3"),
        ((*box(1), "(<= 2 1)"), "contradict"),
        ((*box(1), "false"), "contradict"),
    ],
)
def test_contradictions_leave_no_case_and_a_note(assertions: tuple[str, ...], note: str) -> None:
    spec = spec_of(1, 1, *assertions)
    assert spec.cases == () and note in spec.note


def test_empty_disjuncts_are_dropped_and_the_others_stay() -> None:
    spec = spec_of(1, 1, *box(1), "(or (and (<= X_0 -3) (<= Y_0 0)) (and (<= X_0 0) (<= Y_0 0)))")
    assert len(spec.cases) == 1 and spec.note == ""


def test_integers() -> None:
    def loaded(*assertions: str) -> Spec:
        return normalize(parse_vnnlib1("(declare-const X_0 Int)(declare-const Y_0 Int)" + "".join(f"(assert {a})" for a in assertions)))

    fixed = loaded("(>= X_0 0.5)", "(<= X_0 1.5)", "(<= Y_0 0)")
    assert fixed.cases[0].lower.tolist() == fixed.cases[0].upper.tolist() == [1] and "Y_0 is declared Int" in fixed.note
    assert loaded("(>= X_0 0.25)", "(<= X_0 0.75)").cases == ()
    with pytest.raises(SpecError, match="X_0 as Int with several values, 0 to 1"):
        loaded("(>= X_0 0)", "(<= X_0 1)")


def test_blow_ups_are_refused_quickly() -> None:
    choices = [f"(or (<= Y_0 {k}) (>= Y_0 {k + 1}))" for k in range(40)]
    with pytest.raises(SpecError, match="more than 20,000 disjuncts"):
        spec_of(1, 1, *box(1), *choices)


def test_a_hundred_thousand_boxes_are_no_blow_up(monkeypatch: pytest.MonkeyPatch) -> None:
    disjuncts = " ".join(f"(and (>= X_0 {k}) (<= X_0 {k + 1}) (<= Y_0 {k}))" for k in range(3000))
    assert len(spec_of(1, 1, f"(or {disjuncts})").cases) == 3000
    monkeypatch.setattr(normal, "MAX_DISJUNCTS", 2999)
    with pytest.raises(SpecError, match="2,999"):
        spec_of(1, 1, f"(or {disjuncts})")


def test_sums_of_constants_round_once() -> None:
    (case,) = spec_of(1, 1, "(<= X_0 (+ 0.1 0.2 0.3))", "(>= X_0 (- 0.1 0.2 0.3))", "(<= Y_0 0)").cases
    assert case.upper[0] == math.fsum((0.1, 0.2, 0.3)) != 0.1 + 0.2 + 0.3
    assert case.lower[0] == math.fsum((0.1, -0.2, -0.3))


@pytest.mark.parametrize(("n_in", "n_out", "sizes"), [(3, 1, "2 inputs"), (2, 4, "1 outputs")])
def test_sizes_must_be_the_networks(tmp_path, n_in: int, n_out: int, sizes: str) -> None:
    path = tmp_path / "p.vnnlib"
    path.write_text(declared(2, 1, *box(2), "(<= Y_0 0)"))
    assert load_vnnlib(path, 2, 1).n_in == 2
    with pytest.raises(SpecError, match=sizes):
        load_vnnlib(path, n_in, n_out)


def test_shared_properties_are_read(shared) -> None:
    """Every public instance has a box and at least one polytope; the largest, of a hundred megabytes of text, are read elsewhere."""
    paths = [path for path in sorted((shared / "vnncomp").glob("*/*.vnnlib.gz")) if path.stat().st_size < 80_000]
    specs = [load_vnnlib(path) for path in paths]
    assert len(specs) > 50
    assert all(case.polytopes and (case.lower <= case.upper).all() for s in specs for case in s.cases) and all(s.cases for s in specs)
