"""What stands between a finished search and VERIFIED: the claims in their order, margins that are asked for, statements that are compared."""
from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import verifier
from tests.mlp import Mlp, near_truth, random_mlp, shifted
from tests.small_models import IN_UNIT, absolute_value, vnnlib
from verifier.acceptance import demand
from verifier.bab import driver
from verifier.bab.budget import Deadline
from verifier.bab.driver import Least, Oracle, Search, advance, start
from verifier.bab.input_split import InputSplitConfig, advance_boxes, input_search
from verifier.bab.log import LEAF
from verifier.certificate.boxes import BoxProof
from verifier.certificate.case import Case as Checked
from verifier.certificate.case import Failure
from verifier.certificate.emit import Table, case_record, proof_records
from verifier.certificate.gate import CaseGate, Gate
from verifier.cli import run
from verifier.config import BabConfig
from verifier.errors import UnsupportedError
from verifier.exact.highs import leaf_answer
from verifier.graph.ir import Graph
from verifier.reduced.bound import Effort
from verifier.reduced.build import build
from verifier.spec.spec import Case, Polytope, Spec
from verifier.verdict import Reason, Status

CANCELS = Mlp(((np.ones((2, 1)), np.zeros(2)), (np.array([[1e9, -1e9]]), np.ones(1))))
"""1e9 relu(x) - 1e9 relu(x) + 1: one over the reals, anything as float32 computes it."""
HALF = Spec((Case(np.array([0.5]), np.array([1.0]), (Polytope(np.ones((1, 1)), np.array([0.5])),)),), 1, 1)
QUICK = verifier.Config(timeout_s=10, attack=None, device="cpu")


def single(mlp: Mlp) -> Graph:
    return replace(mlp.graph(), arithmetic="float32")


@pytest.mark.parametrize(("arithmetic", "proved"), [("auto", "real"), ("real", "real"), ("float32", "")])
def test_the_strongest_claim_that_holds_is_told(arithmetic: str, proved: str) -> None:
    verdict = verifier.verify(single(CANCELS), HALF, replace(QUICK, arithmetic=arithmetic, timeout_s=3))
    assert (verdict.status is Status.VERIFIED) == bool(proved) and verdict.proved == proved
    assert bool(verdict.lacks) == (arithmetic == "auto")
    assert proved or verdict.reason in (Reason.REFUSED, Reason.TIMEOUT)
    assert "over the reals" in verdict.sentence or not proved


def test_json_says_what_is_proved_and_what_is_lacking(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [str(absolute_value(tmp_path / "abs.onnx")), str(vnnlib(tmp_path / "p.vnnlib", *IN_UNIT, "(<= Y_0 -0.5)"))]
    for arithmetic, proved in (("auto", "float32"), ("real", "real")):
        assert run(["verify", *files, "--json", "--arithmetic", arithmetic]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["verdict"], said["proved"], said["lacks"]) == ("unsat", proved, None)


def test_a_networks_own_arithmetic_only(tmp_path: Path) -> None:
    graph = verifier.load_onnx(absolute_value(tmp_path / "abs.onnx"))
    spec = verifier.load_vnnlib(vnnlib(tmp_path / "p.vnnlib", *IN_UNIT, "(<= Y_0 -0.5)"))
    with pytest.raises(verifier.VerifierError, match="computes in float32, so nothing is said of float64"):
        verifier.verify(graph, spec, replace(QUICK, arithmetic="float64"))


def test_nothing_is_verified_that_the_checker_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage of the checker: whatever the search has proved, one at a time or many at once."""
    monkeypatch.setattr(Checked, "failures", lambda case: [Failure(case.number, 0, 0, 0, -0.01)])
    graph, spec = single(random_mlp(0)), Spec((near_truth(random_mlp(0), 0, 1.0),), 3, 2)
    for verdict in (verifier.verify(graph, spec, QUICK), *verifier.verify_many(graph, [spec] * 3, replace(QUICK, timeout_s=2))):
        assert verdict.status is Status.UNKNOWN and verdict.reason in (Reason.REFUSED, Reason.TIMEOUT)


def gated(mlp: Mlp, case: Case, asked: Case) -> tuple[Search, CaseGate, Table]:
    """A search of `case` that has ended, and the gate of a property that asks for another case."""
    graph = single(mlp)
    problem = build(graph.to("cpu", torch.float64), case)
    search, table = Search(0, problem), Table.of(graph, problem.neuron)
    start(search, Effort(2))
    advance([search], BabConfig(batch=16), Oracle(lambda *offered: False, leaf_answer), Deadline.after(20))
    assert search.proved
    gate = Gate(graph, Spec((asked,), 3, 2))
    return search, CaseGate(gate, 0, case_record(case, table, 2, "float32"), Deadline.after(20)), table


@pytest.mark.parametrize("change", ["nothing", "box", "offset", "row", "fewer"])
def test_a_proof_of_another_case_is_none(change: str) -> None:
    mlp = random_mlp(1)
    case = near_truth(mlp, 1, 0.5)
    (polytope,) = case.polytopes
    asked = {
        "nothing": case, "box": replace(case, upper=case.upper + 1e-6), "fewer": replace(case, polytopes=(polytope, polytope)),
        "offset": replace(case, polytopes=(replace(polytope, offset=polytope.offset + 1e-9),)),
        "row": replace(case, polytopes=(replace(polytope, output=-polytope.output),)),
    }[change]
    search, gate, table = gated(mlp, case, asked)
    if change == "nothing":
        assert gate.failures(proof_records(table, search), "float32") == [] and gate.arithmetic == "float32"
        return
    with pytest.raises(UnsupportedError, match="another case"):
        gate.failures(proof_records(table, search), "float32")
    assert gate.accepted is None and gate.arithmetic == ""


@pytest.mark.parametrize(("margin", "weak"), [(0.015, False), (0.025, True)])
def test_bounds_exceed_what_is_demanded(margin: float, weak: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least value is 0.02: every leaf is above a smaller margin; with a larger one all are above zero, and the search is weak."""
    monkeypatch.setattr(driver, "PATIENCE_S", 0.0 if weak else 60.0)
    mlp = random_mlp(2, (3, 8, 7, 2))
    search = Search(0, build(mlp.graph().to("cpu", torch.float64), near_truth(mlp, 2, 0.02)))
    start(search, Effort(0))
    search.demand(torch.full_like(search.problem.margin, margin), time.monotonic(), time.monotonic() + 600)
    advance([search], BabConfig(batch=4, steps=1), Oracle(lambda *offered: False, leaf_answer), Deadline.after(60))
    assert search.proved and search.weak is weak
    closed = search.log.lower()[search.log.tree.arrays()[0] == LEAF]
    assert closed.min() > (0 if weak else margin)


def test_what_is_closed_within_a_demanded_margin_is_open_again() -> None:
    mlp = random_mlp(2, (3, 8, 7, 2))
    (polytope,) = near_truth(mlp, 2, 0.02).polytopes
    far = replace(near_truth(mlp, 2, 0.02), polytopes=(polytope, shifted(polytope, -9.0), shifted(polytope, -99.0)))
    search = Search(0, build(mlp.graph().to("cpu", torch.float64), far))
    start(search, Effort(0))
    assert search.frontier.open.row.tolist() == [0]
    search.demand(torch.full_like(search.problem.margin, 20.0), time.monotonic(), time.monotonic() + 600)
    assert sorted(search.frontier.open.row.tolist()) == [0, 1]
    assert sorted(search.frontier.open.id.tolist()) == [search.log.root[0], search.log.root[1]]


def test_patience_ends_before_the_time_does() -> None:
    """A third of what is left at most, whatever the work has taken."""
    least = Least(torch.zeros(1), 0.0, 60.0)
    assert [least.patience_s(now) for now in (0.0, 20.0, 50.0, 60.0)] == pytest.approx([0.5, 5.0, 3.0, 0.0])


def test_what_the_checkers_bounds_lose_is_demanded() -> None:
    """Intervals of neurons that errors widen cost a bound more than its own errors: the margin covers that too."""
    mlp = random_mlp(4, (4, 24, 24, 24, 24, 2))
    least = mlp(np.random.default_rng(0).uniform(-1, 1, (1000, 4)))[:, 0].min()
    case = Case(-np.ones(4), np.ones(4), (Polytope(np.array([[1.0, 0.0]]), np.array([least - 0.05])),))
    graph, problem = single(mlp), build(mlp.graph().to("cpu", torch.float64), case)
    search, table = Search(0, problem), Table.of(graph, problem.neuron)
    start(search, Effort(5))
    gate = CaseGate(Gate(graph, Spec((case,), 4, 2)), 0, case_record(case, table, 2, "float32"), Deadline.after(60))
    (failure,) = gate.tried(proof_records(table, search), "float32").failures()
    demand(search, gate, table, "float32", (time.monotonic(), time.monotonic() + 600), 0)
    lost, taken = float(gate.prepared("float32").lost()[0]), float(search.log.lower()[0]) - failure.bound
    assert taken > lost > 0 and not search.weak and gate.accepted is None
    assert float(search.problem.margin[0]) == pytest.approx(1.1 * taken)


def test_a_margin_that_no_bound_can_reach_is_not_asked_for() -> None:
    """At some point of the region the row is above zero by less than the errors."""
    graph = single(CANCELS)
    problem = build(graph.to("cpu", torch.float64), HALF.cases[0])
    search = Search(0, problem)
    start(search, Effort(0))
    table = Table.of(graph, problem.neuron)
    gate = CaseGate(Gate(graph, HALF), 0, case_record(HALF.cases[0], table, 1, "float32"), Deadline.after(20))
    demand(search, gate, table, "float32", (0.0, 600.0), 0)
    assert search.weak and search.least is None


def test_boxes_are_seen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was closed in float32 is closed over the reals too, and not the other way round; another set of polytopes is another question."""
    mlp = random_mlp(2, (3, 8, 7, 2))
    graph, case = single(mlp), near_truth(mlp, 2, 0.01)
    problem = build(graph.to("cpu", torch.float64), case)
    search, table = input_search(0, problem), Table.of(graph, problem.neuron)
    advance_boxes(search, InputSplitConfig(batch=8), Oracle(lambda *offered: False, leaf_answer), Deadline.after(20))
    assert search.proved and search.domains > 3
    gate = Gate(graph, Spec((case,), 3, 2))
    first, second = (CaseGate(gate, 0, case_record(case, table, 2, "float32"), Deadline.after(60)) for _ in range(2))
    for claim in ("float32", "real"):
        first.prepared(claim), second.prepared(claim)
    assert first.failures(proof_records(table, search), "float32") == [] == second.failures(proof_records(table, search), "real")

    def unwanted(*given: object) -> list:
        raise AssertionError("seen again")

    monkeypatch.setattr(BoxProof, "unproved", unwanted)
    assert first.failures(proof_records(table, search), "float32") == [] == first.failures(proof_records(table, search), "real")
    with pytest.raises(AssertionError, match="seen again"):
        second.failures(proof_records(table, search), "float32")
    first.prepared("float32").open[1] = Failure(0, 1, None, None, -1.0)
    with pytest.raises(AssertionError, match="seen again"):
        first.failures(proof_records(table, search), "float32")
