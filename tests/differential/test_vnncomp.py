"""Instances of the competition: quick ones of every kind get the verdict that its tools agree on; none that is unsafe is ever called safe."""
from __future__ import annotations

import csv
import time
from math import prod
from pathlib import Path

import numpy as np
import pytest

import verifier
from benchmarks.witness import witness_holds
from tests.conftest import SHARED
from verifier.config import Config
from verifier.graph.onnx_run import OnnxRunner
from verifier.spec.spec import Spec
from verifier.verdict import Status, Verdict

pytestmark = pytest.mark.shared
LIMIT_S = 20.0

QUICK = [
    "test test_nano test_nano", "test test_tiny test_tiny", "test test_small test_small", "test test_sat test_prop",
    "test test_unsat test_prop", "acasxu ACASXU_run2a_1_1_batch_2000 prop_1", "acasxu ACASXU_run2a_2_8_batch_2000 prop_2",
    "acasxu ACASXU_run2a_1_3_batch_2000 prop_3", "acasxu ACASXU_run2a_2_1_batch_2000 prop_4",
    "rl_benchmarks cartpole cartpole_case_unsafe_0", "rl_benchmarks lunarlander lunarlander_case_safe_22",
    "rl_benchmarks dubinsrejoin dubinsrejoin_case_unsafe_21", "verivital Convnet_avgpool prop_0_0.02",
    "verivital Convnet_avgpool prop_10_0.02", "verivital Convnet_maxpool prop_0_0.004", "reach_prob_density vdp vdp_0",
    "reach_prob_density robot robot_1", "reach_prob_density gcas gcas_7", "mnist_fc mnist-net_256x2 prop_7_0.05",
    "oval21 cifar_base_kw cifar_base_kw-img8095-eps0.010457516339869282",
]  # fmt: skip

# Labelled unsat, and sat as the files stand: a corner of the box lies deep in the unsafe set (the last test shows it by onnxruntime alone), so
# their labels say nothing about a verdict. The files of tllverifybench tell in a comment of sampled outputs that are in their own unsafe set;
# those of collins call the outputs *within* delta of the nominal one unsafe, where those beyond it are meant.
MISLABELLED = {
    "tllverifybench property_N=8_0": [-2.0, -2.0],
    "tllverifybench property_N=16_3": [2.0, -2.0],
    "tllverifybench property_N=40_0": [-2.0, -2.0],
    "collins_rul_cnn robustness_8perturbations_delta10_epsilon10_w20": None,
    "collins_rul_cnn robustness_8perturbations_delta5_epsilon10_w20": None,
    "collins_rul_cnn robustness_8perturbations_delta10_epsilon10_w40": None,
}


def rows() -> list[dict[str, str]]:
    path = SHARED / "vnncomp" / "instances.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def stem(path: str) -> str:
    return Path(path).name.removesuffix(".gz").rsplit(".", 1)[0]


def name_of(row: dict[str, str]) -> str:
    return f"{row['benchmark']} {stem(row['onnx'])} {stem(row['vnnlib'])}"


def is_mislabelled(row: dict[str, str]) -> bool:
    return f"{row['benchmark']} {stem(row['vnnlib'])}" in MISLABELLED


def load(folder: Path, row: dict[str, str]) -> tuple[verifier.Graph, Spec]:
    graph = verifier.load_onnx(folder / row["onnx"])
    return graph, verifier.load_vnnlib(folder / row["vnnlib"], prod(graph.input_shape), prod(graph.output_shape))


def check_verdict(verdict: Verdict, row: dict[str, str], folder: Path) -> None:
    assert verdict.status is {"unsat": Status.VERIFIED, "sat": Status.FALSIFIED}[row["expected"]], verdict
    if verdict.status is Status.FALSIFIED:
        assert witness_holds(folder / row["onnx"], folder / row["vnnlib"], verdict.counterexample.x.tolist())


@pytest.mark.parametrize("name", QUICK)
def test_quick_instances(name: str, shared: Path) -> None:
    row = next(row for row in rows() if name_of(row) == name)
    graph, spec = load(shared / "vnncomp", row)
    begin = time.monotonic()
    verdict = verifier.verify(graph, spec, Config(timeout_s=LIMIT_S))
    check_verdict(verdict, row, shared / "vnncomp")
    assert time.monotonic() - begin < LIMIT_S + 2


def test_quick_instances_without_attack_are_found_by_bounds(shared: Path) -> None:
    """Corners of bounds alone find the counterexamples of small networks."""
    names = ["test test_sat test_prop", "acasxu ACASXU_run2a_2_8_batch_2000 prop_2", "reach_prob_density gcas gcas_2"]
    for row in rows():
        if name_of(row) in names:
            names.remove(name_of(row))
            graph, spec = load(shared / "vnncomp", row)
            check_verdict(verifier.verify(graph, spec, Config(timeout_s=LIMIT_S, attack=None)), row, shared / "vnncomp")
    assert not names


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in rows() if row["expected"] == "sat"], ids=name_of)
def test_what_is_unsafe_is_never_verified(row: dict[str, str], shared: Path) -> None:
    """Without the attack and with little time: UNKNOWN or a replayed counterexample, soon after the time is over."""
    graph, spec = load(shared / "vnncomp", row)
    begin = time.monotonic()
    verdict = verifier.verify(graph, spec, Config(timeout_s=3.0, attack=None))
    assert verdict.status is not Status.VERIFIED
    assert time.monotonic() - begin < 3.0 + 2 + 5  # what other work on the machine may take; the command has its own clock
    if verdict.status is Status.FALSIFIED:
        check_verdict(verdict, row, shared / "vnncomp")


@pytest.mark.parametrize("name", MISLABELLED)
def test_the_unsafe_sets_left_out_are_reached(name: str, shared: Path) -> None:
    """onnxruntime at one corner of the box, the rows of the file's text evaluated in float64: inside by a tenth at least."""
    row = next(row for row in rows() if f"{row['benchmark']} {stem(row['vnnlib'])}" == name)
    assert row["expected"] == "sat"
    runner = OnnxRunner(shared / "vnncomp" / row["onnx"])
    spec = verifier.load_vnnlib(shared / "vnncomp" / row["vnnlib"])
    (case,) = spec.cases
    x = case.lower if MISLABELLED[name] is None else np.array(MISLABELLED[name])
    free, x = case.lower < case.upper, x.astype(np.float32)
    x = np.where(free & (x < case.lower), np.nextafter(x, np.float32(np.inf)), x)
    assert ((case.lower <= x) & (x <= case.upper))[free].all() and (x == case.lower.astype(np.float32))[~free].all()
    y = np.asarray(runner(x), dtype=np.float64).reshape(-1)
    margins = [(polytope.offset - polytope.output @ y).min() for polytope in case.polytopes]
    assert max(margins) > 0.1
    assert witness_holds(shared / "vnncomp" / row["onnx"], shared / "vnncomp" / row["vnnlib"], x.tolist())
