"""Whether a witness holds, decided without the solver: onnxruntime's output, the property's own inequalities, tolerance zero."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from verifier.graph.onnx_load import read_model_bytes
from verifier.spec.normal import load_vnnlib
from verifier.spec.spec import Case


def witness_holds(model: Path, prop: Path, x: list[float]) -> bool:
    """Whether the network's output at x `(n_in,)` is unsafe and x lies in the property's region.

    A bound that float32 cannot hold is taken as its nearest float32, as the competition does by its own wider tolerance.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(read_model_bytes(model), providers=["CPUExecutionProvider"])
    end = session.get_inputs()[0]
    kind = np.float64 if end.type == "tensor(double)" else np.float32
    shape = [side if isinstance(side, int) else 1 for side in end.shape]
    point = np.array(x, dtype=np.float32)
    y = session.run(None, {end.name: point.astype(kind).reshape(shape)})[0].reshape(-1).astype(np.float64)
    spec = load_vnnlib(prop, point.size, y.size)
    return any(_inside(case, point) and _unsafe(case, point, y) for case in spec.cases)


def _inside(case: Case, x: np.ndarray) -> bool:
    exact = (case.lower <= x) & (x <= case.upper)
    rounded = (case.lower.astype(np.float32) == x) | (case.upper.astype(np.float32) == x)
    return bool((exact | rounded).all())


def _unsafe(case: Case, x: np.ndarray, y: np.ndarray) -> bool:
    for polytope in case.polytopes:
        value = polytope.output @ y
        if polytope.input is not None:
            value = value + polytope.input @ x.astype(np.float64)
        if (value <= polytope.offset).all():
            return True
    return False
