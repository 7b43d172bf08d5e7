"""The prover's own certificates as subjects of the battery, and their false twins."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import verifier
from tests.soundness import nets
from tests.soundness.battery import Subject
from tests.soundness.exact_truth import Claim, Net, smallest
from tests.soundness.handmade import Part, case
from tests.soundness.proofs import Files, files
from tests.soundness.traps import claim, just_above, just_below
from verifier import solve
from verifier.bab import ladder
from verifier.certificate.schema import open_certificate, read_records
from verifier.config import CertificateConfig


@dataclass(frozen=True)
class Proved:
    """What the prover answered, and the records that it wrote between HEAD and DONE."""

    verdict: verifier.Verdict
    parts: tuple[Part, ...]


def prove(where: Files, arithmetic: str, timeout_s: float = 10.0) -> Proved:
    """`verifier.verify` with a certificate beside the model."""
    graph = verifier.load_onnx(where.model)
    n_in, n_out = int(np.prod(graph.input_shape)), int(np.prod(graph.output_shape))
    spec = verifier.load_vnnlib(where.prop, n_in, n_out)
    path = where.model.with_name("proof.cert")
    path.unlink(missing_ok=True)
    wanted = CertificateConfig(path, where.prop)
    verdict = verifier.verify(graph, spec, verifier.Config(timeout_s=timeout_s, device="cpu", arithmetic=arithmetic), certificate=wanted)
    if not path.exists():
        return Proved(verdict, ())
    with open_certificate(path) as file:
        found = [(r.kind, dict(r.fields), {k: np.array(a) for k, a in r.arrays.items()}) for r in read_records(file, "proof")]
    return Proved(verdict, tuple(found[1:-1]))


@contextmanager
def by_neurons() -> Iterator[None]:
    """The prover splits neurons although the inputs are few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "FEW_INPUTS", 0)
        patch.setattr(solve, "FEW_INPUTS", 0)
        yield


def twin(subject: Subject, claims: tuple[Claim, ...]) -> Subject:
    """The same records, with the numbers of a harder, false property in their CASEs."""
    numbers = iter([case(subject.net, c, [], []) for c in claims])
    parts = [(k, f, {**a, "offset": next(numbers)[2]["offset"]}) if k == "CASE" else (k, f, a) for k, f, a in subject.parts]
    return replace(subject, claims=claims, true=False, parts=tuple(parts))


def pairs(seed: int) -> Iterator[tuple[str, Net, Claim, Claim]]:
    """Networks of all forms, a claim that takes branch and bound, and one that is false by one float."""
    forms = [
        ("mlp", nets.random_mlp(seed, (2, 8, 6, 2), 1.5)), ("conv", nets.random_conv(seed)), ("residual", nets.random_residual(seed, 2, 5)),
        ("pool", nets.random_conv(seed, True)), ("three inputs", nets.random_mlp(seed + 1, (3, 7, 2), 1.5)),
    ]
    for name, net in forms:
        free = net.n_in if net.n_in <= 3 else 2
        lower, upper = [Fraction(-(i < free)) for i in range(net.n_in)], [Fraction(int(i < free)) for i in range(net.n_in)]
        row = [1] + [0] * (net.n_out - 1)
        least, _ = smallest(net, lower, upper, row)
        yield name, net, claim(lower, upper, [(row, just_below(least - Fraction(1, 100)))]), claim(lower, upper, [(row, just_above(least))])


def subjects(seed: int, arithmetic: str, folder: Path) -> Iterator[Subject]:
    """The prover's certificates of true claims, by splits of inputs and of neurons, and their twins; a claim that it does not certify is left out."""
    for name, net, true, false in pairs(seed):
        for how, ways in (("inputs", nullcontext()), ("neurons", by_neurons())):
            with ways:
                found = prove(files(net, [true], folder), arithmetic)
            if found.parts:
                subject = Subject(f"prover: {name} by {how}, seed {seed}", net, (true,), True, arithmetic, found.parts)
                yield from (subject, twin(subject, (false,)))


def sigmoid_model(path: Path, seed: int, op: str = "Sigmoid") -> Path:
    """y = W2 s(W1 x + b1) of two inputs, five neurons and one output."""
    random = np.random.default_rng(seed)
    constants = {"w1": random.normal(size=(5, 2)) * 2, "b1": random.normal(size=5) / 2, "w2": random.normal(size=(1, 5)), "b2": np.zeros(1)}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["z"], name="z", transB=1), helper.make_node(op, ["z"], ["h"], name="h"),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["y"], name="y", transB=1),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, size)) for n, size in (("x", 2), ("y", 1))]
    graph = helper.make_graph(nodes, "battery", ends[:1], ends[1:], [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@dataclass(frozen=True)
class Smooth:
    """A certificate of a network that no rational oracle knows: a claim that the prover proves, and one that a sampled point breaks by 1e-3."""

    true: Files
    false: Files
    arithmetic: str
    parts: tuple[Part, ...]
    false_parts: tuple[Part, ...]


def smooth(folder: Path, seed: int, op: str, arithmetic: str) -> Smooth:
    """Outputs over [-1, 1]^2, sampled in float64 on a grid of 201 x 201 points."""
    model = sigmoid_model(folder / "net.onnx", seed, op)
    loaded = onnx.load(model)
    w = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in loaded.graph.initializer}
    axis = np.linspace(-1, 1, 201)
    x = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    z = x @ w["w1"].T + w["b1"]
    least = float(((np.tanh(z) if op == "Tanh" else 1 / (1 + np.exp(-z))) @ w["w2"][0]).min())
    places = {}
    for name, offset in (("true", least - 0.02), ("false", least + 1e-3)):
        text = "\n".join([*(f"(declare-const X_{i} Real)(assert (>= X_{i} -1))(assert (<= X_{i} 1))" for i in range(2)),
                          f"(declare-const Y_0 Real)(assert (<= Y_0 {offset!r}))"])
        prop = folder / f"{name}.vnnlib"
        prop.write_text(text)
        places[name] = (Files(model, prop), offset)
    found = prove(places["true"][0], arithmetic)
    wrong = [(k, f, {**a, "offset": np.array([places["false"][1]])}) if k == "CASE" else (k, f, a) for k, f, a in found.parts]
    return Smooth(places["true"][0], places["false"][0], arithmetic, found.parts, tuple(wrong))
