"""BOXS records: weighted sums prove what no row proves alone, boxes that fail are halved, and what no halving proves is a failure."""
from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.mlp import Mlp
from tests.small_certificates import check_case
from tests.soundness.exact_truth import Net, smallest
from tests.soundness.nets import random_mlp, random_residual, save
from verifier.certificate import boxes as at_work
from verifier.certificate.arithmetic import ROUNDED, RUNTIMES
from verifier.certificate.case import Case
from verifier.certificate.schema import Record
from verifier.graph.ir import Graph
from verifier.graph.onnx_load import load_onnx


def case(offset: float) -> tuple[Graph, Record]:
    """y = (x, -x) on [-1, 1] with both rows y_i <= offset: reached iff offset >= 0, and the sum of the rows says 0 <= 2 offset."""
    arrays = {
        "lower": -np.ones(1), "upper": np.ones(1), "output": np.eye(2), "offset": np.full(2, offset),
        "neuron": np.zeros((0, 2), np.int32), "kept": np.zeros(0, np.uint32),
    }
    return Mlp(((np.array([[1.0], [-1.0]]), np.zeros(2)),)).graph(), Record("CASE", {"rows": [2], "nodes": []}, arrays)


def boxes(weight: list[float] | None) -> Record:
    tree = {"tree": np.array([-1], np.int32), "point": np.zeros(1)}
    return Record("BOXS", {}, tree if weight is None else tree | {"weight": np.array([weight], np.float32)})


@pytest.mark.parametrize("claim", ["real", "float32"])
@pytest.mark.parametrize(
    ("offset", "weight", "proved"), [(-0.1, [1.0, 1.0], True), (-0.1, [1.0, 0.2], False), (0.1, [1.0, 1.0], False), (-0.1, None, False)]
)
def test_rows_are_summed_by_their_weights(
    offset: float, weight: list[float] | None, proved: bool, claim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_work, "DEEPEST", 0)
    graph, stated = case(offset)
    failures = check_case(graph, [stated, boxes(weight)], claim)
    assert [(failure.polytope, failure.tree, failure.leaf) for failure in failures] == ([] if proved else [(0, 0, 0)])
    assert all(failure.bound <= 0 for failure in failures)


@pytest.mark.parametrize("claim", ["real", "float32"])
@pytest.mark.parametrize(("offset", "proved"), [(-0.1, True), (0.0, False), (0.1, False)])
def test_what_a_box_does_not_prove_its_halves_may(offset: float, proved: bool, claim: str) -> None:
    """On either half of [-1, 1] one of the rows says it alone."""
    graph, stated = case(offset)
    failures = check_case(graph, [stated, boxes(None)], claim)
    assert bool(failures) is not proved


@pytest.mark.parametrize(
    ("offset", "split", "deepest", "proved"),
    [(-0.01, 1000.0, 0, True), (-0.01, None, 0, False), (-0.01, None, 12, True), (0.0, 1000.0, 12, False), (-1e-6, 1000.0, 0, False),
     (-1e-6, 1000.0, 12, True), (-1e-6, None, 12, False)],
)
def test_a_runtimes_errors_are_those_of_the_boxes(
    offset: float, split: float | None, deepest: int, proved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """y = relu(x) on [0, 1e6] is off by half in float32 somewhere, by less than a thousandth below 1000: y <= offset is excluded box by box."""
    monkeypatch.setattr(at_work, "DEEPEST", deepest)
    graph = Mlp(((np.ones((1, 1)), np.zeros(1)), (np.ones((1, 1)), np.zeros(1)))).graph()
    arrays = {
        "lower": np.zeros(1), "upper": np.full(1, 1e6), "output": np.ones((1, 1)), "offset": np.full(1, offset),
        "neuron": np.zeros((0, 2), np.int32), "kept": np.zeros(0, np.uint32),
    }
    tree = [-1] if split is None else [0, -1, -1]
    record = Record("BOXS", {}, {"tree": np.array(tree, np.int32), "point": np.array([split or 0.0, 0.0, 0.0][:len(tree)])})
    failures = check_case(graph, [Record("CASE", {"rows": [1], "nodes": []}, arrays), record], "float32")
    assert [failure.leaf for failure in failures] == ([] if proved else [0])
    assert all(failure.by_errors for failure in failures if offset < 0)


def test_an_input_that_was_a_constant_in_between_keeps_its_ends() -> None:
    """x_1 + c y >= 1 is reached at x_1 = 1, x_0 = 0 with y = -|x_0|. Beside 64 thin inputs a thin slab of x_1 makes constants of them all, until the

    network is reduced again: their ends are no other input's.
    """
    n, c = 67, 2.0**-8
    graph = Mlp(((np.eye(1, n) * [[1.0], [-1.0]], np.zeros(2)), (-np.ones((1, 2)), np.zeros(1)))).graph()
    thin = np.ones(64)
    arrays = {
        "lower": np.concatenate([[-1.0, 0.0], thin, [-2.0]]), "upper": np.concatenate([[1.0, 1.0], thin + 2.0**-23, [-1.0]]),
        "output": np.full((1, 1), -c), "input": -np.eye(1, n, 1), "offset": -np.ones(1),
        "neuron": np.zeros((0, 2), np.int32), "kept": np.zeros(0, np.uint32),
    }
    tree = Record("BOXS", {}, {"tree": np.array([1, -1, -1], np.int32), "point": np.array([1 - 2e-7, 0.0, 0.0])})
    assert [failure.leaf for failure in check_case(graph, [Record("CASE", {"rows": [1], "nodes": []}, arrays), tree], "float32")] == [1]


def truth(seed: int) -> tuple[Net, float, np.ndarray]:
    """A network, the least of a row of its outputs over [-1, 1]^n, rounded up, and the row."""
    net = random_residual(seed) if seed % 3 == 0 else random_mlp(seed, (2, 5, 4, 2))
    row = np.random.default_rng(seed).integers(-3, 4, net.n_out).astype(float) + 0.5
    least, _ = smallest(net, [Fraction(-1)] * net.n_in, [Fraction(1)] * net.n_in, [Fraction(v) for v in row.tolist()])
    return net, float(np.nextafter(float(least), np.inf)), row


def random_tree(random: np.random.Generator, n: int, splits: int) -> Record:
    """Splits at random points: outside of what is left of a box too, so that some leaves are empty."""
    what, point, open_nodes = [], [], 1
    while open_nodes:
        is_split = splits > 0 and random.uniform() < 0.6
        splits, open_nodes = splits - is_split, open_nodes + (1 if is_split else -1)
        what.append(int(random.integers(n)) if is_split else -1)
        point.append(float(random.uniform(-1.2, 1.2)) if is_split else 0.0)
    return Record("BOXS", {}, {"tree": np.array(what, np.int32), "point": np.array(point)})


@pytest.mark.parametrize("together", [1, 4, 64])
@pytest.mark.parametrize("claim", ["real", "float32"])
@pytest.mark.parametrize("seed", range(12))
def test_boxes_prove_what_is_true_and_nothing_else(
    seed: int, claim: str, together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A polytope that is reached by a hair fails over a random tree, whatever is halved; one that is missed by a twentieth does not."""
    monkeypatch.setattr(at_work, "_together", lambda problem: together)
    net, least, row = truth(seed)
    tree = random_tree(np.random.default_rng(seed), net.n_in, 30)
    for offset, proved in ((least, False), (least - 0.05 * (1 + abs(least)), True)):
        arrays = {
            "lower": -np.ones(net.n_in), "upper": np.ones(net.n_in), "output": row[None], "offset": np.array([offset]),
            "neuron": np.zeros((0, 2), np.int32), "kept": np.zeros(0, np.uint32),
        }
        failures = check_case(load_onnx(save(net, tmp_path / "net.onnx")), [Record("CASE", {"rows": [1], "nodes": []}, arrays), tree], claim)
        assert (not failures) == proved


def accepts_something_false(folder: Path) -> bool:
    """Whether a polytope that is reached by a hair is called excluded, for some network and tree, real or float32."""
    for seed in range(12):
        net, least, row = truth(seed)
        graph = load_onnx(save(net, folder / f"{seed}.onnx"))
        arrays = {
            "lower": -np.ones(net.n_in), "upper": np.ones(net.n_in), "output": row[None], "offset": np.array([least]),
            "neuron": np.zeros((0, 2), np.int32), "kept": np.zeros(0, np.uint32),
        }
        tree = random_tree(np.random.default_rng(seed), net.n_in, 30)
        if any(not check_case(graph, [Record("CASE", {"rows": [1], "nodes": []}, arrays), tree], claim) for claim in ("real", "float32")):
            return True
    return False


def smaller(boxes: at_work.Boxes) -> at_work.Boxes:
    middle = (boxes.lower + boxes.upper) / 2
    return replace(boxes, lower=(boxes.lower + middle) / 2, upper=(boxes.upper + middle) / 2)


SABOTAGES = {
    "nothing": (at_work.Boxes, "hull", lambda found: found),
    "half of the halves": (at_work.Boxes, "halves", lambda found: found.take(slice(1, None, 2))),
    "halves that leave a gap": (at_work.Boxes, "halves", smaller),
    "halves that count as proved": (at_work.Boxes, "halves", lambda found: replace(found, open=found.open & False)),
    "a hull that is one corner": (at_work.Boxes, "hull", lambda ends: (ends[0], ends[0])),
    "a subtree without its last piece": (at_work.Boxes, "subtrees", lambda found: list(found)[:-1]),
    "neurons' bounds of less than the boxes": (at_work, "box_bounds", lambda found: (found[0] + 0.1, found[1] - 0.1, found[2])),
    "a network reduced over the boxes, which are less of it": (Case, "_anew", lambda found: (found[0], smaller(found[1]))),
}


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_a_broken_rule_of_boxes_accepts_something_false(sabotage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, change = SABOTAGES[sabotage]
    right = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: change(right(*args)))
    monkeypatch.setattr(at_work, "_together", lambda problem: 4)
    assert accepts_something_false(tmp_path) == (sabotage != "nothing")


def test_what_errors_take_is_known_before_a_search() -> None:
    """y = relu(x) on [0, 1e6] is off by a few roundings of 1e6 in float32, by nothing over the reals."""
    graph = Mlp(((np.ones((1, 1)), np.zeros(1)), (np.ones((1, 1)), np.zeros(1)))).graph()
    arrays = {
        "lower": np.zeros(1), "upper": np.full(1, 1e6), "output": np.ones((1, 1)), "offset": np.zeros(1),
        "neuron": np.zeros((0, 2), np.int32), "kept": np.zeros(0, np.uint32),
    }
    stated = Record("CASE", {"rows": [1], "nodes": []}, arrays)
    real, single = (Case(graph, stated, RUNTIMES[claim], ROUNDED, 0).lost() for claim in ("real", "float32"))
    assert real[0] < 1e-6 and 2.0**-24 * 1e6 < single[0] < 64 * 2.0**-24 * 1e6
