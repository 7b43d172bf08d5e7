"""Counterexamples are what the property says to the letter, in numbers that the network's input can hold, and printed so that they replay."""
from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import verifier
from benchmarks.witness import witness_holds
from tests.formulas import holds
from tests.small_models import vnnlib
from verifier.attack.confirm import LateReplay, confirm, judge, numbers_within, replay_onnx, witness_text
from verifier.console import as_json
from verifier.spec.normal import load_vnnlib, normalize
from verifier.spec.vnnlib1 import parse_vnnlib1
from verifier.spec.write import to_vnnlib
from verifier.verdict import Reason, Status, Verdict

QUICK = verifier.Config(timeout_s=15)


def scaled(path: Path, dtype: type = np.float32, weight: float = 1.0, bias: float = 0.0) -> Path:
    """y = weight relu(x) + bias computed in a type, one input, one output."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    constants = [numpy_helper.from_array(np.array([[v]], dtype), name) for name, v in (("w", weight), ("b", bias))]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"]),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(name, kind, (1, 1)) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def verdict(folder: Path, *assertions: str, dtype: type = np.float32, weight: float = 1.0, bias: float = 0.0) -> Verdict:
    model, text = scaled(folder / "m.onnx", dtype, weight, bias), vnnlib(folder / "p.vnnlib", *assertions)
    answer = verifier.verify(verifier.load_onnx(model), load_vnnlib(text), QUICK)
    if answer.counterexample is not None:
        assert witness_holds(model, text, as_json(answer)["witness"]["x"])
        if not answer.counterexample.rounded:
            printed = dict(re.findall(r"\(([XY]_\d+) ([^\s()]+)\)", witness_text(answer.counterexample)))
            assert holds(text.read_text(), {name: Fraction(float(value)) for name, value in printed.items()})
    return answer


UNIT = ("(>= X_0 0.0)", "(<= X_0 1.0)")
TOUCHING = {
    "output": (*UNIT, "(> Y_0 1.0)"),
    "other than": ("(>= X_0 0.5)", "(<= X_0 0.5)", "(not (= Y_0 0.5))"),
    "input": ("(> X_0 1.0)", "(<= X_0 2.0)", "(<= Y_0 1.0)"),
    "both": ("(>= X_0 0.25)", "(< X_0 0.5)", "(>= Y_0 X_0)", "(>= Y_0 0.5)"),
    "negated": (*UNIT, "(not (<= Y_0 1.0))"),
    "mixed": (*UNIT, "(< Y_0 X_0)"),
    "below a decimal": ("(>= X_0 0)", "(<= X_0 0.1)", "(>= Y_0 0.10000000149011612)"),  # 0.1 as a float32, and a little more
}


@pytest.mark.parametrize("name", TOUCHING)
def test_what_only_touches_is_no_counterexample(tmp_path: Path, name: str) -> None:
    answer = verdict(tmp_path, *TOUCHING[name])
    assert answer.status is not Status.FALSIFIED
    assert answer.status is Status.VERIFIED or answer.reason in (Reason.TOUCHES, Reason.UNCONFIRMED, Reason.INCOMPLETE), answer.sentence


def test_touching_has_its_own_reason(tmp_path: Path) -> None:
    answer = verdict(tmp_path, *TOUCHING["output"])
    assert answer.reason is Reason.TOUCHES and "only touches" in answer.sentence


REACHED = {
    "output": (*UNIT, "(> Y_0 0.5)"),
    "thin": (*UNIT, "(> Y_0 0.9999)"),
    "by an ulp": (*UNIT, "(> Y_0 0.99999988079071044921875)"),
    "input": ("(> X_0 1.0)", "(<= X_0 2.0)", "(<= Y_0 1.0000002)"),
    "other than": (*UNIT, "(not (= Y_0 0.5))"),
    "touches in one disjunct": (*UNIT, "(or (> Y_0 1.0) (and (>= Y_0 1.0) (>= X_0 1.0)))"),
    "strict and closed": (*UNIT, "(>= Y_0 1.0)", "(> Y_0 0.5)"),
}


@pytest.mark.parametrize("name", REACHED)
def test_strictness_loses_no_counterexample(tmp_path: Path, name: str) -> None:
    assert verdict(tmp_path, *REACHED[name]).status is Status.FALSIFIED


THIN = ("(>= X_0 0.30000002)", "(<= X_0 0.30000003)")  # between two neighbouring float32


def test_a_double_network_has_double_counterexamples(tmp_path: Path) -> None:
    found = verdict(tmp_path, *THIN, "(>= Y_0 0.300000025)", dtype=np.float64).counterexample
    assert found.x.dtype == found.y.dtype == np.float64 and 0.300000025 <= found.x[0] <= 0.30000003


def test_a_float32_network_has_none_there(tmp_path: Path) -> None:
    answer = verdict(tmp_path, *THIN, "(>= Y_0 0.300000025)")
    assert (answer.status, answer.reason) == (Status.UNKNOWN, Reason.NO_NUMBER)
    assert verdict(tmp_path, *THIN, "(>= Y_0 0.4)").status is Status.VERIFIED


def test_a_fixed_input_is_rounded_and_that_is_said(tmp_path: Path) -> None:
    answer = verdict(tmp_path, "(= X_0 0.1)", "(>= Y_0 0.05)")
    assert answer.counterexample.x[0] == np.float32(0.1) and answer.counterexample.rounded == 1
    assert "1 fixed input stands at the nearest float32" in answer.sentence
    exact = verdict(tmp_path, "(= X_0 0.5)", "(>= Y_0 0.05)")
    assert exact.counterexample.rounded == 0 and "fixed" not in exact.sentence
    assert verdict(tmp_path, "(>= X_0 0.1)", "(<= X_0 0.10000000000000000000001)", "(>= Y_0 0.05)").reason is Reason.NO_NUMBER


def test_a_comparison_with_a_rounded_input_must_hold_either_way(tmp_path: Path) -> None:
    """y = x as received, 1.5e-9 above 0.1: y > x is true of the text's x and false of the network's."""
    assert verdict(tmp_path, "(= X_0 0.1)", "(> Y_0 X_0)").status is not Status.FALSIFIED


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_box_holds_the_largest_numbers_of_the_type(dtype: type) -> None:
    for text in ("0.1", "0.30000001192092895", "1e-7", "0.333251953125", "12.34567890123456789", "6e-8"):
        lows, highs = [(f"({op} X_0 {text})", "(<= X_0 100)") for op in (">=", ">")], [("(>= X_0 -1)", f"({op} X_0 {text})") for op in ("<=", "<")]
        for low, high in (*lows, *highs):
            assertions = "".join(f"(assert {a})" for a in (low, high, "(<= Y_0 0)"))
            case, = normalize(parse_vnnlib1("(declare-const X_0 Real)(declare-const Y_0 Real)" + assertions)).cases
            least, largest, lost = numbers_within(case, dtype)
            text_of = "(declare-const X_0 Real)" + assertions.replace("(assert (<= Y_0 0))", "")
            inside = [holds(text_of, {"X_0": Fraction(float(v))}) for v in (least[0], largest[0])]
            outside = [holds(text_of, {"X_0": Fraction(float(np.nextafter(v, dtype(s * np.inf))))}) for v, s in ((least[0], -1), (largest[0], 1))]
            assert least.dtype == dtype and not lost[0] and inside == [True, True] and outside == [False, False]


def test_half_precision_inputs(tmp_path: Path) -> None:
    model = scaled(tmp_path / "m.onnx", np.float16)
    case, = load_vnnlib(vnnlib(tmp_path / "p.vnnlib", "(>= X_0 0.1)", "(<= X_0 0.2)", "(<= Y_0 0.1001)")).cases
    found = confirm(np.array([0.1]), case, case.polytopes[0], replay_onnx(model))
    assert found.x.dtype == np.float16 and 0.1 <= float(found.x[0]) <= 0.1001


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_printed_reads_back(tmp_path: Path, dtype: type) -> None:
    """In the text, in JSON and as the benchmark reads it: the same numbers, to the last bit."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=50) * 10.0 ** rng.integers(-7, 5, 50)).astype(dtype), rng.normal(size=3).astype(dtype)
    found = verifier.verdict.Counterexample(x, y, 0.0)
    pairs = re.findall(r"\(([XY]_\d+) ([^\s()]+)\)", witness_text(found))
    assert np.array([float(v) for _, v in pairs]).astype(dtype).tobytes() == np.concatenate([x, y]).tobytes()
    shown = json.loads(json.dumps(as_json(Verdict(Status.FALSIFIED, Reason.REPLAYED, "", counterexample=found))["witness"]))
    assert np.array(shown["x"]).astype(dtype).tobytes() == x.tobytes() and np.array(shown["y"]).astype(dtype).tobytes() == y.tobytes()


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-12, 1.0, 1e12, 1e30])
@pytest.mark.parametrize("of", ["input", "output"])
def test_scaling_changes_no_verdict(tmp_path: Path, scale: float, of: str) -> None:
    """y = w x over [0, 1] times a power of ten, thresholds at 99 % (reached), at the maximum (strict: touched) and beyond."""
    x, weight = (scale, 1.0) if of == "input" else (1.0, scale)
    top = Fraction(float(np.float32(x))) * Fraction(float(np.float32(weight)))
    region = ("(>= X_0 0)", f"(<= X_0 {float(np.float32(x))!r})")
    assert verdict(tmp_path, *region, f"(>= Y_0 {float(top) * 0.99!r})", weight=weight).status is Status.FALSIFIED
    assert verdict(tmp_path, *region, f"(> Y_0 {float(top)!r})", weight=weight).status is not Status.FALSIFIED
    assert verdict(tmp_path, *region, f"(>= Y_0 {float(top) * 1.01!r})", weight=weight).status is not Status.FALSIFIED


@pytest.mark.parametrize("power", [-300, -160, -40, 0, 40, 150])
@pytest.mark.parametrize("norm", [1, 2])
def test_balls_are_exact_at_every_scale(power: int, norm: int) -> None:
    """Squares of such numbers under- and overflow a float64."""
    from verifier.attack.confirm import _in_ball
    from verifier.spec.spec import Ball

    size = 10.0**power
    ball = Ball(np.zeros(2), size, norm)
    assert _in_ball(np.array([size, 0.0]), ball) and not _in_ball(np.array([np.nextafter(size, np.inf), 0.0]), ball)
    assert not _in_ball(np.array([size * 100, 0.0]), ball) and not _in_ball(np.array([size, size * 1e-20]), ball)


def test_a_row_without_size_is_judged_exactly() -> None:
    """A violation of 1e-320 is a violation, one of 0 is none."""
    from verifier.spec.spec import Case, Polytope

    def at(offset: float, strict: bool = False) -> object:
        case = Case(np.zeros(1), np.ones(1), (Polytope(np.ones((1, 1)), np.array([offset]), None, np.array([strict])),))
        return judge(np.zeros(1), case, case.polytopes[0], lambda x: np.array([1e-320]))

    assert at(0.0) is Reason.UNCONFIRMED and at(1e-320, strict=True) is Reason.TOUCHES and at(1e-320).margin == 0


def test_a_late_replay_asks_the_file_for_its_type(tmp_path: Path) -> None:
    replay = LateReplay(verifier.load_onnx(scaled(tmp_path / "m.onnx", np.float64, 0.1)))
    assert replay.input_dtype == np.float64 and replay(np.array([1.0])).tolist() == [0.1]


@pytest.mark.parametrize("name", [*TOUCHING, *REACHED])
def test_strictness_survives_writing(tmp_path: Path, name: str) -> None:
    spec = load_vnnlib(vnnlib(tmp_path / "p.vnnlib", *(TOUCHING | {f"{k}": v for k, v in REACHED.items()})[name]))
    again = normalize(parse_vnnlib1(to_vnnlib(spec)))
    assert len(spec.cases) == len(again.cases)
    for one, other in zip(spec.cases, again.cases):
        assert all((a == b).all() for a, b in zip((one.lower, one.upper, *one.within), (other.lower, other.upper, *other.within)))
        kinds = [[None if p.strict is None else p.strict.tolist() for p in case.polytopes] for case in (one, other)]
        assert kinds[0] == kinds[1] and list(one.fixed) == list(other.fixed)
