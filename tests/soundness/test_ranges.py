"""Numbers at the ends of what floats hold, sums too long for gamma_k, constants folded with rounding: false claims that a careless checker accepts.

Each claim is false by far more than any rounding that the checker accounts for, and its certificate was accepted by a checker that overlooked one
thing: a gamma_k that turns negative, a coefficient that underflows to 0, a multiplier that overflows, the roundings of a sum of many rows, or those
of what is folded before the checker sees it. It may be rejected, or refused in a sentence; never accepted.
"""
from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.small_certificates import case
from tests.soundness.handmade import Part
from tests.soundness.proofs import Files, Judgement, judged, whole, write
from verifier.certificate.arithmetic import RUNTIMES, Exact, Rounded, Runtime, gamma
from verifier.certificate.schema import Record
from verifier.errors import VerifierError

MODES = ("real", "float32", "exact")
MEMORY = 300 * 2**20


@dataclass(frozen=True)
class Range:
    """A network of one output, one false claim about it, and records that seem to prove it. `modes`: in which the claim is false."""

    nodes: Sequence[onnx.NodeProto]
    constants: dict[str, np.ndarray]
    lower: float
    upper: float
    text: str
    parts: tuple[Part, ...]
    modes: tuple[str, ...] = MODES
    shape: tuple[int, ...] = (1, 1)

    def files(self, folder: Path) -> Files:
        ends = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", self.shape), ("y", None))]
        graph = helper.make_graph(list(self.nodes), "range", ends[:1], ends[1:], [numpy_helper.from_array(v, k) for k, v in self.constants.items()])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, folder / "range.onnx")
        box = f"(assert (>= X_0 {self.lower!r}))(assert (<= X_0 {self.upper!r}))"
        (folder / "range.vnnlib").write_text(f"(declare-const X_0 Real)(declare-const Y_0 Real){box}{self.text}")
        return Files(folder / "range.onnx", folder / "range.vnnlib")


def parts(*records: Record) -> tuple[Part, ...]:
    return tuple((r.kind, r.fields, r.arrays) for r in records)


def chain(scales: Sequence[float], relus: Sequence[int] = ()) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """x times each scale in turn, in a MatMul each, with a ReLU named h0, h1, ... after those at the positions `relus`."""
    nodes, constants, value = [], {}, "x"
    for k, scale in enumerate(scales):
        constants[f"w{k}"] = np.array([[scale]], np.float32)
        nodes.append(helper.make_node("MatMul", [value, f"w{k}"], [f"v{k}"]))
        value = f"v{k}"
        if k in relus:
            nodes.append(helper.make_node("Relu", [value], [f"h{relus.index(k)}"], name=f"h{relus.index(k)}"))
            value = f"h{relus.index(k)}"
    nodes[-1].output[0] = "y"
    return nodes, constants


def at_most(value: float) -> str:
    return f"(assert (<= Y_0 {value!r}))"


def at_least(value: float) -> str:
    return f"(assert (>= Y_0 {value!r}))"


def long_sum(length: int) -> Range:
    """The sum of `length` copies of x in [1, 1.1] is at most 1.1 length."""
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=numpy_helper.from_array(np.ones(1, np.float32))),
             helper.make_node("Mul", ["x", "ones"], ["v"]), helper.make_node("ReduceSum", ["v", "axes"], ["y"], keepdims=1)]
    most = 3.0 * length
    return Range(nodes, {"shape": np.array([1, length]), "axes": np.array([1])}, 1.0, 1.1, at_most(most), parts(case([1.0], [1.1], [[1.0]], [most])))


def underflow(scales: Sequence[float], relu: int) -> Range:
    """relu(x), reaching 1, by scales whose product on the way is no float64."""
    nodes, constants = chain(scales, [relu])
    return Range(nodes, constants, -1.0, 1.0, at_least(0.5), parts(case([-1.0], [1.0], [[-1.0]], [-0.5])), ("real", "exact"))


def denormal_coefficient(scales: Sequence[float], offset: str) -> Range:
    """7.4e-324 y >= 5.9e-324 y_max: the float nearest to the coefficient is off by a third, so that it seems to reach no more than 4.9e-324 y_max."""
    nodes, constants = chain(scales)
    assert Fraction("7.4e-324") * Fraction(float(np.float32(scales[0]))) ** len(scales) > Fraction(offset)
    row = parts(case([0.0], [1.0], [[-float("7.4e-324")]], [-float(offset)]))
    return Range(nodes, constants, 0.0, 1.0, f"(assert (>= (* 7.4e-324 Y_0) {offset}))", row, ("real", "exact"))


def overflowing_multiplier(exponent: int) -> Range:
    """relu(1e-152 x) grown to relu(x): nu W reaches 1e152 * 10^exponent, and infinity times a positive bound hides what it multiplies."""
    nodes, constants = chain([1e-38] * 4 + [1e38] * 4 + [1.0], [3, 7])
    made = case([1.0], [2.0], [[1.0]], [100.0])
    made.fields["nodes"] = ["h0", "h1"]
    made.arrays["neuron"], made.arrays["kept"] = np.array([[0, 0], [1, 0]], np.int32), np.array([0, 1], np.uint32)
    numbers = {"target": np.array([[0]], np.int32), "columns": np.array([0, 1], np.uint32), "tree": np.array([-1], np.int32)}
    leaf = Record("LEAF", {}, {"nu": np.array([[0.0, 10.0**exponent]])})
    return Range(nodes, constants, 1.0, 2.0, at_most(100.0), parts(made, Record("TREE", {"target": "polytopes"}, numbers), leaf), ("real", "exact"))


def many_rows(side: int, count: int = 120_000, modes: tuple[str, ...] = ("real", "float32"), point: float = 0.374) -> Range:
    """y = point holds of all rows, y <= point many times and y >= point once, weighted so that rounding their sum decides."""
    nodes, constants = chain([1.0])
    weight, sign = np.full(count, 2.0**-52), np.full(count, float(side))
    weight[0], weight[-1], sign[-1] = 1, 1 + (count - 2) * 2.0**-52, -side
    made = case([-1.0], [1.0], sign[:, None], sign * point)
    made.fields["rows"] = [count]
    numbers = {"target": np.array([[0]], np.int32), "columns": np.zeros(0, np.uint32), "tree": np.array([-1], np.int32)}
    leaf = Record("LEAF", {}, {"nu": np.zeros((1, 0)), "weight": weight[None]})
    made_of = parts(made, Record("TREE", {"target": "polytopes"}, numbers), leaf)
    return Range(nodes, constants, -1.0, 1.0, at_most(point) + at_least(point), made_of, modes)


def folded_difference() -> Range:
    """x + ((2^24 + 1) - 2^24) is x + 1 over the reals; folded in float32 it is x."""
    nodes = [helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Sub", ["c", "a"], ["d"]), helper.make_node("Add", ["x", "d"], ["y"])]
    constants = {"a": np.array([[2.0**24]], np.float32), "b": np.array([[1.0]], np.float32)}
    return Range(nodes, constants, 0.0, 0.1, at_least(0.5), parts(case([0.0], [0.1], [[-1.0]], [-0.5])), ("real", "exact"))


def folded_sum() -> Range:
    """2^24 + 1 + 1 + ...: from the left float32 stays at 2^24, in another order it counts the ones."""
    length = 2**16
    terms = np.ones((1, length), np.float32)
    terms[0, 0] = 2.0**24
    assert np.add.accumulate(terms[0], dtype=np.float32)[-1] == 2.0**24
    nodes = [helper.make_node("ReduceSum", ["a", "axes"], ["d"], keepdims=1), helper.make_node("Add", ["x", "d"], ["y"])]
    middle = 2.0**24 + length / 2
    made = parts(case([0.0], [0.1], [[1.0]], [middle]))
    return Range(nodes, {"a": terms, "axes": np.array([1])}, 0.0, 0.1, at_most(middle), made, ("float32",))


def folded_product() -> Range:
    """alpha weight of a Gemm: the claim lies between the product and what float32 makes of it."""
    alpha, weight = float(np.float32(1 / 3)), float(np.float32(1.1))
    true, rounded = Fraction(alpha) * Fraction(weight), Fraction(float(np.float32(alpha * weight)))
    middle = float((true + rounded) / 2)
    assert true != rounded
    nodes = [helper.make_node("Gemm", ["x", "w", "c"], ["y"], alpha=alpha)]
    sign = 1.0 if rounded > true else -1.0
    made = parts(case([1.0], [1.0], [[sign]], [sign * middle]))
    constants = {"w": np.array([[weight]], np.float32), "c": np.zeros(1, np.float32)}
    return Range(nodes, constants, 1.0, 1.0, at_most(middle) if sign > 0 else at_least(middle), made, ("real", "exact"))


def cancelling_offset(size: float) -> Range:
    """beta - mean scale of a BatchNormalization, `size` each: what float64 leaves of their difference is off by more than any output's rounding."""
    one = {name: np.array([value], np.float32) for name, value in (("g", 3.0), ("m", size), ("v", 7.0))}
    with localcontext() as context:
        context.prec = 80
        number = {name: Decimal(float(value[0])) for name, value in one.items()}
        shift = number["m"] * number["g"] / (number["v"] + Decimal(float(np.float32(1e-5)))).sqrt()
        one["b"] = np.array([float(shift)], np.float32)
        true = Decimal(float(one["b"][0])) - shift
        scale = np.float64(3.0) / np.sqrt(np.float64(7.0) + np.float64(np.float32(1e-5)))
        loaded = float(np.float64(one["b"][0]) - np.float64(one["m"][0]) * scale)
        middle = float((Decimal(loaded) + true) / 2)
        off = Decimal(loaded) - true
    assert abs(off) > 1e3
    sign = 1.0 if off > 0 else -1.0
    nodes = [helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"])]
    made = parts(case([0.0], [1.0], [[sign]], [sign * middle]))
    return Range(nodes, one, 0.0, 1.0, at_most(middle) if sign > 0 else at_least(middle), made)


def pooled_padding() -> Range:
    """A window that holds nothing but padding: the runtime says -3.4e38 whatever x is."""
    nodes = [helper.make_node("MaxPool", ["x"], ["v"], kernel_shape=[2], dilations=[2], pads=[1, 1]), helper.make_node("Flatten", ["v"], ["y"])]
    return Range(nodes, {}, 1.0, 2.0, at_most(0.5), parts(case([1.0], [2.0], [[1.0]], [0.5])), shape=(1, 1, 1))


def comb(kind: str, depth: int = 4000) -> Range:
    """relu(x) reaches 1; a tree that cuts one thin slice off after another, so that its leaves' paths have 8 million cuts in all."""
    nodes, constants = chain([1.0, 1.0], [0])
    made, tree = case([-1.0], [1.0], [[-1.0]], [-0.5]), np.array([0, -1] * depth + [-1], np.int32)
    points = np.linspace(-1, 1, len(tree))
    if kind == "boxes":
        return Range(nodes, constants, -1.0, 1.0, at_least(0.5), parts(made, Record("BOXS", {}, {"tree": tree, "point": points})))
    made.fields["nodes"], made.arrays["neuron"], made.arrays["kept"] = ["h0"], np.zeros((1, 2), np.int32), np.zeros(1, np.uint32)
    numbers = {"target": np.array([[0]], np.int32), "columns": np.zeros(1, np.uint32), "tree": tree, "point": points}
    leaf = Record("LEAF", {}, {"nu": np.zeros((depth + 1, 1))})
    return Range(nodes, constants, -1.0, 1.0, at_least(0.5), parts(made, Record("TREE", {"target": "polytopes"}, numbers), leaf))


RANGES: dict[str, Callable[[], Range]] = {
    "an intermediate coefficient underflows, by 2^960": lambda: underflow([2.0**120] * 8 + [2.0**-120] * 10 + [2.0**120] * 2, 7),
    "an intermediate coefficient underflows, from 1": lambda: underflow([1.0] + [2.0**-90] * 12 + [2.0**90] * 12, 0),
    "a property's coefficient is denormal, an output 1e300": lambda: denormal_coefficient([1e30] * 10, "5.9e-24"),
    "a property's coefficient is denormal, an output 1e24": lambda: denormal_coefficient([1e24], "5.9e-300"),
    "a multiplier of 1e157": lambda: overflowing_multiplier(157),
    "a multiplier of 1e200": lambda: overflowing_multiplier(200),
    "120,000 rows in a sum, from above": lambda: many_rows(1),
    "120,000 rows in a sum, from below": lambda: many_rows(-1),
    "a hundred rows in a sum": lambda: many_rows(-1, 100, MODES),
    "a folded difference": folded_difference,
    "a folded sum": folded_sum,
    "a folded product": folded_product,
    "an offset of 5e20 that cancels": lambda: cancelling_offset(5e20),
    "an offset of 1e30 that cancels": lambda: cancelling_offset(1e30),
    "a window of padding": pooled_padding,
}


def verdict(made: Range, mode: str, folder: Path) -> Judgement:
    where = made.files(folder)
    path = write(whole(where.head("float32" if mode == "float32" else "real"), made.parts), folder / "range.cert")
    return judged(where, path, Exact() if mode == "exact" else Rounded())


@pytest.mark.parametrize("name", RANGES)
def test_a_claim_at_the_end_of_a_range_is_not_proved(name: str, tmp_path: Path) -> None:
    made = RANGES[name]()
    said = {mode: verdict(made, mode, tmp_path) for mode in made.modes}
    assert [mode for mode, judgement in said.items() if judgement.verdict == "accepted"] == [], said
    assert all(" is not proved" in judgement.sentence for judgement in said.values() if judgement.verdict == "rejected")


def attempt(made: Range, folder: Path) -> str:
    return verdict(made, "float32", folder).verdict


@pytest.mark.parametrize("share", [0.6, 1.0 - 2.0**-7, 1.0, 2.0, 100.0])
def test_a_sum_too_long_for_a_format_is_not_proved(share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """k u near 1 and beyond, at a format of 10 bits: as float32 is with 2^24 terms."""
    monkeypatch.setitem(RUNTIMES, "float32", Runtime(u=2.0**-10))
    assert attempt(long_sum(int(share * 2**10)), tmp_path) != "accepted"
    assert attempt(long_sum(int(share * 2**10) - 8), tmp_path) != "accepted"


@pytest.mark.parametrize("u", [2.0**-24, 2.0**-53])
@pytest.mark.parametrize("share", [0.5, 1.0, 1.0 + 2.0**-20, 2.0, 2.0**20])
def test_gamma_is_never_too_small(share: float, u: float) -> None:
    """k u / (1 - k u) where that is positive; refused where it is not, or said to be without limit."""
    k = int(share / u)
    try:
        found = gamma(k, u)
    except VerifierError:
        found = np.inf
    assert found >= (k * u / (1 - k * u) if k * u < 1 else np.inf)


@pytest.mark.parametrize("kind", [pytest.param("boxes", marks=pytest.mark.slow), "neurons"])
def test_a_comb_of_splits_takes_little_memory(kind: str, tmp_path: Path) -> None:
    made = comb(kind)
    tracemalloc.start()
    try:
        judgement = verdict(made, "real", tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert judgement.verdict != "accepted" and peak < MEMORY, (peak, judgement)

