"""ONNX model -> the same model with its emptiest weights stored as coordinates: ONNX's `sparse_initializer`.

A dense float32 tensor of n numbers takes 4 n bytes. Its k nonzero ones take 12 k: the number, and its place in C order as int64 (the only type
that ONNX allows), and a few dozen bytes of names and shapes. So a tensor is stored sparse where fewer than a third of it is nonzero and that
is really fewer bytes. onnxruntime and the verifier make such tensors dense when they load the file; of onnx's own tools the checker accepts
them, but the full check does not, whose shape inference wants a layer's weight to be of a dense type.
"""
from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def to_sparse(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose float32 initializers are sparse wherever that takes fewer bytes."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.initializer[:]
    for tensor in model.graph.initializer:
        sparse = _coordinates(tensor) if tensor.data_type == TensorProto.FLOAT and tensor.dims else None
        if sparse is not None and sparse.ByteSize() < tensor.ByteSize():
            made.graph.sparse_initializer.append(sparse)
        else:
            made.graph.initializer.append(tensor)
    return made


def _coordinates(tensor: onnx.TensorProto) -> onnx.SparseTensorProto:
    """The nonzero numbers and their linear places."""
    array = numpy_helper.to_array(tensor)
    places = np.flatnonzero(array)
    values = numpy_helper.from_array(array.reshape(-1)[places], tensor.name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}.places"), list(array.shape))
