"""A property is covered only if every disjunct lies in a case; what the checker's reader does not read is one sentence."""
from __future__ import annotations

import gzip
import hashlib
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import verifier
from tests.formulas import declared
from verifier.certificate import property as reader
from verifier.certificate.property import Property, covered, property_digest, read_property
from verifier.errors import SpecError

UNIT = ("(>= X_0 0)", "(<= X_0 1)", "(>= X_1 0)", "(<= X_1 1)")


def read(tmp_path: Path, *assertions: str) -> Property:
    path = tmp_path / "p.vnnlib"
    path.write_text(declared(2, 2, *assertions))
    return read_property(path, 2, 2)


def polytope(*rows: tuple[list[float], float], inputs: list[list[float]] | None = None) -> tuple:
    output, offset = np.array([row for row, _ in rows], float).reshape(-1, 2), np.array([o for _, o in rows], float)
    return output, offset, np.zeros((len(rows), 2)) if inputs is None else np.array(inputs, float)


def case(*polytopes: tuple, lower: tuple = (0, 0), upper: tuple = (1, 1)) -> tuple:
    return np.array(lower, float), np.array(upper, float), polytopes


Y0, Y1, BOTH = ([1, 0], 0.5), ([0, 1], 0.5), ([1, 1], 0.5)
ONE = (*UNIT, "(<= Y_0 0.5)")


@pytest.mark.parametrize(
    ("assertions", "cases"),
    [
        (ONE, [case(polytope(Y0))]),
        (ONE, [case(polytope(Y0), lower=(-1, 0), upper=(1, 2))]),
        (ONE, [case(polytope(([1, 0], 0.6)))]),  # a larger polytope
        (ONE, [case(polytope(Y1)), case(polytope(Y1), polytope(Y0))]),
        ((*ONE, "(<= Y_1 0.5)"), [case(polytope(Y1))]),  # fewer rows
        ((*ONE, "(<= Y_1 0.5)"), [case(polytope(Y1, Y0))]),
        ((*ONE, "(<= Y_0 0.25)"), [case(polytope(([1, 0], 0.25)))]),
        (UNIT, [case(polytope(([0, 0], 0.0)))]),  # no rows at all
        ((*UNIT, "(<= (+ Y_0 Y_1) 0.5)", "(<= (- Y_0 X_1) 0)"), [case(polytope(BOTH, ([1, 0], 0), inputs=[[0, 0], [0, -1]]))]),
        ((*UNIT, "(>= X_0 2)"), []),  # no disjunct is left
        ((*UNIT, "(or (<= Y_0 0.5) (<= Y_1 0.5))"), [case(polytope(Y0)), case(polytope(Y1))]),
        ((*ONE, "(or (<= X_0 0.5) (>= X_0 0.25))"), [case(polytope(Y0), upper=(0.5, 1)), case(polytope(Y0), lower=(0.25, 0))]),
    ],
)
def test_covered(tmp_path: Path, assertions: tuple, cases: list) -> None:
    assert covered(read(tmp_path, *assertions), iter(cases)) is None


@pytest.mark.parametrize(
    ("assertions", "cases", "said"),
    [
        (ONE, [], "1 of 1 .* no case's box"),
        (ONE, [case(polytope(Y0), upper=(1, np.nextafter(1, 0)))], "no case's box"),
        (ONE, [case(polytope(Y0), lower=(np.nextafter(0, 1), 0))], "no case's box"),
        (ONE, [case(polytope(Y0), lower=(np.nan, 0))], "no case's box"),
        (ONE, [case(polytope(Y0), upper=(0.5, 1)), case(polytope(Y0), lower=(0.5, 0))], "no case's box"),  # one case must do
        (ONE, [case(polytope(([1, 0], np.nextafter(0.5, 0))))], "other rows"),
        (ONE, [case(polytope(([1, 0], np.nan)))], "other rows"),
        (ONE, [case(polytope(([2, 0], 1.0)))], "other rows"),
        (ONE, [case(polytope(([-1, 0], 0.5)))], "other rows"),
        (ONE, [case(polytope(Y0, inputs=[[1, 0]]))], "other rows"),
        (ONE, [case(polytope(Y0, Y1))], "other rows"),
        (ONE, [case(polytope(Y1)), case(polytope(Y0), lower=(0.5, 0))], "other rows"),
        (ONE, [case(polytope(([0, 0], -1.0)))], "other rows"),  # 0 <= -1 is reached nowhere
        ((*UNIT, "(or (<= Y_0 0.5) (<= Y_1 0.5))"), [case(polytope(Y0))], "2 of 2 .* other rows"),
        ((*ONE, "(or (<= X_0 0.5) (>= X_0 0.25))"), [case(polytope(Y0), upper=(0.5, 1))], "2 of 2 .* no case's box"),
        (("(>= X_0 0)", "(<= X_1 1)", "(<= Y_0 0.5)"), [case(polytope(Y0))], "no case's box"),  # unbounded
        (("(>= X_0 0)", "(<= X_0 0.1)", "(>= X_1 0)", "(<= X_1 1)"), [case(polytope(([0, 0], 0.0)), upper=(np.nextafter(0.1, 0), 1))], "box"),
    ],
)
def test_not_covered(tmp_path: Path, assertions: tuple, cases: list, said: str) -> None:
    sentence = covered(read(tmp_path, *assertions), iter(cases))
    assert sentence is not None
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(sentence)


def test_bounds_are_compared_as_rationals(tmp_path: Path) -> None:
    """0.3 lies above the float nearest to it, 0.1 below: a case that ends at the float contains only the second."""
    for text, number in (("0.3", 0.3), ("0.1", 0.1)):
        prop = read(tmp_path, *UNIT[1:], "(<= X_0 " + text + ")", "(>= X_0 0)", "(<= Y_0 0.5)")
        nearest = covered(prop, [case(polytope(Y0), upper=(number, 1))])
        assert (nearest is None) == (text == "0.1")
        assert covered(prop, [case(polytope(Y0), upper=(np.nextafter(number, 1), 1))]) is None


def test_many_boxes_and_many_rows_are_quick(tmp_path: Path) -> None:
    begin, count = time.process_time(), 500
    boxes = " ".join(f"(and (>= X_0 {i}) (<= X_0 {i + 1}) (>= X_1 0) (<= X_1 1) (<= Y_0 {i}))" for i in range(count))
    cases = [case(polytope(([1, 0], i)), lower=(i, 0), upper=(i + 1, 1)) for i in range(count)]
    prop = read(tmp_path, f"(or {boxes})")
    assert covered(prop, cases) is None
    assert "500 of 500" in str(covered(prop, cases[:-1]))
    rows = " ".join(f"(<= Y_0 {i})" for i in range(-count, 0))
    assert covered(read(tmp_path, *UNIT, f"(or {rows})"), [case(*(polytope(([1, 0], i)) for i in range(-count, 0)))]) is None
    assert time.process_time() - begin < 3


def without_negation(self, formula, negated, true=reader._Reader.union) -> list:
    return true(self, formula[1] if formula[0] == "not" else formula, negated)


SABOTAGE = {
    "an offset is forgotten": (reader, "_meets", lambda part, common: part.clear() is None, (*UNIT, "(or (>= X_0 0.5) (<= Y_0 0))")),
    "negation is forgotten": (reader._Reader, "union", without_negation, (*UNIT, "(not (<= Y_0 0.5))")),
    "only the first alternative": (
        reader._Reader, "product", lambda self, unions: [union[0] for union in unions], (*UNIT, "(or (<= Y_0 0) (<= Y_1 0))")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SABOTAGE)
def test_sabotage_of_the_reader_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    where, what, broken, assertions = SABOTAGE[name]
    whole = read(tmp_path, *assertions)
    monkeypatch.setattr(where, what, broken)
    again = read(tmp_path, *assertions)
    assert (again.common, again.disjuncts) != (whole.common, whole.disjuncts)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("(assert (<= X_0 1)", 3, "never closed"),
        ("(assert (<= X_0 1)))", 3, "is due"),
        ("(assert (<= X_0 one))", 3, "'one'"),
        ("\n(assert (<= X_9 1))", 4, "'X_9'"),
        ("(assert (<= X_0 1e99999))", 3, "'1e99999'"),
        ("(assert (<= X_0 1e999))", 3, "too large"),
        ("(assert (<= X_0 -1.3e30))", 3, "up to 2^100"),
        ("(assert (<= (* 1e-40 X_0) 1))", 3, "up to 2^100"),  # X_0 <= 1e40
        ("(assert (<= (+ Y_0 X_0) 1.3e30))", 3, "up to 2^100"),
        ("(assert (<= (* 1.3e30 Y_0) 1))", 3, "up to 2^100"),
        ("(assert (<= (* 1e-999 Y_0) 1))", 3, "too small"),
        ("(assert (<= (* 2.2e-308 Y_0) 1))", 3, "below 2^-1022"),
        ("(assert (<= (+ Y_0 (* -2.2e-308 X_0)) 1))", 3, "below 2^-1022"),
        ("(assert (<= (* 1e999 Y_0) 1))", 3, "too large"),
        ("(assert (<= X_0 " + "1" * 5000 + "))", 3, "no term"),
        ("(assert (<= (* X_0 Y_0) 1))", 3, "no product"),
        ("(assert (<= (/ 1 Y_0) 1))", 3, "no product"),
        ("(assert (<= (/ Y_0 0) 1))", 3, "quotient"),
        ("(assert (<= (/ Y_0) 1))", 3, "no term"),
        ("(assert (<= (*" + " 1e9999" * 10 + " Y_0) 1))", 3, "100,000 bits"),
        ("(assert (<= (+" + "".join(f" (/ 1 1{k:0400d}7)" for k in range(99)) + " Y_0) 1))", 3, "100,000 bits"),
        ("(assert (<= (exp Y_0) 1))", 3, "no term"),
        ("(assert (<= () 1))", 3, "no term"),
        ("(assert (<= (+) 1))", 3, "no term"),
        ("(assert (<= X_0))", 3, "no formula"),
        ("(assert (and))", 3, "no formula"),
        ("(assert (=> (<= X_0 0)))", 3, "no formula"),
        ("(assert (not true false))", 3, "no formula"),
        ("(assert (assert (<= X_0 1)))", 3, "inside another"),
        ("(declare-fun X_1 (Real) Real)", 3, "is due"),
        ("(check-sat)\n(assert (<= Y_0 -9))", 4, "behind check-sat"),
        ("(exit)\n(assert (<= Y_0 -9))", 4, "behind check-sat"),
        ("(push 1)", 3, "is due"),
        ('(set-info :source "a)\n(assert (<= Y_0 -9))', 3, "quotation is never closed"),
        ("(set-info :source |a)\n(assert (<= Y_0 -9))", 3, "quotation is never closed"),
        ("(assert (let ((a 1)) (<= X_0 a)))", 3, "no formula"),
        ("(assert Y_0)", 3, "no formula"),
        ("(assert)", 3, "is due"),
        ("()", 3, "is due"),
        ("(declare-const X_0 Real)", 3, "declared twice"),
        ("(declare-const X_01 Real)", 3, "X_i or Y_j is due"),
        ("(declare-const Z_0 Real)", 3, "X_i or Y_j is due"),
        ("(declare-const X_1 Bool)", 3, "is due"),
        ("(declare-network N)", 3, "is due"),
        ("(" * 5000, 3, "too deep"),
        (f"(assert {'(not ' * 300}(<= X_0 1){')' * 300})", 3, "too deep"),
        ("\n".join(f"(assert (or {' '.join(f'(<= (+ Y_0 (* {i} X_0)) 1)' for i in range(k, k + 300))}))" for k in (2, 302, 602)), 5, "multiplied"),
    ],
)
def test_what_is_not_read_is_one_sentence(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = tmp_path / "bad.vnnlib"
    path.write_text("(declare-const X_0 Real)\n(declare-const Y_0 Real)\n" + text)
    with pytest.raises(SpecError) as caught:
        read_property(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ") and said in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_commands_and_quotations_say_nothing(tmp_path: Path) -> None:
    """What a quotation holds is not read: not even an assert, or half a comment."""
    path = tmp_path / "p.vnnlib"
    quoted = '(set-info :source "a) (assert (<= Y_0 -9)) (b ; ")(set-info :notes |" ) ;|)'
    path.write_text(f"(set-logic QF_LRA)\n{quoted}\n(declare-fun X_0 () Real)(declare-const Y_0 Real)\n(assert (<= Y_0 1))(check-sat)(exit)\n")
    assert read_property(path, 1, 1) == Property(str(path), 1, 1, {(("Y_0", 1.0),): (1.0, 1)}, [{}])


def test_numbers_up_to_the_limits_are_read(tmp_path: Path) -> None:
    wide = ("(<= X_0 1.2e30)", "(>= (* 1e-999 X_0) 0)", "(<= (+ (* 2.3e-308 Y_0) (* 1.2e30 Y_1)) -1.2e30)", "(<= Y_0 1e-320)")
    prop = read(tmp_path, *UNIT[2:], *wide)
    numbers = {form: Fraction(exact) for form, (_, exact) in prop.common.items()}
    assert numbers[(("X_0", 1.0),)] == 12 * 10**29 and numbers[(("X_0", -1.0),)] == 0
    assert numbers[(("Y_0", 2.3e-308), ("Y_1", 1.2e30))] == -1.2e30 and numbers[(("Y_0", 1.0),)] == 1e-320


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"\x1f\x8b\x08", gzip.compress(b"x")[:-3], b"\x1f\x8b" + b"\x00" * 30])
def test_files_that_are_no_text_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad").write_bytes(data)
    for path in (tmp_path / "bad", tmp_path, tmp_path / "none", "\0"):
        with pytest.raises(SpecError) as caught:
            read_property(path)
        assert "\n" not in str(caught.value)


def test_another_network_is_named(tmp_path: Path) -> None:
    read(tmp_path, *UNIT)
    with pytest.raises(SpecError, match="2 inputs and 2 outputs, but the network 5 and 2"):
        read_property(tmp_path / "p.vnnlib", 5, 2)


def test_the_digest_is_of_the_unpacked_bytes(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a", tmp_path / "a.gz"
    plain.write_bytes(b"; text\n")
    packed.write_bytes(gzip.compress(b"; text\n"))
    assert property_digest(plain) == property_digest(packed) == hashlib.sha256(b"; text\n").hexdigest()


def test_a_gap_between_the_variables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.vnnlib").write_text("(declare-const X_1 Real)(declare-const Y_0 Real)(assert (<= X_1 0))")
    with pytest.raises(SpecError, match="without a gap"):
        read_property(tmp_path / "p.vnnlib")


FIXED = {"0.1": 0.1, "16777217": 16777217.0, "0.30000001192092895": 0.30000001192092895, "1e-50": 1e-50, "0": 0.0, "0.5": 0.5}


@pytest.mark.parametrize("text", FIXED)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_fixed_input_covers_what_a_runtime_receives(tmp_path: Path, text: str, dtype: type) -> None:
    """The hull of the real value and of its nearest number of the input type, and not an ulp of that type less."""
    prop = read(tmp_path, f"(= X_0 {text})", *UNIT[2:], "(<= Y_0 0.5)")
    with np.errstate(over="ignore"):
        exact, number = Fraction(text), float(np.float64(FIXED[text]).astype(dtype))
    if np.isinf(number):
        assert "no case's box" in str(covered(prop, [case(polytope(Y0), lower=(0, 0), upper=(1e9, 1))], dtype))
        return
    low, high = min(number, np.nextafter(FIXED[text], -1)), max(number, np.nextafter(FIXED[text], 1e9))
    assert covered(prop, [case(polytope(Y0), lower=(low, 0), upper=(high, 1))], dtype) is None
    if Fraction(number) < exact:
        assert covered(prop, [case(polytope(Y0), lower=(np.nextafter(number, 1e9), 0), upper=(high, 1))], dtype) is not None
    if Fraction(number) > exact:
        assert covered(prop, [case(polytope(Y0), lower=(low, 0), upper=(np.nextafter(number, -1), 1))], dtype) is not None


def test_a_wider_interval_is_not_widened(tmp_path: Path) -> None:
    prop = read(tmp_path, "(>= X_0 0.1)", "(<= X_0 0.1000000001)", *UNIT[2:], "(<= Y_0 0.5)")
    assert covered(prop, [case(polytope(Y0), lower=(np.nextafter(0.1, 0), 0), upper=(np.nextafter(0.1000000001, 1), 1))]) is None


def test_gzip_bombs_are_refused(tmp_path: Path) -> None:
    """A hundred megabytes from a hundred kilobytes; the cap is on what is unpacked, so that no more is ever in memory."""
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b" " * 2**26))
    with pytest.raises(SpecError, match="bytes of text"):
        read_property(path)


BOMBS = {
    "the same or again and again": [*UNIT, *["(or (<= Y_0 -1.0) (<= Y_1 -1.0))"] * 40],
    "bounds that nest": [*UNIT, *(f"(or (<= X_0 {0.5 + k / 1e6}) (<= X_1 {0.5 - k / 1e6}))" for k in range(19)), "(<= Y_0 -1)"],
}


@pytest.mark.parametrize("name", BOMBS)
def test_repetitions_do_not_multiply(tmp_path: Path, name: str) -> None:
    begin = time.process_time()
    assert len(read(tmp_path, *BOMBS[name]).disjuncts) < 500
    assert time.process_time() - begin < 3


def test_what_multiplies_is_refused_in_time(tmp_path: Path) -> None:
    begin = time.process_time()
    with pytest.raises(SpecError, match="multiplied out"):
        read(tmp_path, *UNIT, *(f"(or (<= Y_0 {k}) (>= Y_1 {k + 1}) (<= (+ Y_0 (* {k + 2} Y_1)) 1))" for k in range(60)))
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("assertions", "lower", "covers"),
    [
        (("(>= X_0 0.2)", "(<= X_0 1.8)"), 1.0, True),
        (("(>= X_0 1)", "(<= X_0 1.8)"), 1.0, True),
        (("(>= X_0 -0.5)", "(<= X_0 0.9)"), 0.0, True),
        (("(>= X_0 0.2)", "(<= X_0 1.8)"), 1.0 + 2.0**-52, False),
        (("(>= X_0 0.2)", "(or (<= X_0 0.8) (<= X_0 0.5))"), 5.0, True),  # no integer: empty
        (("(or (and (>= X_0 0.2) (<= X_0 1.2)) (and (>= X_0 1.5) (<= X_0 1.7)))",), 1.0, True),
        (("(or (and (>= X_0 0.2) (<= X_0 1.2)) (and (>= X_0 1.5) (<= X_0 2.7)))",), 1.0, False),
    ],
)
def test_an_int_input_lies_between_integers(tmp_path: Path, assertions: tuple, lower: float, covers: bool) -> None:
    path = tmp_path / "p.vnnlib"
    path.write_text(declared(2, 2, *assertions, "(>= X_1 0)", "(<= X_1 1)", "(<= Y_0 0.5)").replace("X_0 Real", "X_0 Int"))
    proved = (np.array([lower, 0.0]), np.array([max(lower, 1.0), 1.0]), [polytope(Y0)])
    assert (covered(read_property(path, 2, 2), [proved]) is None) == covers


def test_int_inputs_are_proved(tmp_path: Path) -> None:
    """The prover and the checker agree on what they are."""
    identity = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", 1, (1, 2))],
                                 [helper.make_tensor_value_info("y", 1, (1, 2))])  # fmt: skip
    onnx.save(helper.make_model(identity, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "n.onnx")
    path = tmp_path / "p.vnnlib"
    path.write_text(declared(2, 2, "(>= X_0 0.2)", "(<= X_0 1.8)", "(>= X_1 0)", "(<= X_1 1)", "(>= Y_0 1.5)").replace("X_0 Real", "X_0 Int"))
    assert verifier.verify(verifier.load_onnx(tmp_path / "n.onnx"), verifier.load_vnnlib(path, 2, 2)).status is verifier.Status.VERIFIED
