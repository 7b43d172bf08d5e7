"""The VNN-LIB 1.0 reader: what it accepts, and the formulas it reads."""
from __future__ import annotations

import gzip
import time
from pathlib import Path

import pytest

from tests.formulas import box, declared
from verifier.errors import SpecError
from verifier.spec.vnnlib1 import MAX_DEPTH, And, Apply, Compare, Not, Number, Or, Variable, parse_vnnlib1, read_vnnlib1

X0, Y0, Y1 = Variable("X", 0), Variable("Y", 0), Variable("Y", 1)


def only_assert(formula: str):
    prop = parse_vnnlib1(declared(1, 2, formula))
    assert len(prop.asserts) == 1
    return prop.asserts[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(<= X_0 0.5)", ("<=", X0, Number(0.5, "0.5"))),
        ("(>= Y_0 Y_1)", (">=", Y0, Y1)),
        ("(<= 3 X_0)", ("<=", Number(3.0, "3"), X0)),
        ("(< X_0 1e-05)", ("<", X0, Number(1e-05, "1e-05"))),
        ("( >=\n X_0\t-.5E+2 )", (">=", X0, Number(-50.0, "-.5E+2"))),
        ("(= Y_0 +7.)", ("=", Y0, Number(7.0, "+7."))),
    ],
)
def test_comparisons(text: str, expected: tuple) -> None:
    assert only_assert(text)[:3] == expected


def test_nesting_keeps_its_shape() -> None:
    formula = only_assert("(or (and (<= X_0 1) (not (>= Y_0 2))) (=> (<= Y_1 0) (>= Y_1 Y_0)))")
    assert isinstance(formula, Or)
    conjunction, implication = formula.parts
    assert isinstance(conjunction, And) and isinstance(conjunction.parts[1], Not)
    assert isinstance(implication, Or) and isinstance(implication.parts[0], Not)
    assert conjunction.parts[0][:3] == ("<=", X0, Number(1.0, "1"))


def test_terms_and_chains() -> None:
    formula = only_assert("(<= 0 (+ (* 2 X_0) (- Y_0) (/ Y_1 4)) 1)")
    assert isinstance(formula, And) and all(isinstance(part, Compare) for part in formula.parts)
    total = formula.parts[0].right
    assert isinstance(total, Apply) and total.op == "+" and total.terms[0].terms == (Number(2.0, "2"), X0)


def test_declarations_in_any_order_and_both_forms() -> None:
    text = "(declare-fun Y_0 () Real)(declare-const X_1 Real)\n(declare-const X_0 Int) (assert (<= X_0 X_1))"
    prop = parse_vnnlib1(text)
    assert (prop.n_in, prop.n_out, prop.integers) == (2, 1, (X0,))


def test_comments_and_harmless_commands_are_skipped() -> None:
    text = "; (assert nonsense\n(set-logic QF_LRA)\n" + declared(1, 1, "(<= X_0 1) ; (not this\n") + "(check-sat)\n; the end"
    assert len(parse_vnnlib1(text).asserts) == 1


def test_a_gzip_file_is_unpacked_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "prop.vnnlib"
    path.write_bytes(gzip.compress(declared(2, 1, *box(2)).encode()))
    assert read_vnnlib1(path).n_in == 2


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("(declare-const X_0 Real)\n(declare-const Y_0 Real)\n  (assert (<= X_0 Z_9))\n", 3, 19),
        ("(declare-const X_0 Real)\n(assert (<= X_0 1))\n(assert\n (>= X_1 0))", 4, 6),
        ("(declare-const X_0 Real)\n(assert (<= X_0 1e999))", 2, 17),
        ("; comment\n   )", 2, 4),
        ("(assert\n   (or (<= 1 2)", 2, 4),
    ],
)
def test_errors_name_line_and_column(text: str, line: int, column: int) -> None:
    with pytest.raises(SpecError, match=rf"^prop, line {line}, column {column}: "):
        parse_vnnlib1(text, "prop")


def test_nesting_up_to_the_limit_is_read_and_beyond_refused() -> None:
    def nested(depth: int) -> str:
        return declared(1, 1, "(and " * depth + "(< X_0 1)" + ")" * depth)

    assert len(parse_vnnlib1(nested(MAX_DEPTH - 2)).asserts) == 1
    for depth in (MAX_DEPTH, 100_000):
        with pytest.raises(SpecError, match="nested deeper"):
            parse_vnnlib1(nested(depth))


def test_ten_megabytes_take_about_a_second() -> None:
    """Bounds of 90,000 inputs. The limit is ten times what one core needs, so that only a change of order fails."""
    lines = [text for i in range(90_000) for text in (f"(<= X_{i} 0.12345678901234)", f"(>= X_{i} -0.12345678901234)")]
    text = declared(90_000, 1, *lines)
    begin = time.process_time()
    prop = parse_vnnlib1(text)
    assert time.process_time() - begin < 10
    assert len(text) > 9e6 and len(prop.asserts) == 180_000


def test_quotations_are_one_word_and_bars_are_no_part_of_a_name() -> None:
    text = '(set-info :source "a) (assert (<= Y_0 -9)) (b ; ")(set-info :notes |" ) ;|)\n(declare-const |X_0| Real)(declare-const Y_0 Real)'
    assert parse_vnnlib1(text + "(assert (<= |X_0| 1))").asserts[0][1:3] == (X0, Number(1.0, "1"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(set-info :a |b)(assert (<= X_0 1))", "never closed"),
        ('(set-info :a "b)(assert (<= X_0 1))', "never closed"),
        ("(check-sat)(assert (<= X_0 1))", "behind check-sat"),
        ("(exit)(assert (or (<= X_0 1)))", "behind check-sat"),
        ("(assert (<= X_0 " + "1" * 1000 + "))", "too long"),
        ("(assert (<= X_0 1e-10000))", "too long"),
    ],
)
def test_what_is_not_read_is_said(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse_vnnlib1("(declare-const X_0 Real)(declare-const Y_0 Real)" + text)


def test_gzip_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b" " * 2**26))
    with pytest.raises(SpecError, match="bytes of text"):
        read_vnnlib1(path)
