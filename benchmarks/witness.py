"""Whether a witness holds, decided without the solver: onnxruntime's output, the property's own formulas over the rationals, tolerance zero."""
from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from verifier.graph.onnx_load import read_model_bytes
from verifier.spec.normal import load_vnnlib
from verifier.spec.truth import holds


def witness_holds(model: Path, prop: Path, x: list[float]) -> bool:
    """Whether the network's output at x `(n_in,)` is unsafe and x lies in the property's region.

    The numbers must be of the network's input type. An input that the property fixes to what is no such number stands at the nearest one, and is
    taken at its value in the text where a comparison speaks of inputs alone.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(read_model_bytes(model), providers=["CPUExecutionProvider"])
    end = session.get_inputs()[0]
    kind = {"tensor(double)": np.float64, "tensor(float16)": np.float16}.get(end.type, np.float32)
    shape = [side if isinstance(side, int) else 1 for side in end.shape]
    point = np.array(x, dtype=kind)
    if point.astype(np.float64).tolist() != list(x):
        return False
    y = [Fraction(float(v)) for v in session.run(None, {end.name: point.reshape(shape)})[0].reshape(-1)]
    received = [Fraction(v) for v in x]
    for case in load_vnnlib(prop, point.size, len(y)).cases:
        written = list(received)
        for i, value in case.fixed_values().items():
            written[i] = value if received[i] == Fraction(float(kind(float(value)))) else received[i]
        if holds(case.asserts or (), written, y) and holds(case.asserts or (), received, y, alone=written):
            return True
    return False
