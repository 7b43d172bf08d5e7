"""Models read once: what the digest covers, where external data may lie, and what is refused before it fills the memory."""
from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node as N

from tests.onnx_models import assert_as_onnxruntime, model, saved
from verifier.errors import ModelError, VerifierError
from verifier.graph.load import load_onnx as load_checked
from verifier.graph.onnx_file import model_digest
from verifier.graph.onnx_load import load_onnx
from verifier.graph.onnx_read import read_model, read_model_bytes

WEIGHT = np.float32([[1, 2], [3, 4]])


def outside(array: np.ndarray, location: str, **more: int) -> TensorProto:
    """A tensor whose data lies in another file."""
    tensor = numpy_helper.from_array(array, "W")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def with_constant(location: str, folder: Path, **more: int) -> Path:
    """y = x W, W an attribute of a Constant whose data lies elsewhere."""
    nodes = [N("Constant", [], ["W"], value=outside(WEIGHT, location, **more)), N("MatMul", ["x", "W"], ["y"])]
    folder.mkdir(exist_ok=True)
    return saved(model(nodes, (1, 2)), folder)


def test_data_of_an_attribute_is_the_model_folders_and_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_constant("w.bin", tmp_path / "model")
    (path.parent / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "w.bin").write_bytes((10 * WEIGHT).tobytes())
    monkeypatch.chdir(tmp_path)
    before = model_digest(path)
    graph = load_checked(path)
    assert np.array_equal(graph.node("y").constants["weight"], WEIGHT.T) and graph.digest == before
    (path.parent / "w.bin").write_bytes((2 * WEIGHT).tobytes())
    assert model_digest(path) != before


def test_data_within_functions_and_sparse_tensors_is_hashed(tmp_path: Path) -> None:
    body = [N("Constant", [], ["W"], value=outside(WEIGHT, "f.bin")), N("MatMul", ["a", "W"], ["c"])]
    function = helper.make_function("mine", "Times", ["a"], ["c"], body, [helper.make_opsetid("", 17)])
    made = model([N("Times", ["x"], ["h"], domain="mine"), N("MatMul", ["h", "s"], ["y"])], (1, 2), opset=17)
    made.functions.append(function)
    made.opset_import.append(helper.make_opsetid("mine", 1))
    values, indices = outside(np.float32([5, 7]), "v.bin"), outside(np.int64([0, 3]), "i.bin")
    values.name = "s"
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 2]))
    path = saved(made, tmp_path)
    files = {"f.bin": WEIGHT, "v.bin": np.float32([5, 7]), "i.bin": np.int64([0, 3])}
    for name, array in files.items():
        (tmp_path / name).write_bytes(array.tobytes())
    digests = {model_digest(path)}
    assert np.array_equal(load_onnx(path).nodes[-1].constants["weight"], np.diag([5.0, 7.0]).astype(np.float32))
    for name, array in files.items():
        (tmp_path / name).write_bytes((array[::-1].copy()).tobytes())
        digests.add(model_digest(path))
    assert len(digests) == 4


def test_bytes_that_move_between_two_files_change_the_digest(tmp_path: Path) -> None:
    """A digest of the mere concatenation would not: b.bin + z.bin is the same whole."""
    nodes = [N("Constant", [], ["W"], value=outside(WEIGHT, "z.bin", length=16)), N("MatMul", ["x", "W"], ["m"]),
             N("Constant", [], ["B"], value=outside(np.float32([1, 2]), "b.bin", length=8)), N("Add", ["m", "B"], ["y"])]
    path = saved(model(nodes, (1, 2)), tmp_path)
    whole = np.arange(8, dtype=np.float32).tobytes()
    digests = set()
    for cut in (8, 12):
        (tmp_path / "b.bin").write_bytes(whole[:cut])
        (tmp_path / "z.bin").write_bytes(whole[cut:])
        digests.add(model_digest(path))
    assert len(digests) == 2


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "a/../../w.bin", "link.bin", "..\\w.bin"])
def test_nothing_outside_of_the_models_folder_is_opened(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    path = with_constant(location, tmp_path / "model")
    os.symlink(tmp_path / "w.bin", path.parent / "link.bin")
    for read in (model_digest, load_onnx):
        with pytest.raises(ModelError, match="not in its own folder"):
            read(path)


@pytest.mark.parametrize("more", [{"offset": -1}, {"offset": 8}, {"length": 1000}, {"length": 8}, {"kind": 3}])
def test_a_part_that_is_not_there_is_refused(more: dict[str, int], tmp_path: Path) -> None:
    path = with_constant("w.bin", tmp_path, **more)
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(ModelError) as caught:
        load_onnx(path)
    assert "\n" not in str(caught.value)


def test_a_pipe_is_no_weight_file(tmp_path: Path) -> None:
    path = with_constant("w.bin", tmp_path)
    os.mkfifo(tmp_path / "w.bin")
    with pytest.raises(ModelError, match="not there"):
        load_onnx(path)


def test_one_reading_is_digest_and_model(tmp_path: Path) -> None:
    path = saved(model([N("Relu", ["x"], ["y"])], (1, 2)), tmp_path)
    made, digest = read_model(path)
    assert digest == model_digest(path) == load_onnx(path).digest and made.graph.node[0].op_type == "Relu"


def test_a_gzip_bomb_is_refused_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "bomb.onnx.gz"
    piece = gzip.compress(bytes(2**24), 9)
    path.write_bytes(piece * 24)
    with pytest.raises(ModelError, match="unpacks to more than"):
        read_model_bytes(path)
    path.write_bytes(piece)
    assert len(read_model_bytes(path)) == 2**24


def test_functions_that_write_out_to_billions_are_refused(tmp_path: Path) -> None:
    made = model([N("F0", ["x"], ["y"], domain="mine")], (1, 2), opset=17)
    made.opset_import.append(helper.make_opsetid("mine", 1))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    for k in range(40):
        body = [N(f"F{k + 1}", ["a"], ["b"], domain="mine"), N(f"F{k + 1}", ["b"], ["c"], domain="mine")] if k < 39 else [N("Relu", ["a"], ["c"])]
        made.functions.append(helper.make_function("mine", f"F{k}", ["a"], ["c"], body, opsets))
    with pytest.raises(ModelError, match="write out"):
        load_onnx(saved(made, tmp_path))


CONSTANT_BOMBS = {
    "concatenated": [N("ConstantOfShape", ["s"], ["a"]), N("Concat", ["a"] * 30, ["b"], axis=0), N("ReduceSum", ["b"], ["c"], keepdims=0)],
    "one by one": [*(N("ConstantOfShape", ["t"], [f"a{k}"]) for k in range(9)), N("Sum", [f"a{k}" for k in range(9)], ["b"]),
                   N("ReduceSum", ["b"], ["c"], keepdims=0)],
    "broadcast": [N("ConstantOfShape", ["r"], ["a"]), N("Transpose", ["a"], ["t_"]), N("Add", ["a", "t_"], ["b"]),
                  N("ReduceSum", ["b"], ["c"], keepdims=0)],
    "outer product": [N("ConstantOfShape", ["r"], ["a"]), N("Transpose", ["a"], ["t_"]), N("MatMul", ["t_", "a"], ["b"]),
                      N("ReduceSum", ["b"], ["c"], keepdims=0)],
}


@pytest.mark.parametrize("name", CONSTANT_BOMBS)
def test_constants_that_fill_the_memory_are_refused_before(name: str, tmp_path: Path) -> None:
    sizes = {"s": np.int64([2**24]), "t": np.int64([2**22 + 2**21]), "r": np.int64([1, 2**16])}
    path = saved(model([*CONSTANT_BOMBS[name], N("Mul", ["x", "c"], ["y"])], (1, 2), sizes), tmp_path)
    with pytest.raises(VerifierError, match=r"more than .* values in all"):
        load_onnx(path)


def test_a_sparse_tensor_of_a_huge_shape_is_refused(tmp_path: Path) -> None:
    made = model([N("Mul", ["x", "s"], ["y"])], (1, 2))
    values, indices = numpy_helper.from_array(np.float32([1]), "s"), numpy_helper.from_array(np.int64([0]), "i")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**40, 2]))
    with pytest.raises(ModelError, match="more than"):
        load_onnx(saved(made, tmp_path))


def test_names_and_attributes_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    made = model([N("MatMul", ["x", "w"], ["y"])], (1, 2), {"w": WEIGHT})
    made.graph.initializer.append(numpy_helper.from_array(2 * WEIGHT, "w"))
    with pytest.raises(ModelError, match="twice"):
        load_onnx(saved(made, tmp_path))
    made = model([N("Flatten", ["x"], ["y"], axis=1)], (1, 2))
    made.graph.node[0].attribute.append(helper.make_attribute("axis", 0))
    with pytest.raises(ModelError, match="twice"):
        load_onnx(saved(made, tmp_path))


HALF = WEIGHT.astype(np.float16)
KINDS = {
    "float32": (model([N("MatMul", ["x", "w"], ["y"])], (1, 2), {"w": WEIGHT}), "float32"),
    "half weights cast": (model([N("Cast", ["w"], ["v"], to=1), N("MatMul", ["x", "v"], ["y"])], (1, 2), {"w": HALF}), "float32"),
    "double": (model([N("MatMul", ["x", "w"], ["y"])], (1, 2), {"w": WEIGHT.astype(np.float64)}, kind=TensorProto.DOUBLE), "float64"),
    "half": (model([N("MatMul", ["x", "w"], ["y"])], (1, 2), {"w": HALF}, kind=TensorProto.FLOAT16), "float16"),
    "half, then float32": (model([N("Cast", ["x"], ["z"], to=1), N("MatMul", ["z", "w"], ["y"])], (1, 2), {"w": WEIGHT}, kind=TensorProto.FLOAT16),
                           "float32"),
    "double, rounded": (model([N("Cast", ["x"], ["z"], to=1), N("MatMul", ["z", "w"], ["y"])], (1, 2), {"w": WEIGHT}, kind=TensorProto.DOUBLE), None),
    "two types": (model([N("MatMul", ["x", "w"], ["a"]), N("Cast", ["a"], ["b"], to=11), N("Mul", ["b", "b"], ["y"])], (1, 2), {"w": WEIGHT}), None),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_arithmetic_of_a_file(name: str, tmp_path: Path) -> None:
    made, expected = KINDS[name]
    graph = load_onnx(saved(made, tmp_path))
    assert graph.arithmetic == expected and bool(graph.mixed) == (expected is None) and graph.computed == ()


@pytest.mark.parametrize("to", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT64])
def test_a_cast_that_rounds_what_depends_on_the_input_is_refused(to: int, tmp_path: Path) -> None:
    path = saved(model([N("Relu", ["x"], ["r"]), N("Cast", ["r"], ["h"], to=to), N("Cast", ["h"], ["y"], to=1)], (1, 2)), tmp_path)
    with pytest.raises(VerifierError, match="a cast of a value that depends on the input"):
        load_onnx(path)


COMPUTED = {
    "mask": ([N("Greater", ["w", "z"], ["m"]), N("Cast", ["m"], ["v"], to=1)], False),
    "where": ([N("Greater", ["w", "z"], ["m"]), N("Where", ["m", "w", "z"], ["v"])], False),
    "halved": ([N("Mul", ["w", "half"], ["v"])], False),
    "masked": ([N("Greater", ["w", "z"], ["m"]), N("Cast", ["m"], ["n"], to=1), N("Mul", ["w", "n"], ["v"])], False),
    "thirds": ([N("Div", ["w", "three"], ["v"])], True),
    "a product that rounds": ([N("Mul", ["w", "third"], ["v"])], True),
    "exponential": ([N("Exp", ["w"], ["v"])], True),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_only_what_rounds_is_listed_as_computed(name: str, tmp_path: Path) -> None:
    nodes, rounds = COMPUTED[name]
    constants = {"w": WEIGHT, "z": np.float32(2), "half": np.float32(0.5), "three": np.float32(3), "third": np.float32(1 / 3)}
    graph = assert_as_onnxruntime(saved(model([*nodes, N("MatMul", ["x", "v"], ["y"])], (1, 2), constants), tmp_path))
    assert bool(graph.computed) == rounds


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Neg"])
def test_a_value_without_dimensions(op: str, tmp_path: Path) -> None:
    nodes = [N("MatMul", ["x", "w"], ["a"]), N("ReduceSum", ["a"], ["s"], keepdims=0), N("Transpose", ["s"], ["t"]), N(op, ["t"], ["y"])]
    assert assert_as_onnxruntime(saved(model(nodes, (1, 2), {"w": WEIGHT}), tmp_path)).output_shape == (1,)


@pytest.mark.parametrize(("domain", "name"), [("", "Relu"), ("ai.onnx", "Relu"), ("com.microsoft", "Gelu"), ("ai.onnx.ml", "Binarizer")])
def test_a_function_does_not_take_the_place_of_the_standards_operation(domain: str, name: str, tmp_path: Path) -> None:
    """onnxruntime computes its own: a proof about the function would be one about another network."""
    made = model([N(name, ["x"], ["y"], domain=domain)], (1, 2), opset=17)
    made.opset_import.extend([helper.make_opsetid(domain, 1)] if domain not in ("", "ai.onnx") else [])
    made.functions.append(helper.make_function(domain, name, ["a"], ["b"], [N("Identity", ["a"], ["b"])], [helper.make_opsetid("", 17)]))
    with pytest.raises(ModelError, match="name of the standard"):
        load_onnx(saved(made, tmp_path))


@pytest.mark.parametrize("axes", [25, 71])
def test_many_axes_are_refused(axes: int, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{axes} axes"):
        load_checked(saved(model([N("Neg", ["x"], ["y"])], (1,) * (axes - 1) + (2,)), tmp_path))
    grown = model([N("Reshape", ["x", "s"], ["r"]), N("Neg", ["r"], ["y"])], (1, 2), {"s": np.array([1] * (axes - 1) + [2])})
    with pytest.raises(VerifierError, match=f"{axes} axes"):
        load_checked(saved(grown, tmp_path))
