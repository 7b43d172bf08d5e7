"""Robustness in l1 and l2 balls of two inputs, through the API; the truth by polygons that lie within the ball and around it."""
from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import cos, pi, sin
from pathlib import Path

import numpy as np
import onnxruntime

import verifier
from tests.soundness.drawn import weights
from tests.soundness.exact_truth import Net, output, smallest
from tests.soundness.layers import Builder, write_model
from tests.soundness.verdicts import Outcome
from verifier.errors import VerifierError
from verifier.verdict import Status

CORNERS = 24


@dataclass(frozen=True)
class BallProblem:
    """Whether the label of `x` holds in the ball: `real` None where the polygons cannot tell, `clear` where the distance is no matter of rounding."""

    name: str
    model: bytes
    net: Net
    x: tuple[float, float]
    label: int
    eps: float
    norm: str
    real: bool | None
    clear: bool


def limits(x: tuple[float, float], eps: Fraction, norm: str, share: Fraction) -> list[list[Fraction]]:
    """Columns (constant, coefficients) that are at least 0 in a polygon: the l1 ball, or the l2 one's `share` by tangents."""
    angles = [(k + 0.5) * pi / 2 for k in range(4)] if norm == "l1" else [2 * pi * k / CORNERS for k in range(CORNERS)]
    found = []
    for angle in angles:
        a = [Fraction(1 if v > 0 else -1) if norm == "l1" else Fraction(v) for v in (cos(angle), sin(angle))]
        found.append([eps * share + sum(c * Fraction(v) for c, v in zip(a, x)), *(-c for c in a)])
    return found


def ball_problem(seed: int) -> BallProblem:
    random = np.random.default_rng([seed, 21])
    b, width = Builder((2,)), int(random.integers(2, 6))
    b.activation(b.dense(0, weights(random, width, 2), random.integers(-4, 5, width) / 8), "relu")
    b.dense(b.last, weights(random, 3, width), random.integers(-4, 5, 3) / 8)
    net = b.net()
    x = tuple(float(v) for v in np.float32(random.integers(16, 49, 2) / 64))
    scores = output(net, x)
    label, norm = int(np.argmax([float(v) for v in scores])), str(random.choice(["l1", "l2"]))
    eps = float(random.choice([0.05, 0.1, 0.3, 0.6]))
    sides = [[Fraction(max(0.0, v - eps)) for v in x], [Fraction(min(1.0, v + eps)) for v in x]]
    margins = {}
    for name, share in (("outer", Fraction(1) + Fraction(1, 10**12)), ("inner", Fraction(cos(pi / CORNERS)))):
        rows = [[int(i == label) - int(i == j) for i in range(3)] for j in range(3) if j != label]
        limit = limits(x, Fraction(eps), norm, share if norm == "l2" else Fraction(1))
        margins[name] = min(smallest(net, *sides, row, limits=limit)[0] for row in rows)
    size = max(abs(v) for v in scores) / 1000 + Fraction(1, 10**6)
    real = True if margins["outer"] > 0 else False if margins["inner"] <= 0 else None
    return BallProblem(f"ball {seed}, {norm}, {eps}", write_model(net, (2,)), net, x, label, eps, norm, real,
                       margins["outer"] > size or margins["inner"] < -size)


def asked(problem: BallProblem, folder: Path) -> Outcome:
    model = folder / "ball.onnx"
    model.write_bytes(problem.model)
    base = (problem.name, f"ball {problem.norm}", problem.clear)
    try:
        graph = verifier.load_onnx(model)
        spec = verifier.robustness(np.array(problem.x), problem.label, problem.eps, 3, problem.norm)
        verdict = verifier.verify(graph, spec, verifier.Config(timeout_s=10.0 if problem.clear else 1.0, device="cpu"))
    except VerifierError as error:
        return Outcome(*base, "refused", sentence=str(error))
    answer = {Status.VERIFIED: "unsat", Status.FALSIFIED: "sat", Status.UNKNOWN: "unknown"}[verdict.status]
    wrong = "unsat, but false over the reals" if answer == "unsat" and problem.real is False else ""
    if answer == "sat":
        assert verdict.counterexample is not None
        wrong = _fault(problem, np.asarray(verdict.counterexample.x))
    return Outcome(*base, answer, (verdict.proved or "real") if answer == "unsat" else "", wrong, verdict.sentence, verdict.seconds)


def _fault(problem: BallProblem, x: np.ndarray) -> str:
    """Whether the witness lies in ball and clip, exactly, and changes the label."""
    away = [abs(Fraction(float(v)) - Fraction(c)) for v, c in zip(x, problem.x)]
    eps = Fraction(problem.eps)
    inside = sum(away) <= eps if problem.norm == "l1" else sum(a * a for a in away) <= eps * eps
    session = onnxruntime.InferenceSession(problem.model, providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": x.reshape(1, 2).astype(np.float32)})[0][0]
    if not (inside and all(0 <= v <= 1 for v in x) and x.dtype == np.float32):
        return f"sat, but the witness {x.tolist()} lies outside of the ball"
    return "" if max(v for j, v in enumerate(y) if j != problem.label) >= y[problem.label] else f"sat, but the label holds at {x.tolist()}"
