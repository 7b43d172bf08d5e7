"""The ONNX file format: bytes -> model, tensors -> arrays, what a model says of itself. Knows protobuf, not what an operation means."""
from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto, helper, numpy_helper

from verifier.errors import ModelError, UnsupportedError

_OLDEST_OPSET = 7
# Constants are weights and masks; one of this many values would fill a gigabyte.
_MOST_COMPUTED = 2**28
_TYPE_NAMES = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
}


def read_model_bytes(path: str | Path) -> bytes:
    """The file's bytes, decompressed where it is gzip.

    Raises:
        ModelError: there is no such file, it cannot be read, or it is empty.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path} is a folder: give the .onnx file in it.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from None
    data = _decompressed(data, path) if data[:2] == b"\x1f\x8b" else data
    if not data:
        raise ModelError(f"{path} is empty.")
    return data


def _decompressed(data: bytes, path: Path) -> bytes:
    cut = f"{path} is a damaged gzip file: it cannot be decompressed to its end."
    try:
        return gzip.decompress(data)
    except EOFError:
        raise ModelError(cut) from None
    except OSError:
        raise ModelError(cut) from None
    except zlib.error:
        raise ModelError(cut) from None


def model_digest(path: str | Path) -> str:
    """SHA-256, in hexadecimal, of the file's bytes (decompressed where it is gzip) and of its external data, the files ordered by name.

    Raises:
        ModelError: the model cannot be read.
    """
    data = read_model_bytes(path)
    sum_ = hashlib.sha256(data)
    graph = _decoded(data, path).graph
    tensors = [*graph.initializer, *(attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t"))]
    for name in sorted({entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}):
        file = Path(path).parent / name
        if not file.is_file():
            raise ModelError(f"{path} keeps weights in {name!r}, which is not there: keep the two files together.")
        try:
            sum_.update(file.read_bytes())
        except OSError as error:
            raise ModelError(f"{path} keeps weights in {name!r}, which cannot be read: {error.strerror or error}.") from None
    return sum_.hexdigest()


def _decoded(data: bytes, path: str | Path) -> ModelProto:
    try:
        return onnx.load_model_from_string(data)
    except DecodeError:
        raise ModelError(f"{path} is not an ONNX file: its bytes cannot be decoded; is it cut, or of another format?") from None


def parse_model(path: str | Path) -> ModelProto:
    """The model of a file, with its external data, and its local functions written out.

    Raises:
        ModelError: the bytes are not an ONNX model, or the external data is not there.
    """
    model = _decoded(read_model_bytes(path), path)
    if not model.graph.node:
        raise ModelError(f"{path} is not an ONNX network: it holds no operation.")
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in model.graph.initializer):
        try:
            onnx.external_data_helper.load_external_data_for_model(model, str(Path(path).parent))
        except Exception as error:
            raise ModelError(f"{path} keeps weights in another file, which cannot be read: {first_line(error)}") from None
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    return model


def first_line(error: Exception) -> str:
    """What an error of another library says, as one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def opset_of(model: ModelProto) -> int:
    """The version of the standard operations.

    Raises:
        ModelError: none is named, or it is older than 7, when broadcasting meant something else.
    """
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise ModelError("the file names no version of the ONNX operations: is it damaged?")
    if min(versions) < _OLDEST_OPSET:
        raise ModelError(f"the file uses ONNX operations of version {min(versions)}; {_OLDEST_OPSET} is the oldest read here: convert it.")
    return versions[0]


def constant_names(model: ModelProto) -> set[str]:
    """Names of the initializers, dense and sparse."""
    return {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}


def input_of(model: ModelProto) -> ValueInfoProto:
    """The only graph input that is no initializer.

    Raises:
        ModelError: there are none or several, or it is not floating.
    """
    constants = constant_names(model)
    inputs = [info for info in model.graph.input if info.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(repr(info.name) for info in inputs) or "none"
        raise ModelError(f"the network has {len(inputs)} inputs ({names}); exactly one is needed.")
    kind = inputs[0].type.tensor_type.elem_type
    if kind not in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16):
        said = TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else kind
        raise ModelError(f"input {inputs[0].name!r} holds {said}; floating-point numbers are needed.")
    return inputs[0]


def input_type(model: ModelProto) -> np.dtype:
    """float64 where the input says so, else float32."""
    return np.dtype(np.float64 if input_of(model).type.tensor_type.elem_type == TensorProto.DOUBLE else np.float32)


def arithmetic_of(model: ModelProto) -> str:
    """The one arithmetic that a runtime computes in throughout: "float32", "float64", "float16", or "" where it is none of them.

    The type is the input's. No weight or cast is of another floating type, but for float64 beside float32: it rounds less.
    """
    names = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
    casts = (a.i for node in model.graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to")
    constants = (a.t.data_type for node in model.graph.node for a in node.attribute if a.type == AttributeProto.TENSOR)
    own = names.get(input_of(model).type.tensor_type.elem_type, "")
    others = {names[t] for t in {*(tensor.data_type for tensor in model.graph.initializer), *casts, *constants} if t in names} - {own}
    return own if own != "bfloat16" and others <= ({"float64"} if own == "float32" else set()) else ""


def output_of(model: ModelProto) -> str:
    """Name of the only output.

    Raises:
        ModelError: there are none or several.
    """
    names = [info.name for info in model.graph.output]
    if len(names) != 1:
        raise ModelError(f"the network has {len(names)} outputs ({', '.join(map(repr, names)) or 'none'}); exactly one is needed.")
    return names[0]


def shape_of(info: ValueInfoProto) -> tuple[int, ...]:
    """The declared shape; a dynamic dimension counts as 1.

    Raises:
        ModelError: no shape is declared, or it holds no value.
    """
    if not info.type.tensor_type.HasField("shape"):
        raise ModelError(f"input {info.name!r} declares no shape.")
    sizes = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else 1 for d in info.type.tensor_type.shape.dim)
    if 0 in sizes:
        raise ModelError(f"input {info.name!r} has the shape {sizes}, which holds no value.")
    return sizes


def live_nodes(model: ModelProto, output: str) -> list[NodeProto]:
    """The nodes that the output depends on, in the file's order."""
    wanted, live = {output}, []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            live.append(node)
            wanted.update(node.input)
    return live[::-1]


def float_array(array: np.ndarray) -> np.ndarray:
    """The array, with float16, bfloat16 and smaller floats as float32."""
    small = array.dtype.kind in "fV" and array.dtype not in (np.float32, np.float64)
    return array.astype(np.float32) if small else array


def array_of(tensor: TensorProto | SparseTensorProto) -> np.ndarray:
    """A tensor of the file as an array.

    Raises:
        ModelError: its data does not fill its shape, or its type holds no numbers.
    """
    name = tensor.values.name if isinstance(tensor, SparseTensorProto) else tensor.name
    try:
        return _dense(tensor) if isinstance(tensor, SparseTensorProto) else float_array(numpy_helper.to_array(tensor))
    except Exception as error:
        raise ModelError(f"initializer {name!r} cannot be read ({first_line(error)}): is the file cut?") from None


def _dense(sparse: SparseTensorProto) -> np.ndarray:
    """Zeros but for the listed places: linear indices `(n,)` or coordinates `(n, rank)`."""
    values, indices = float_array(numpy_helper.to_array(sparse.values)), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Attributes as python values: text decoded, integers as tuples, tensors as arrays, the type of a Cast by its name.

    Raises:
        UnsupportedError: an attribute is a graph.
    """
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            raise UnsupportedError("it runs a graph of its own")
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif isinstance(value, (TensorProto, SparseTensorProto)):
            value = array_of(value)
        elif attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS):
            value = tuple(value)
        found[attribute.name] = value
        _check_number(node, attribute.name, value)
    if node.op_type == "Cast":
        kind = found.get("to")
        found["to"] = _TYPE_NAMES.get(kind, f"type {kind}") if isinstance(kind, int) else "no type"
    return found


def _check_number(node: NodeProto, name: str, value: Any) -> None:
    """A floating attribute is finite, but for the bounds of a Clip.

    Raises:
        ModelError: it is not.
    """
    if node.op_type != "Clip" and isinstance(value, float) and not np.isfinite(value):
        raise ModelError(f"{node.op_type} {node.name or node.output[0]!r} has {name} = {value}.")


def compute(node: NodeProto, inputs: tuple[np.ndarray | None, ...], opset: int) -> tuple[np.ndarray, ...]:
    """The outputs of a node whose inputs are known, by onnx's reference implementation.

    Raises:
        UnsupportedError: it has none, or it fails.
    """
    attributes = attributes_of(node)
    if node.op_type == "Constant":
        return (_constant(attributes),)
    from onnx.reference import ReferenceEvaluator

    feed = {name: value for name, value in zip(node.input, inputs) if name}
    if _size_asked(node, inputs) > _MOST_COMPUTED:
        raise UnsupportedError(f"a constant of more than {_MOST_COMPUTED} values")
    infos = [[helper.make_value_info(name, onnx.TypeProto()) for name in names if name] for names in (feed, node.output)]
    model = helper.make_model(helper.make_graph([node], "one node", *infos), opset_imports=[helper.make_opsetid("", opset)])
    try:
        results = ReferenceEvaluator(model).run(None, feed)
    except Exception as error:
        raise UnsupportedError(f"a constant that cannot be computed: {first_line(error)}") from None
    if not all(isinstance(result, (np.ndarray, np.generic)) for result in results):
        raise UnsupportedError("a constant that is not a tensor")
    named = iter(results)
    return tuple(float_array(np.asarray(next(named))) if name else np.empty(0) for name in node.output)


def _size_asked(node: NodeProto, inputs: tuple[np.ndarray | None, ...]) -> float:
    """How many values an operation is told to make by the values (not the sizes) of its inputs, roughly."""
    numbers = [np.asarray(value, np.float64).reshape(-1) for value in inputs if value is not None and value.dtype.kind in "if"]
    if node.op_type == "ConstantOfShape" and numbers:
        return float(np.prod(numbers[0]))
    if node.op_type in ("Expand", "Tile", "Resize", "Upsample", "Pad", "OneHot") and len(numbers) > 1:
        return float(np.prod(np.abs(numbers[-1]) + 1)) * max(numbers[0].size, 1)
    if node.op_type == "Range" and len(numbers) == 3 and numbers[2].any():
        return float(np.abs((numbers[1] - numbers[0]) / numbers[2]).max())
    return 0.0


def _constant(attributes: dict[str, Any]) -> np.ndarray:
    """The value of a Constant, in any of its forms."""
    for key, kind in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64), ("value_ints", np.int64)):
        if key in attributes:
            return np.array(attributes[key], kind)
    value = attributes.get("value", attributes.get("sparse_value"))
    if value is None:
        raise UnsupportedError("a constant that is not a number")
    return value


def inferred_shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """What onnx's own inference knows of the shapes of the values between the nodes; nothing where it fails."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:
        return {}
    return {info.name: shape_of(info) for info in graph.value_info if info.type.tensor_type.HasField("shape") and all(
        d.dim_value > 0 or not d.HasField("dim_value") for d in info.type.tensor_type.shape.dim)}


def expose_values(path: str | Path, names: set[str]) -> tuple[bytes, list[str]]:
    """The model with more outputs, the values of these names that its nodes produce, in the nodes' order; and the names exposed."""
    model = parse_model(path)
    exposed = [name for node in model.graph.node for name in node.output if name in names]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_value_info(name, onnx.TypeProto()) for name in exposed)
    return model.SerializeToString(), exposed
