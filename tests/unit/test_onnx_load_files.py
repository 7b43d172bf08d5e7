"""Whole files: types, dynamic sizes, initializers of every kind, compressed and external data; and files refused in one sentence."""
from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.onnx_models import assert_as_onnxruntime, model, ours, saved
from verifier.errors import ModelError, ShapeError, UnsupportedError, VerifierError
from verifier.graph.onnx_load import load_onnx, read_model_bytes
from verifier.graph.onnx_run import OnnxRunner
from verifier.graph.passes import simplify
from verifier.graph.validate import check_against_onnxruntime

N = helper.make_node
R = np.random.default_rng(3)
WEIGHT, BIAS = R.standard_normal((4, 3)).astype(np.float32), R.standard_normal(3).astype(np.float32)
LAYER = [N("MatMul", ["x", "w"], ["h"], name="matmul"), N("Add", ["h", "b"], ["a"], name="add"), N("Relu", ["a"], ["y"], name="relu")]


def layer(kind: type = np.float32, **changes) -> onnx.ModelProto:
    """relu(x w + b) in one floating type."""
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return model(**{"nodes": LAYER, "shape": (1, 4), "constants": {"w": WEIGHT.astype(kind), "b": BIAS.astype(kind)},
          "kind": elem, **changes})


def test_names_survive(tmp_path: Path) -> None:
    graph = load_onnx(saved(layer(), tmp_path))
    assert [(n.name, n.op) for n in graph.nodes] == [("x", "Input"), ("h", "Linear"), ("a", "Scale"), ("y", "Relu")]
    assert graph.output == "y" and graph.source.endswith("small.onnx")


def test_a_dropped_bias_would_be_seen(tmp_path: Path) -> None:
    """The oracle is not blind: without the Add the comparison fails."""
    path = saved(layer(), tmp_path)
    graph = load_onnx(path)
    x = R.standard_normal((1, 4)).astype(np.float32)
    without = saved(model([LAYER[0], N("Relu", ["h"], ["y"])], (1, 4), {"w": WEIGHT}), tmp_path)
    assert not np.allclose(ours(graph, x), ours(load_onnx(without), x))
    with pytest.raises(ModelError, match="differs from onnxruntime's"):
        check_against_onnxruntime(graph, without)


def test_float64_stays_float64(tmp_path: Path) -> None:
    graph = assert_as_onnxruntime(saved(layer(np.float64), tmp_path), tolerance=1e-14)
    assert {a.dtype for n in graph.nodes for a in n.constants.values()} == {np.dtype(np.float64)}
    check_against_onnxruntime(graph, saved(layer(np.float64), tmp_path))


def test_float16_becomes_float32(tmp_path: Path) -> None:
    path = saved(layer(np.float16), tmp_path)
    graph = assert_as_onnxruntime(path, tolerance=1e-2)
    assert graph.node("h").constants["weight"].dtype == np.float32
    check_against_onnxruntime(graph, path)


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    """onnxruntime has few kernels for it, so the value is checked by hand."""
    made = layer()
    for tensor in made.graph.initializer:
        array = numpy_helper.to_array(tensor)
        bits = (array.view(np.uint32) >> 16).astype(np.uint16)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.BFLOAT16, array.shape, bits.tobytes(), raw=True))
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    graph = load_onnx(saved(made, tmp_path))
    cut = (WEIGHT.view(np.uint32) >> 16 << 16).view(np.float32)
    assert np.array_equal(graph.node("h").constants["weight"], cut.T)


def test_dynamic_sizes_count_as_one(tmp_path: Path) -> None:
    graph = assert_as_onnxruntime(saved(layer(shape=("batch", 4)), tmp_path))
    assert graph.input_shape == (1, 4)


def test_initializers_may_be_listed_as_inputs(tmp_path: Path) -> None:
    made = layer()
    made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (4, 3)))
    assert_as_onnxruntime(saved(made, tmp_path))


@pytest.mark.parametrize("linear", [True, False], ids=["linear indices", "coordinates"])
def test_sparse_initializers(linear: bool, tmp_path: Path) -> None:
    made = layer()
    del made.graph.initializer[0]
    places = np.array([1, 5, 11])
    values = numpy_helper.from_array(np.float32([1.0, -2.0, 3.0]), "w")
    indices = numpy_helper.from_array(places if linear else np.stack([places // 3, places % 3], 1), "w indices")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3]))
    graph = assert_as_onnxruntime(saved(made, tmp_path))
    assert np.count_nonzero(graph.node("h").constants["weight"]) == 3


def test_gzip_and_path_types(tmp_path: Path) -> None:
    plain = saved(layer(), tmp_path)
    packed = tmp_path / "small.onnx.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_model_bytes(str(packed)) == plain.read_bytes()
    assert_as_onnxruntime(packed)
    assert load_onnx(str(packed)).output_shape == (1, 3)


@pytest.mark.parametrize("packed", [False, True])
def test_external_data_beside_the_file(packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "outside.onnx"
    onnx.save(layer(), path, save_as_external_data=True, location="outside.data", size_threshold=0)
    if packed:
        path.rename(tmp_path / "plain")
        path = tmp_path / "outside.onnx.gz"
        path.write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    check_against_onnxruntime(assert_as_onnxruntime(path), path)
    (tmp_path / "outside.data").unlink()
    with pytest.raises(ModelError, match="another file"):
        load_onnx(path)


def test_local_functions_are_written_out(tmp_path: Path) -> None:
    body = [N("Relu", ["a"], ["b"]), N("Neg", ["b"], ["c"])]
    function = helper.make_function("mine", "NegRelu", ["a"], ["c"], body, [helper.make_opsetid("", 17)])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (2,)) for name in "xy"]
    graph = helper.make_graph([N("NegRelu", ["x"], ["y"], domain="mine")], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    path = saved(helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8), tmp_path)
    assert {n.op for n in assert_as_onnxruntime(path).nodes} == {"Input", "Relu", "Scale"}


def test_all_unsupported_operations_in_one_error(tmp_path: Path) -> None:
    """Also what comes after a refused node, and what is refused for its attributes."""
    nodes = [
        N("Softmax", ["x"], ["a"], name="soft"),
        N("Pad", ["a"], ["b"], name="mirror", mode="reflect", pads=[0, 1, 0, 1]),
        N("Relu", ["b"], ["c"]),
        N("Mystery", ["c"], ["d"], name="foreign", domain="com.example"),
        N("Exp", ["d"], ["e"], name="exponential"),
        N("Pow", ["x", "three"], ["f"], name="cube"),
        N("Add", ["e", "f"], ["y"]),
    ]
    made = model(nodes, (1, 4), {"three": np.float32(3)}, opset=9)
    made.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(UnsupportedError) as caught:
        load_onnx(saved(made, tmp_path))
    message = str(caught.value)
    assert "uses 5 operation(s)" in message and "\n" not in message
    for part in ("Softmax 'soft'", "Pad 'mirror' (the mode 'reflect')", "Mystery 'foreign'", "Exp 'exponential'", "Pow 'cube'"):
        assert part in message


EMPTY = helper.make_graph([], "empty", [], [])
REFUSED = {
    "div by variable": ([N("Div", ["c", "x"], ["y"])], {"c": np.float32([1, 2, 3, 4])}),
    "conv weight variable": ([N("Conv", ["c", "x"], ["y"])], {"c": np.ones((1, 1, 9, 9), np.float32)}),
    "clip bound variable": ([N("Clip", ["c", "x"], ["y"])], {"c": np.float32([1, 2])}),
    "clip bounds swapped": ([N("Clip", ["x", "l", "u"], ["y"])], {"l": np.float32(1), "u": np.float32(0)}),
    "gather by variable": ([N("Cast", ["x"], ["i"], to=7), N("Gather", ["c", "i"], ["y"])], {"c": np.float32([1, 2])}),
    "random": ([N("RandomNormalLike", ["x"], ["r"]), N("Add", ["x", "r"], ["y"])], {}),
    "control flow": ([N("If", ["c"], ["z"], then_branch=EMPTY, else_branch=EMPTY), N("Add", ["x", "z"], ["y"])], {"c": np.array(True)}),
    "batch of two in a conv": ([N("Expand", ["x", "s"], ["e"]), N("Conv", ["e", "w"], ["y"])],
                               {"s": np.int64([2, 1, 4]), "w": np.ones((1, 1, 2), np.float32)}),
    "slope of a cliff": ([N("LeakyRelu", ["x"], ["y"], alpha=1e30)], {}),
    "same padding that skips": ([N("Unsqueeze", ["x", "a"], ["u"]), N("MaxPool", ["u"], ["y"], kernel_shape=[1], strides=[9], auto_pad="SAME_UPPER")],
                                {"a": np.int64([0])}),
    "dropout in training": ([N("Dropout", ["x", "r", "t"], ["y"])], {"r": np.float32(0.5), "t": np.array(True)}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    nodes, constants = REFUSED[name]
    with pytest.raises(UnsupportedError, match=r"uses \d operation\(s\) that are not supported") as caught:
        load_onnx(saved(model(nodes, (1, 4), constants), tmp_path))
    assert "\n" not in str(caught.value)


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    made = layer()
    change(made)
    return made


def with_value(name: str, value: float) -> onnx.ModelProto:
    constants = {"w": WEIGHT.copy(), "b": BIAS.copy()}
    constants[name].reshape(-1)[1] = value
    return layer(constants=constants)


ONES = np.ones(4, np.float32)
INFO = helper.make_tensor_value_info
BROKEN: dict[str, tuple[onnx.ModelProto, str]] = {
    "NaN": (with_value("w", np.nan), "initializer 'w'.*NaN"),
    "infinite": (with_value("b", -np.inf), "initializer 'b'.*infinity"),
    "two inputs": (changed(lambda m: m.graph.input.append(INFO("z", TensorProto.FLOAT, (1,)))), "2 inputs"),
    "no input": (changed(lambda m: m.graph.input.pop()), "0 inputs"),
    "two outputs": (changed(lambda m: m.graph.output.append(INFO("h", TensorProto.FLOAT, None))), "2 outputs"),
    "no output": (changed(lambda m: m.graph.output.pop()), "0 outputs"),
    "integer input": (changed(lambda m: m.graph.input[0].CopyFrom(INFO("x", TensorProto.INT64, (1, 4)))), "INT64"),
    "input without shape": (changed(lambda m: m.graph.input[0].CopyFrom(INFO("x", TensorProto.FLOAT, None))), "no shape"),
    "empty input": (changed(lambda m: m.graph.input[0].CopyFrom(INFO("x", TensorProto.FLOAT, (0, 4)))), "holds no value"),
    "no initializer": (changed(lambda m: m.graph.initializer.pop()), "reads 'b'"),
    "cut initializer": (changed(lambda m: setattr(m.graph.initializer[0], "raw_data", b"1234")), "initializer 'w' cannot be read"),
    "old opset": (layer(opset=6), "version 6"),
    "no opset": (changed(lambda m: m.opset_import.pop()), "no version"),
    "no node": (model([], (1, 4)), "no operation"),
    "nothing produces the output": (changed(lambda m: m.graph.node.pop()), "does not depend"),
    "constant output": (model([N("Relu", ["c"], ["y"])], (1, 4), {"c": BIAS}), "does not depend"),
    "produced twice": (model([*LAYER[:2], N("Relu", ["a"], ["h"]), N("Relu", ["h"], ["y"])], (1, 4), {"w": WEIGHT, "b": BIAS}), "already"),
    "out of order": (model([LAYER[1], LAYER[0], LAYER[2]], (1, 4), {"w": WEIGHT, "b": BIAS}), "nothing before it"),
    "division by zero": (model([N("Div", ["x", "c"], ["y"])], (1, 4), {"c": np.float32([1, 0, 1, 1])}), "divides by zero"),
    "a flag of 2": (model([N("MaxPool", ["x"], ["y"], kernel_shape=[1], ceil_mode=2)], (1, 1, 4)), "neither 0 nor 1"),
    "an attribute that is missing": (model([N("Concat", ["x", "x"], ["y"])], (1, 4)), "do not fit"),
    "an attribute that is NaN": (model([N("LeakyRelu", ["x"], ["y"], alpha=np.nan)], (1, 4)), "alpha = nan"),
    "a value that fills the memory": (model([N("Expand", ["x", "s"], ["y"])], (1, 4), {"s": np.int64([2**40, 1])}), "more than"),
    "a constant that fills the memory": (model([N("ConstantOfShape", ["s"], ["c"]), N("Add", ["x", "c"], ["y"])], (1, 4),
                                               {"s": np.int64([2**40, 4])}), "more than"),
    "negative variance": (model([N("BatchNormalization", ["x", *"abcd"], ["y"])], (1, 4), dict.fromkeys("abcd", -ONES)), "negative"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_models_are_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    made, sentence = BROKEN[name]
    with pytest.raises(ModelError, match=sentence) as caught:
        load_onnx(saved(made, tmp_path))
    assert "small.onnx" in str(caught.value) and "\n" not in str(caught.value)


UNFITTING = {
    "matmul": ([N("MatMul", ["x", "c"], ["y"])], (5, 3)),
    "add": ([N("Add", ["x", "c"], ["y"])], (3,)),
    "channels": ([N("Conv", ["x", "c"], ["y"])], (1, 2, 1)),
    "rank": ([N("Conv", ["x", "c"], ["y"])], (1, 3, 1, 1)),
    "window": ([N("Conv", ["x", "c"], ["y"])], (1, 3, 9)),
    "concat": ([N("Concat", ["x", "c"], ["y"], axis=0)], (1, 3, 5)),
    "axis": ([N("Transpose", ["x"], ["y"], perm=[0, 1, 5])], (1,)),
}


@pytest.mark.parametrize("name", UNFITTING)
def test_shapes_that_do_not_fit(name: str, tmp_path: Path) -> None:
    nodes, shape = UNFITTING[name]
    with pytest.raises(ShapeError, match=r"small\.onnx: .*"):
        load_onnx(saved(model(nodes, (1, 3, 4), {"c": np.ones(shape, np.float32)}), tmp_path))


def test_unreadable_files(tmp_path: Path) -> None:
    whole = layer().SerializeToString()
    contents = {"empty": b"", "garbage": b"no network at all" * 9, "cut": whole[: len(whole) // 2], "cut.gz": gzip.compress(whole)[:-20],
                "wrong.gz": b"\x1f\x8bnothing of the kind", "text": b"{}"}
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ModelError, match=name):
            load_onnx(path)
    for path in (tmp_path, tmp_path / "missing.onnx"):
        with pytest.raises(ModelError, match=path.name):
            load_onnx(path)


def test_every_cut_of_a_file_is_refused_or_harmless(tmp_path: Path) -> None:
    """Wherever the file is cut: a sentence, or a graph that onnxruntime agrees with (where only trailing fields are missing)."""
    whole, refused = layer().SerializeToString(), 0
    path = tmp_path / "cut.onnx"
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        try:
            check_against_onnxruntime(load_onnx(path), path)
        except VerifierError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > len(range(0, len(whole), 7)) * 0.9


def test_the_check_names_the_first_difference(tmp_path: Path) -> None:
    right, wrong = saved(layer(), tmp_path), tmp_path / "wrong.onnx"
    onnx.save(layer(constants={"w": WEIGHT, "b": BIAS + np.float32(0.5)}), wrong)
    check_against_onnxruntime(load_onnx(right), right)
    with pytest.raises(ModelError, match="first at Scale 'a'"):
        check_against_onnxruntime(load_onnx(wrong), right)


def test_a_file_that_onnxruntime_cannot_run(tmp_path: Path) -> None:
    made = layer()
    made.ir_version = 1000
    path = saved(made, tmp_path)
    with pytest.raises(ModelError, match="onnxruntime cannot load it") as caught:
        check_against_onnxruntime(load_onnx(path), path)
    assert "\n" not in str(caught.value)


def test_the_runner(tmp_path: Path) -> None:
    path = saved(layer(shape=("batch", 4)), tmp_path)
    runner, fixed = OnnxRunner(path), OnnxRunner(layer().SerializeToString())
    x = R.standard_normal((5, 4))
    expected = np.maximum(x @ WEIGHT + BIAS, 0)
    assert (runner.n_in, runner.n_out, runner.input_dtype) == (4, 3, np.float32)
    for run in (runner, fixed):
        np.testing.assert_allclose(run.many(x), expected, atol=1e-5)
        np.testing.assert_allclose(run(x[0]), expected[0], atol=1e-5)
        assert run(x[0]).dtype == np.float32 and run.many(x[:0]).shape == (0, 3)
    with pytest.raises(ShapeError, match="4 values"):
        runner(x)


def test_a_batch_that_mixes_its_samples_is_run_one_by_one(tmp_path: Path) -> None:
    """The file says that its batch is dynamic, but takes a mean over it."""
    nodes = [N("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1), N("Add", ["x", "m"], ["y"])]
    runner = OnnxRunner(saved(model(nodes, ("batch", 4)), tmp_path))
    x = R.standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_allclose(runner.many(x), 2 * x, rtol=1e-6)


@pytest.mark.shared
@pytest.mark.parametrize("family", ["acasxu", "cifar10_resnet", "eran", "marabou-cifar10", "sri_resnet_a", "test", "verivital"])
def test_a_shared_network_of_each_kind(family: str, shared: Path) -> None:
    path = min(shared.glob(f"vnncomp/{family}/*.onnx.gz"))
    check_against_onnxruntime(simplify(load_onnx(path)), path)
    assert len(simplify(load_onnx(path)).nodes) <= len(load_onnx(path).nodes)


@pytest.mark.shared
@pytest.mark.slow
def test_all_shared_networks(shared: Path) -> None:
    """Loaded and simplified, each is what onnxruntime runs; two families use operations that are not supported, and say so."""
    files, refused = sorted(shared.glob("vnncomp/*/*.onnx.gz")), set()
    for path in files:
        try:
            check_against_onnxruntime(simplify(load_onnx(path)), path)
        except UnsupportedError:
            refused.add(path.parent.name)
    assert len(files) > 40 and refused <= {"nn4sys", "vit"}


def test_bfloat16_weights_of_a_float32_network(tmp_path: Path) -> None:
    made = model([N("Cast", ["w"], ["v"], to=TensorProto.FLOAT), N("MatMul", ["x", "v"], ["y"])], (1, 4), {"w": WEIGHT})
    bits = (WEIGHT.view(np.uint32) >> 16).astype(np.uint16)
    made.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.BFLOAT16, WEIGHT.shape, bits.tobytes(), raw=True))
    assert_as_onnxruntime(saved(made, tmp_path))
