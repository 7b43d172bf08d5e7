"""Every bad property file is refused by one sentence that says what was seen, where, and what to do."""
from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.formulas import box, declared
from verifier.errors import SpecError
from verifier.spec.normal import load_vnnlib


def asserting(*formulas: str) -> str:
    return declared(2, 2, *box(2), *formulas)


# text, what the sentence must say
TEXTS = {
    "empty": ("  \n\t", "is empty"),
    "prose": ("this is not a property", "'this' stands outside of all parentheses"),
    "unclosed": ("(declare-const X_0 Real", "never closed"),
    "closed twice": (asserting() + ")", "closes nothing"),
    "statement without command": ("((assert))", "starts with a command"),
    "empty list": ("()", "starts with a command"),
    "unknown command": ("(define-fun f () Real 1)", "'define-fun' is not part of VNN-LIB 1.0"),
    "second edition": ("(vnnlib-version <2.0>)", "this is VNN-LIB 2.0"),
    "second edition network": ("(declare-network N (declare-input X Real [1]))", "this is VNN-LIB 2.0"),
    "bad declaration": ("(declare-const X_0)", "not of the form (declare-const X_0 Real)"),
    "bad function": ("(declare-fun X_0 (Real) Real)", "not of the form (declare-fun X_0 () Real)"),
    "bad name": ("(declare-const Z_0 Real)", "'Z_0' is not a VNN-LIB variable"),
    "bad index": ("(declare-const X_01 Real)", "'X_01' is not a VNN-LIB variable"),
    "huge index": ("(declare-const X_99999999999999999999 Real)", "is not a VNN-LIB variable"),
    "bad sort": ("(declare-const X_0 Bool)", "the sort 'Bool' of X_0 is unknown"),
    "declared twice": ("(declare-const X_0 Real)(declare-const X_0 Real)", "X_0 is declared twice"),
    "declared twice otherwise": ("(declare-const X_0 Real)(declare-fun X_0 () Real)", "X_0 is declared twice"),
    "no outputs": ("(declare-const X_0 Real)", "declares no outputs"),
    "no inputs": ("(declare-const Y_0 Real)", "declares no inputs"),
    "gap": ("(declare-const X_0 Real)(declare-const X_3 Real)(declare-const Y_0 Real)", "declares X_3 but not X_1"),
    "far gap": ("(declare-const X_999999999 Real)(declare-const Y_0 Real)", "declares X_999999999 but not X_0"),
    "undeclared": (asserting("(<= X_2 1)"), "X_2 is not declared: add (declare-const X_2 Real)"),
    "undeclared on the right": (asserting("(<= Y_0 Y_2)"), "Y_2 is not declared"),
    "undeclared inside a term": (asserting("(<= (+ Y_0 Y_7) 1)"), "Y_7 is not declared"),
    "misspelt": (asserting("(<= Y_0 y_1)"), "'y_1' is neither a number nor a declared variable"),
    "python number": (asserting("(<= Y_0 1_000)"), "'1_000' is neither"),
    "other digits": (asserting("(<= Y_0 \u0661)"), "is neither a number"),
    "nan": (asserting("(<= Y_0 nan)"), "nan is not a finite number"),
    "infinite": (asserting("(<= X_0 -inf)"), "-inf is not a finite number"),
    "overflow": (asserting("(<= X_0 1e999)"), "1e999 is not a finite number"),
    "overflow of a product": (asserting("(<= (* 1e300 Y_0) (* 1e300 1e300))"), "too large for a 64-bit float"),
    "underflow": (asserting("(<= (* 1e-300 1e-300 Y_0) Y_1)"), "too small for a 64-bit float"),
    "nonlinear": (asserting("(<= (* X_0 Y_1) 1)"), "X_0 * Y_1 is not linear"),
    "square": (asserting("(<= (* X_0 X_0) 1)"), "X_0 * X_0 is not linear"),
    "division by a variable": (asserting("(<= (/ 1 X_1) 1)"), "division by X_1 is not linear"),
    "division by zero": (asserting("(<= (/ X_1 (- 2 2)) 1)"), "divides by zero"),
    "division of nothing": (asserting("(<= (/ X_1) 1)"), "'/' has 1 terms"),
    "unknown function": (asserting("(<= (sin X_0) 1)"), "a term starts with 'sin'"),
    "term without operator": (asserting("(<= (X_0) 1)"), "a term starts with 'X_0'"),
    "one term": (asserting("(<= X_0)"), "'<=' has 1 terms"),
    "no assertion": (asserting("") + "(assert)", "'assert' takes one formula, this one has 0"),
    "two formulas": (declared(1, 1) + "(assert (<= X_0 1) (>= X_0 0))", "'assert' takes one formula, this one has 2"),
    "empty and": (asserting("(and)"), "'and' has no formulas"),
    "empty or": (asserting("(or)"), "'or' has no formulas"),
    "not of two": (asserting("(not (<= X_0 1) (<= X_0 2))"), "'not' has 2 formulas: it takes one"),
    "implication of one": (asserting("(=> (<= X_0 1))"), "'=>' has 1 formulas: it takes two"),
    "unknown connective": (asserting("(xor (<= X_0 1) (<= X_0 2))"), "a formula starts with 'xor'"),
    "distinct": (asserting("(distinct Y_0 Y_1)"), "a formula starts with 'distinct'"),
    "variable as formula": (asserting("Y_0"), "'Y_0' is no formula"),
    "comparison of comparisons": (asserting("(<= (<= X_0 1) 1)"), "a comparison stands where a number is expected"),
    "comparison outside": ("(declare-const X_0 Real)(<= X_0 1)", "outside of an assert"),
    "assert inside": ("(declare-const X_0 Real)(assert (and (assert (<= X_0 1))))", "inside another"),
    "no lower bound": (declared(2, 1, "(>= X_0 0)", "(<= X_0 1)", "(<= X_1 1)"), "gives X_1 no lower bound"),
    "no upper bound": (declared(2, 1, "(>= X_0 0)", "(>= X_1 0)", "(<= X_1 1)"), "gives X_0 no upper bound"),
    "unbounded disjunct": (declared(1, 1, "(or (and (<= 0 X_0) (<= X_0 1)) (and (<= X_0 3) (<= Y_0 1)))"), "gives X_0 no lower bound"),
    "bounded by a sum only": (declared(2, 1, *box(1), "(<= (+ X_0 X_1) 1)", "(>= X_1 0)"), "gives X_1 no upper bound"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_bad_text(tmp_path: Path, name: str) -> None:
    text, expected = TEXTS[name]
    path = tmp_path / "bad.vnnlib"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_vnnlib(path)
    sentence = str(caught.value)
    assert expected in sentence
    assert sentence.startswith(str(path)) and sentence.endswith(".") and "\n" not in sentence


GOOD = declared(1, 1, *box(1), "(<= Y_0 0)").encode()

# bytes, what the sentence must say
FILES = {
    "not UTF-8": (b"\xff\xfe\x00binary", "is not text"),
    "zero bytes": (b"", "is empty"),
    "empty gzip": (gzip.compress(b""), "is empty"),
    "cut gzip": (gzip.compress(GOOD * 50)[:-20], "ends too early"),
    "gzip with a damaged body": (gzip.compress(GOOD)[:12] + b"\x00\xff\x07" + gzip.compress(GOOD)[15:], "gzip"),
    "gzip with a wrong checksum": (gzip.compress(GOOD)[:-8] + b"\0" * 8, "cannot be read"),
    "cut text": (GOOD[:-5], "never closed"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_file(tmp_path: Path, name: str) -> None:
    data, expected = FILES[name]
    path = tmp_path / "bad.vnnlib.gz"
    path.write_bytes(data)
    with pytest.raises(SpecError) as caught:
        load_vnnlib(path)
    assert expected in str(caught.value) and str(caught.value).startswith(str(path))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="does not exist"):
        load_vnnlib(tmp_path / "absent.vnnlib")
    with pytest.raises(SpecError, match="is a folder"):
        load_vnnlib(tmp_path)
    with pytest.raises(SpecError, match="is not a path"):
        load_vnnlib("a\0b")


def test_the_good_file_is_read(tmp_path: Path) -> None:
    """The bytes that the damaged files are made of are no error themselves."""
    path = tmp_path / "good.vnnlib"
    path.write_bytes(GOOD)
    assert len(load_vnnlib(path).cases) == 1
