"""The ONNX file format: tensors -> arrays, what a model says of itself. Knows protobuf, not what an operation means."""
from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto, helper, numpy_helper

from verifier.errors import ModelError, UnsupportedError
from verifier.graph.onnx_lowering import MOST_AXES
from verifier.graph.onnx_read import read_model, read_model_bytes, runnable_bytes, tensors_of

__all__ = ["model_digest", "parse_model", "read_model", "read_model_bytes", "runnable_bytes"]

_OLDEST_OPSET = 7
# A sparse tensor is read as a dense one: of up to so many values.
_MOST_DENSE = 2**28
KINDS = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
}


def parse_model(path: str | Path) -> ModelProto:
    """The model of a file, with its external data, and its local functions written out; errors as for `read_model`."""
    return read_model(path)[0]


def model_digest(path: str | Path) -> str:
    """The digest of a file and all that it points to; `read_model` says what it is, and gives the model that was read with it."""
    return read_model(path)[1]


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
    if len(set(versions)) > 1:
        raise ModelError(f"the file names several versions of the ONNX operations, {versions}: is it damaged?")
    if min(versions) < _OLDEST_OPSET:
        raise ModelError(f"the file uses ONNX operations of version {min(versions)}; {_OLDEST_OPSET} is the oldest read here: convert it.")
    return versions[0]


def constant_names(model: ModelProto) -> set[str]:
    """Names of the initializers, dense and sparse.

    Raises:
        ModelError: two have one name, so that runtimes may take either.
    """
    names = Counter([*(t.name for t in model.graph.initializer), *(t.values.name for t in model.graph.sparse_initializer)])
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ModelError(f"initializer {twice[0]!r} is there twice: is the file damaged?")
    return set(names)


def stored_values(model: ModelProto) -> int:
    """How many numbers the initializers and the attributes of nodes hold, at two bytes a number: what constants are made of."""
    return sum(tensor.ByteSize() for tensor in tensors_of(model.graph)) // 2


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


def computes_in_float32(model: ModelProto) -> bool:
    """Whether a runtime computes in binary32 throughout what depends on the input; `Graph.arithmetic` says it of a graph that is loaded."""
    from verifier.graph.onnx_load import graph_of

    return graph_of(model).arithmetic == "float32"


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
    if len(sizes) > MOST_AXES:
        raise ModelError(f"input {info.name!r} has {len(sizes)} axes: at most {MOST_AXES} are read.")
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
    return array.astype(np.float32) if is_floating(array) and array.dtype not in (np.float32, np.float64) else array


def is_floating(array: np.ndarray) -> bool:
    """Whether an array holds floating-point numbers, those of types that numpy has not included."""
    return array.dtype.kind in "fV"


def array_of(tensor: TensorProto | SparseTensorProto) -> np.ndarray:
    """A tensor of the file as an array, of the file's own type.

    Raises:
        ModelError: its data does not fill its shape, or its type holds no numbers.
    """
    name = tensor.values.name if isinstance(tensor, SparseTensorProto) else tensor.name
    try:
        return _dense(tensor) if isinstance(tensor, SparseTensorProto) else numpy_helper.to_array(tensor)
    except Exception as error:
        raise ModelError(f"initializer {name!r} cannot be read ({first_line(error)}): is the file cut?") from None


def _dense(sparse: SparseTensorProto) -> np.ndarray:
    """Zeros but for the listed places: linear indices `(n,)` or coordinates `(n, rank)`."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    if math.prod(sparse.dims) > _MOST_DENSE:
        raise ValueError(f"more than {_MOST_DENSE:,} values")
    if indices.size and (indices.min() < 0 or len(np.unique(indices, axis=0)) != len(indices)):
        raise ValueError("a place that is negative or there twice")
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
        ModelError: one is there twice, or is no number.
    """
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.name in found:
            raise ModelError(f"{node.op_type} {node.name or node.output[0]!r} has its attribute {attribute.name!r} twice: is the file damaged?")
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
        found["to"] = KINDS.get(kind, f"type {kind}") if isinstance(kind, int) else "no type"
    return found


def _check_number(node: NodeProto, name: str, value: Any) -> None:
    """A floating attribute is finite, but for the bounds of a Clip.

    Raises:
        ModelError: it is not.
    """
    if node.op_type != "Clip" and isinstance(value, float) and not np.isfinite(value):
        raise ModelError(f"{node.op_type} {node.name or node.output[0]!r} has {name} = {value}.")


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
