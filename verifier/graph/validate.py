"""Does the graph compute what the file computes? Against onnxruntime: on random inputs when it is loaded, and inside the region of a property."""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from verifier.errors import ModelError, ShapeError
from verifier.graph.execute import execute, execute_all
from verifier.graph.ir import Graph
from verifier.graph.onnx_load import load_onnx
from verifier.graph.onnx_run import NamedRunner, OnnxRunner
from verifier.graph.runtime_errors import Roundoff, roundoff_of, step

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
        if expected.shape == exact.shape and not np.isfinite(rounded).all() and not np.isfinite(expected).all():
            continue  # weights of another scale than these inputs: the property's own region is compared before anything is proved there
        if expected.shape != exact.shape:
            raise ModelError(f"{path}: onnxruntime gives {expected.size} outputs but this loader {exact.size}: please report the file.")
        noise = float(np.abs(exact - rounded).max())
        allowed = RELATIVE_TOLERANCE[kind] * max(float(np.abs(expected).max()), 1e-6) + NOISE_FACTOR[kind] * noise
        worst = float(np.abs(expected - exact).max())
        if not np.isfinite(expected).all():
            raise ModelError(f"{path}: onnxruntime's output is NaN or infinite for an ordinary input, this loader's is not: please report the file.")
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
        theirs = NamedRunner(path, set(values))(x)
    except ModelError:
        return ""
    for node in graph.nodes[1:]:
        if node.name not in theirs:
            continue
        ours, other = values[node.name].reshape(-1).numpy(), theirs[node.name].astype(np.float64).reshape(-1)
        if ours.shape != other.shape or not float(np.abs(ours - other).max()) <= max(allowed, 1e-3 * float(np.abs(other).max())):
            return f", first at {node.op} {node.name!r}"
    return ""


@dataclass(frozen=True, slots=True)
class Compared:
    """At how many points of the region the runtime was compared, at how many of them node by node, and in what time."""

    points: int
    by_node: int
    seconds: float


# Points of all boxes together, how many of them are compared node by node, and how many values a piece of them may have within the network.
MOST_POINTS, MOST_BY_NODE, _PIECE_VALUES = 24, 8, 2**23
# Seconds and points for the comparison beside a proof; the first few points are taken in any case.
BESIDE_S, BESIDE_POINTS = 0.5, 8
# The share of a runtime's rounding that rewriting the graph in float64 may differ by.
_REWRITTEN = 2.0**-20
Boxes = Sequence[tuple[np.ndarray, np.ndarray]]
Valued = dict[str, tuple[Tensor, Tensor]]


def compare_in_region(
    graph: Graph, path: str | Path, boxes: Boxes, runner: OnnxRunner | None = None, seconds: float = 5.0, most: int = MOST_POINTS, seed: int = 0
) -> Compared:
    """Compares the graph, and the file as it is read, with onnxruntime at corners, centres and random points of the boxes.

    Three comparisons, none of which rounding can fail: the runtime's values of all nodes, each from the runtime's own values before it; the runtime's
    output; and the graph's output with that of the file as read. The first points are compared whatever the time.

    Args:
        graph: loaded from `path`, simplified or not.
        path: the ONNX file.
        boxes: (lower, upper) of each, `(n_in,)` float64; of many, a sample.
        runner: an OnnxRunner of that file, where there is one already (`attack.confirm.replay_onnx` makes one).
        seconds: after which no further point is taken.
        most: points in all.
        seed: of the random points.

    Raises:
        ModelError: they differ by more than rounding, or the runtime's values are not finite; the first such node is named.
        ShapeError: a box is of another size than the network's input.
    """
    begin = time.monotonic()
    runner = OnnxRunner(path) if runner is None else runner
    read = graph.raw or load_onnx(path)
    roundoff = roundoff_of(read, runner.input_dtype)
    plain, given = read.to("cpu", torch.float64), graph.to("cpu", torch.float64)
    named = NamedRunner(path, {node.name for node in read.nodes})
    points = list(islice(region_points(boxes, runner, most, seed), most))
    size = max(3, min(MOST_BY_NODE, _PIECE_VALUES // sum(math.prod(node.shape) for node in read.nodes)))
    count = 0
    for first in range(0, len(points), size):
        piece = np.stack(points[first:first + size])
        if count and time.monotonic() - begin > seconds:
            break
        with torch.no_grad():
            if not count:
                _compare_nodes(plain, named, piece, roundoff, path)
            count += len(piece)
            _compare_outputs(plain, given, runner, piece, roundoff, path)
    return Compared(count, min(size, count), time.monotonic() - begin)


class Comparison:
    """`compare_in_region` while something else is at work: of a network that comes from a file, on the other core."""

    def __init__(self, graph: Graph, boxes: Boxes) -> None:
        self._done: Future | None = None
        if graph.source:
            pool = ThreadPoolExecutor(1)
            self._done = pool.submit(compare_in_region, graph, graph.source, boxes, seconds=BESIDE_S, most=BESIDE_POINTS)
            pool.shutdown(wait=False)

    def agrees(self) -> None:
        """Returns once the comparison is done.

        Raises:
            ModelError: the loader's network and onnxruntime's differ.
        """
        if self._done is not None:
            self._done.result()


def region_points(boxes: Boxes, runner: OnnxRunner, most: int, seed: int) -> Iterator[np.ndarray]:
    """Points `(n_in,)` of the input's type, box after box in rounds: random, the centre, both ends, random corners, random ones again."""
    random, largest = np.random.default_rng(seed), float(np.finfo(runner.input_dtype).max)
    for lower, upper in boxes:
        if np.shape(lower) != (runner.n_in,) or np.shape(upper) != (runner.n_in,):
            raise ShapeError(f"{runner.name} takes {runner.n_in} values, but the property's box has {np.shape(lower)} and {np.shape(upper)}.")
    chosen = [boxes[i] for i in np.unique(np.linspace(0, len(boxes) - 1, min(len(boxes), most)).astype(int))] if len(boxes) else []
    ends = [(np.clip(lower, -largest, largest), np.clip(upper, -largest, largest)) for lower, upper in chosen]
    makers: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
        lambda low, high: low + random.random(low.shape) * (high - low),
        lambda low, high: low / 2 + high / 2,
        lambda low, high: low,
        lambda low, high: high,
        lambda low, high: np.where(random.random(low.shape) < 0.5, low, high),
    )
    for k in range(most):
        for low, high in ends:
            yield makers[k % len(makers)](low, high).astype(runner.input_dtype)


def _compare_nodes(graph: Graph, named: NamedRunner, x: np.ndarray, roundoff: Roundoff, path: str | Path) -> None:
    """Every value that the runtime names, at points `(B, n_in)`, from the runtime's own values before it."""
    theirs = [named(point) for point in x]
    values: Valued = {graph.input.name: _exactly(x, graph.input_shape)}
    for node in graph.nodes[1:]:
        value, error = step(node, [values[name] for name in node.inputs], roundoff)
        if node.name in theirs[0]:
            other = torch.from_numpy(np.stack([found[node.name].reshape(-1) for found in theirs]).astype(np.float64))
            _refuse(value, error, other, path, f" at {node.op} {node.name!r}")
            value, error = other.reshape(value.shape), torch.zeros_like(value)
        values[node.name] = (value, error)


def _compare_outputs(read: Graph, graph: Graph, runner: OnnxRunner, x: np.ndarray, roundoff: Roundoff, path: str | Path) -> None:
    """The runtime's output at points `(B, n_in)`, and that of the graph as it was rewritten, with the output of the file as read."""
    values: Valued = {read.input.name: _exactly(x, read.input_shape)}
    for node in read.nodes[1:]:
        values[node.name] = step(node, [values[name] for name in node.inputs], roundoff)
    value, error = values[read.output]
    _refuse(value, error, torch.from_numpy(np.stack([runner(point) for point in x]).astype(np.float64)), path, "")
    rewritten = execute(graph, values[read.input.name][0])
    _refuse(value, error * _REWRITTEN + 2.0**-40 * abs(value), rewritten, path, " once it is simplified")


def _exactly(x: np.ndarray, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    value = torch.from_numpy(x.astype(np.float64)).reshape(len(x), *shape)
    return value, torch.zeros_like(value)


def _refuse(ours: Tensor, error: Tensor, theirs: Tensor, path: str | Path, where: str) -> None:
    """Raises a ModelError unless the values, of one size, are finite and as near as `error` says."""
    if theirs.numel() != ours.numel():
        raise ModelError(f"{path}: onnxruntime has {theirs.shape[-1]} values{where} but this loader {ours[0].numel()}: please report the file.")
    if not bool(torch.isfinite(theirs).all()):
        raise ModelError(f"{path}: onnxruntime's values{where} are NaN or infinite inside the property's region.")
    theirs = theirs.reshape(-1)
    far = (ours.reshape(-1) - theirs).abs() - error.reshape(-1)
    worst = int(far.argmax())
    if not bool(far[worst] <= 0):
        seen = f"{float(ours.reshape(-1)[worst]):.6g} here, {float(theirs[worst]):.6g} there"
        raise ModelError(f"{path}: inside the property's region this loader and onnxruntime differ{where} by more than rounding ({seen}): "
                         "please report the file.")
