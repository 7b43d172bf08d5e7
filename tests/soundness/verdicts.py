"""What the product answers about random problems, held against their truth: right, undecided, or wrong, and how."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime

import verifier
from tests.soundness.exact_truth import Claim
from tests.soundness.formulas import Box, satisfied
from tests.soundness.orders import ORDERS, reaches, runs, worst
from tests.soundness.problems import Problem
from verifier.errors import VerifierError
from verifier.verdict import Status, Verdict

TIMEOUT_S = {True: 10.0, False: 1.0}
"""Of problems that have to be decided, and of others."""


@dataclass(frozen=True)
class Outcome:
    """`answer`: unsat, sat, unknown or refused; `wrong`: why it is, empty where it is not. `proved`: the arithmetic of an unsat."""

    problem: str
    family: str
    clear: bool
    answer: str
    proved: str = ""
    wrong: str = ""
    sentence: str = ""
    seconds: float = 0.0

    @property
    def decided(self) -> bool:
        return self.answer in ("unsat", "sat")


def asked(problem: Problem, folder: Path, timeout_s: float | None = None) -> Outcome:
    """The problem's files through `load_onnx`, `load_vnnlib` and `verify`, and what is wrong with the answer."""
    model, prop = folder / "problem.onnx", folder / "problem.vnnlib"
    model.write_bytes(problem.model)
    prop.write_text(problem.text)
    base = (problem.name, problem.family, problem.clear)
    try:
        graph = verifier.load_onnx(model)
        spec = verifier.load_vnnlib(prop, problem.net.n_in, problem.n_out)
        verdict = verifier.verify(graph, spec, verifier.Config(timeout_s=timeout_s or TIMEOUT_S[problem.clear], device="cpu"))
    except VerifierError as error:
        return Outcome(*base, "refused", sentence=str(error))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return Outcome(*base, "crash", wrong=f"{type(error).__name__}: {error}"[:300])
    return judged(problem, verdict)


def judged(problem: Problem, verdict: Verdict) -> Outcome:
    answer = {Status.VERIFIED: "unsat", Status.FALSIFIED: "sat", Status.UNKNOWN: "unknown"}[verdict.status]
    proved = (getattr(verdict, "proved", "") or "real") if answer == "unsat" else ""
    wrong = ""
    if answer == "unsat":
        wrong = "" if problem.real else "unsat, but false over the reals"
        if not wrong and proved == "float32" and (order := broken_in_float32(problem)):
            wrong = f"unsat of float32, but false of float32, summed {order}"
    elif answer == "sat":
        assert verdict.counterexample is not None
        wrong = witness_fault(problem, np.asarray(verdict.counterexample.x), np.asarray(verdict.counterexample.y))
    return Outcome(problem.name, problem.family, problem.clear, answer, proved, wrong, verdict.sentence, verdict.seconds)


def in_box(box: Box, x: np.ndarray) -> bool:
    """Exactly; an input with one value may be the float32 nearest to it."""
    low, high = box.sides()
    nearest = (a == b and float(v) == float(np.float32(float(a))) for v, a, b in zip(x, low, high))
    return all(a <= Fraction(float(v)) <= b or near for v, a, b, near in zip(x, low, high, nearest))


def witness_fault(problem: Problem, x: np.ndarray, y: np.ndarray) -> str:
    """What is wrong with a counterexample: that it lies in no box, that onnxruntime does not say so, or that an assert does not hold."""
    if x.dtype != np.float32 or not any(in_box(box, x) for box, _ in problem.disjuncts):
        return f"sat, but the witness {x.tolist()} lies in no box"
    session = onnxruntime.InferenceSession(problem.model, providers=["CPUExecutionProvider"])
    shape = [d if isinstance(d, int) else 1 for d in session.get_inputs()[0].shape]
    own = session.run(None, {"x": x.reshape(shape)})[0].reshape(-1)
    if not np.array_equal(own, y):
        return f"sat, but onnxruntime says {own.tolist()} and the witness {y.tolist()}"
    boxes = [box for box, _ in problem.disjuncts if in_box(box, x)]
    for box in boxes:
        fixed = {f"X_{i}": Fraction(a) for i, (a, b) in enumerate(zip(box.lower, box.upper)) if Fraction(a) == Fraction(b)}
        if satisfied(problem.text, [Fraction(float(v)) for v in x], [Fraction(float(v)) for v in own], fixed):
            return ""
    return f"sat, but the text does not hold at {x.tolist()}, {own.tolist()}"


def broken_in_float32(problem: Problem) -> str:
    """An order of summation in which float32 reaches an unsafe set at a float32 point of a box, near the thresholds; empty if none is found."""
    random = np.random.default_rng(0)
    for box, polytopes in problem.disjuncts:
        points = np.array(list(_points(box, problem.near, random)), np.float32)
        if not len(points):
            continue
        for rows in polytopes:
            polytope = [(r.coefficients, r.offset) for r in rows if not r.strict] if not any(r.strict for r in rows) else None
            if polytope is None:
                continue
            for name in ("each neuron its own", *ORDERS):
                found = worst(problem.net, points, rows[-1].coefficients) if name not in ORDERS else runs(problem.net, points, name)
                if any(reaches(polytope, y) for y in found):
                    return name
    return ""


def _points(box: Box, near: tuple[tuple[float, ...], ...], random: np.random.Generator) -> Iterator[np.ndarray]:
    """float32 points of the box: at and around what the truth says is nearest, and its corners."""
    low, high = box.sides()
    a, b = (np.array([float(v) for v in side]) for side in (low, high))
    drawn = [np.array(x) for x in near] + [np.array(x) + 1e-6 * (b - a) * random.normal(size=len(a)) for x in near for _ in range(3)]
    drawn += [np.where(random.random(len(a)) < 0.5, a, b) for _ in range(4)]
    for x in drawn:
        point = np.clip(x, a, b).astype(np.float32)
        if in_box(box, point):
            yield point


def claim_of(problem: Problem) -> list[Claim]:
    """The problem as claims of `exact_truth` about the extended network."""
    return [Claim(tuple(box.sides()[0]), tuple(box.sides()[1]), tuple(tuple((r.coefficients, r.offset) for r in rows) for rows in polytopes))
            for box, polytopes in problem.disjuncts]
