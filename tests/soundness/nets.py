"""Small networks of the battery: how to make them, how to write them as models, how to run them in float32 in several orders of summation."""
from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.soundness.exact_truth import Net, Step


def single(values: np.ndarray | Sequence) -> np.ndarray:
    """Rounded to float32 numbers, as float64."""
    return np.asarray(values, np.float32).astype(np.float64)


def affine(source: int, matrix: np.ndarray | Sequence, bias: np.ndarray | Sequence, form: str = "gemm") -> Step:
    """`form`: gemm, or matmul (a product and an addition, two nodes)."""
    return Step("affine", (source,), single(matrix), single(bias), form={"op": form})


def convolution(source: int, weight: np.ndarray, bias: np.ndarray, shape: tuple[int, int, int], pad: int) -> Step:
    """A convolution of stride 1 of a `(C, H, W)` value, as the matrix that it is. `weight (O, C, K, K)`."""
    (channels, height, width), size = shape, weight.shape[2]
    out = (weight.shape[0], height + 2 * pad - size + 1, width + 2 * pad - size + 1)
    matrix = np.zeros((int(np.prod(out)), int(np.prod(shape))))
    for o, i, j in itertools.product(*map(range, out)):
        for c, k, m in itertools.product(range(channels), range(size), range(size)):
            row, column = i + k - pad, j + m - pad
            if 0 <= row < height and 0 <= column < width:
                matrix[np.ravel_multi_index((o, i, j), out), np.ravel_multi_index((c, row, column), shape)] = np.float32(weight[o, c, k, m])
    form = {"op": "conv", "weight": weight, "bias": bias, "shape": shape, "out": out, "pad": pad}
    return Step("affine", (source,), matrix, single(np.repeat(bias, out[1] * out[2])), form=form)


def pool(source: int, shape: tuple[int, int, int], size: int = 2) -> Step:
    """MaxPool of stride 1 of a `(C, H, W)` value."""
    channels, height, width = shape
    out = (channels, height - size + 1, width - size + 1)
    window = [(k, m) for k in range(size) for m in range(size)]
    groups = [tuple((c * height + i + k) * width + j + m for k, m in window) for c, i, j in itertools.product(*map(range, out))]
    return Step("max", (source,), groups=tuple(groups), form={"shape": shape, "out": out, "size": size})


def mlp(layers: Sequence[tuple[np.ndarray, np.ndarray]], form: str = "gemm") -> Net:
    """Affine layers with ReLUs between them."""
    steps: list[Step] = []
    for matrix, bias in layers:
        steps.append(affine(len(steps), matrix, bias, form))
        steps.append(Step("relu", (len(steps),)))
    return Net(np.shape(layers[0][0])[1], tuple(steps[:-1]))


def random_mlp(seed: int, sizes: Sequence[int], scale: float = 1.0) -> Net:
    random = np.random.default_rng(seed)
    layers = [(random.normal(size=(b, a)) * scale / np.sqrt(a), random.normal(size=b) / 4) for a, b in itertools.pairwise(sizes)]
    return mlp(layers, "matmul" if seed % 2 else "gemm")


def random_residual(seed: int, n: int = 2, width: int = 3) -> Net:
    """W2 relu(x1 + W1 relu(x1)), x1 = W0 x."""
    random = np.random.default_rng(seed)
    draw = lambda b, a: (random.normal(size=(b, a)) / np.sqrt(a), random.normal(size=b) / 4)  # noqa: E731
    inner = (affine(0, *draw(width, n)), Step("relu", (1,)), affine(2, *draw(width, width)), Step("add", (1, 3)), Step("relu", (4,)))
    return Net(n, (*inner, affine(5, *draw(2, width))))


def random_conv(seed: int, with_pool: bool = False) -> Net:
    """A convolution of a 1 x 2 x 2 image into two channels, ReLU, optionally a 2 x 2 MaxPool of stride 1, a dense layer."""
    random = np.random.default_rng(seed)
    first = convolution(0, random.normal(size=(2, 1, 2, 2)) / 2, random.normal(size=2) / 4, (1, 2, 2), 1 if with_pool else 0)
    steps = [first, Step("relu", (1,))]
    shape = first.form["out"]
    if with_pool:
        steps.append(pool(2, shape))
        shape = steps[-1].form["out"]
    size = int(np.prod(shape))
    steps.append(affine(len(steps), random.normal(size=(2, size)) / np.sqrt(size), random.normal(size=2) / 4))
    return Net(4, tuple(steps))


def save(net: Net, path: Path) -> Path:
    """The network as a model file: input `x`, node `v<k>` bears the name of value k."""
    nodes: list[NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    sizes = net.sizes()
    images = [step for step in net.steps if "shape" in step.form]
    first = (1, *images[0].form["shape"]) if net.steps[0] in images else (1, net.n_in)
    for number, step in enumerate(net.steps, 1):
        sources = ["x" if s == 0 else f"v{s}" for s in step.sources]
        nodes += _nodes(step, f"v{number}", sources, constants)
    shapes = (("x", first), (f"v{len(net.steps)}", (1, sizes[-1])))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
    graph = helper.make_graph(nodes, "battery", ends[:1], ends[1:], [numpy_helper.from_array(v, k) for k, v in constants.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


PLAIN = {"leaky": "LeakyRelu", "abs": "Abs", "larger": "Max", "mul": "Mul", "sigmoid": "Sigmoid", "tanh": "Tanh"}
"""Steps that one operation writes."""


def _nodes(step: Step, name: str, sources: list[str], constants: dict[str, np.ndarray]) -> list[NodeProto]:
    made = lambda op, ins, out=name, **kw: helper.make_node(op, ins, [out], name=out, **kw)  # noqa: E731
    if step.kind == "relu":
        return [made("Relu", sources)]
    if step.kind == "add":
        return [made("Add", sources)]
    if step.kind == "max" and "size" not in step.form:
        nodes = [helper.make_node("Gather", [*sources, f"{name}.i{k}"], [f"{name}.g{k}"], axis=1) for k in range(len(step.groups[0]))]
        constants.update({f"{name}.i{k}": np.array([group[k] for group in step.groups]) for k in range(len(step.groups[0]))})
        return [*nodes, made("Max", [node.output[0] for node in nodes])]
    if step.kind == "max":
        size = step.form["size"]
        return [made("MaxPool", sources, kernel_shape=[size, size])]
    if step.kind == "clip":
        constants.update({f"{name}.{end}": np.array(value, np.float32) for end, value in zip(("low", "high"), step.numbers)})
        return [made("Clip", [*sources, f"{name}.low", f"{name}.high"])]
    if step.kind in PLAIN:
        return [made(PLAIN[step.kind], sources, **({"alpha": step.numbers[0]} if step.kind == "leaky" else {}))]
    if step.form["op"] == "conv":
        constants[f"{name}.w"], constants[f"{name}.b"] = (np.asarray(step.form[k], np.float32) for k in ("weight", "bias"))
        return [made("Conv", [*sources, f"{name}.w", f"{name}.b"], pads=[step.form["pad"]] * 4)]
    assert step.matrix is not None and step.bias is not None
    constants[f"{name}.b"] = step.bias.astype(np.float32)
    flat = helper.make_node("Flatten", sources, [f"{name}.flat"], name=f"{name}.flat")
    if step.form["op"] == "gemm":
        constants[f"{name}.w"] = step.matrix.astype(np.float32)
        return [flat, made("Gemm", [f"{name}.flat", f"{name}.w", f"{name}.b"], transB=1)]
    constants[f"{name}.w"] = np.ascontiguousarray(step.matrix.T.astype(np.float32))
    product = helper.make_node("MatMul", [f"{name}.flat", f"{name}.w"], [f"{name}.product"], name=f"{name}.product")
    return [flat, product, made("Add", [f"{name}.product", f"{name}.b"])]


Order = Callable[[np.ndarray], np.float32]
"""How float32 terms are summed."""


def _forward(terms: np.ndarray) -> np.float32:
    return np.add.accumulate(terms, dtype=np.float32)[-1]


def _pairs(terms: np.ndarray) -> np.float32:
    while len(terms) > 1:
        even = len(terms) // 2 * 2
        terms = np.concatenate([terms[0:even:2] + terms[1:even:2], terms[even:]])
    return terms[0]


ORDERS: dict[str, Order] = {
    "forward": _forward,
    "backward": lambda terms: _forward(terms[::-1]),
    "pairs": _pairs,
    "rising": lambda terms: _forward(terms[np.argsort(np.abs(terms), kind="stable")]),
    "falling": lambda terms: _forward(terms[np.argsort(-np.abs(terms), kind="stable")]),
    "positive first": lambda terms: _forward(terms[np.argsort(-terms, kind="stable")]),
    "negative first": lambda terms: _forward(terms[np.argsort(terms, kind="stable")]),
}


def run_float32(net: Net, x: Sequence[float], order: Order) -> np.ndarray:
    """The network in float32: every product rounded, sums (the bias a term like another, the last) in this order. `(n_out,)`."""
    values = [np.asarray(x, np.float64).astype(np.float32)]
    with np.errstate(over="ignore", invalid="ignore"):
        for step in net.steps:
            source = values[step.sources[0]]
            if step.kind == "affine":
                assert step.matrix is not None and step.bias is not None
                rows = zip(step.matrix.astype(np.float32), step.bias.astype(np.float32))
                values.append(np.array([order(np.append(row[row != 0] * source[row != 0], b)) for row, b in rows], np.float32))
            elif step.kind == "relu":
                values.append(np.maximum(source, np.float32(0)))
            elif step.kind == "add":
                values.append(source + values[step.sources[1]])
            else:
                values.append(np.array([source[list(group)].max() for group in step.groups], np.float32))
    return values[-1]
