"""Does the graph compute what the file computes? The check that a load ends with, against onnxruntime on random inputs."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from verifier.errors import ModelError
from verifier.graph.execute import execute, execute_all
from verifier.graph.ir import Graph
from verifier.graph.onnx_file import expose_values
from verifier.graph.onnx_run import OnnxRunner, run_named

# Share of the output's size that a correct graph in float64 may differ from onnxruntime, by the type that the file computes in. Unit
# roundoffs are 2**-53, 2**-24 and 2**-11; the rest is room for long sums and for kernels that reorder them.
RELATIVE_TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 5e-2}
# Where a network cancels large values, rounding exceeds any share of its output: the difference between our own float32 and float64 runs
# measures that, times this factor (for float16 another 2**13, the ratio of the two roundoffs).
NOISE_FACTOR = {"float64": 1e-6, "float32": 256.0, "float16": 256.0 * 2**13}


def check_against_onnxruntime(graph: Graph, path: str | Path, runner: OnnxRunner | None = None) -> None:
    """Runs both on two random inputs, one sample at a time.

    Args:
        graph: loaded from `path`, simplified or not.
        path: the ONNX file.
        runner: an OnnxRunner of that file, where there is one already.

    Raises:
        ModelError: onnxruntime cannot run the file, or the outputs differ; the first differing value is named where it can be found.
    """
    runner = OnnxRunner(path) if runner is None else runner
    random = np.random.default_rng(0)
    kind = runner.input_dtype.name
    double, single = graph.to("cpu", torch.float64), graph.to("cpu", torch.float32)
    for spread in (1.0, 0.1):
        x = (spread * random.standard_normal(runner.n_in)).astype(runner.input_dtype)
        expected = runner(x).astype(np.float64)
        exact, rounded = _run(double, x, torch.float64), _run(single, x, torch.float32)
        if expected.shape != exact.shape:
            raise ModelError(f"{path}: onnxruntime gives {expected.size} outputs but this loader {exact.size}: please report the file.")
        noise = float(np.abs(exact - rounded).max())
        allowed = RELATIVE_TOLERANCE[kind] * max(float(np.abs(expected).max()), 1e-6) + NOISE_FACTOR[kind] * noise
        worst = float(np.abs(expected - exact).max())
        if not np.isfinite(expected).all():
            raise ModelError(f"{path}: its output is NaN or infinite for an ordinary input: are its weights too large?")
        if not worst <= allowed:
            where = _first_difference(double, path, x, allowed)
            raise ModelError(f"{path}: this loader's output differs from onnxruntime's by {worst:.3g} (at most {allowed:.3g} is rounding)"
                             f"{where}: please report the file.")


def _run(graph: Graph, x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The flat float64 output of one flat sample."""
    with torch.no_grad():
        value = execute(graph, torch.from_numpy(x.astype(np.float64)).to(dtype).reshape(1, *graph.input_shape))
    return value.double().reshape(-1).numpy()


def _first_difference(graph: Graph, path: str | Path, x: np.ndarray, allowed: float) -> str:
    """`, first at '/0/conv'`: the first node, in the graph's order, whose value is not onnxruntime's; empty where none is found."""
    with torch.no_grad():
        values = execute_all(graph, torch.from_numpy(x.astype(np.float64)).reshape(1, *graph.input_shape))
    try:
        theirs = run_named(*expose_values(path, set(values)), Path(path), x)
    except ModelError:
        return ""
    for node in graph.nodes[1:]:
        if node.name not in theirs:
            continue
        ours, other = values[node.name].reshape(-1).numpy(), theirs[node.name].astype(np.float64).reshape(-1)
        if ours.shape != other.shape or not float(np.abs(ours - other).max()) <= max(allowed, 1e-3 * float(np.abs(other).max())):
            return f", first at {node.op} {node.name!r}"
    return ""
