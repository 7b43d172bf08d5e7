"""Matrix products and normalisation of ONNX, lowered: Gemm, MatMul, BatchNormalization."""
from __future__ import annotations

import numpy as np

from verifier.errors import ModelError, ShapeError, UnsupportedError
from verifier.graph.onnx_elementwise import add_values
from verifier.graph.onnx_lowering import Lower, Lowering, OnnxNode, Value, Variable, positive_axis


def linear(x: Variable, weight: np.ndarray, bias: np.ndarray | None, build: Lowering) -> Variable:
    """x @ weight.T + bias on the last axis; `weight: (out, in)`."""
    if not x.shape or x.shape[-1] != weight.shape[1]:
        raise ShapeError(f"A matrix with {weight.shape[1]} columns meets a value of shape {x.shape}: is the model cut or the batch not 1?")
    bias = build.floats(np.zeros(weight.shape[0], build.dtype)) if bias is None else bias
    return build.add("Linear", (x,), (*x.shape[:-1], weight.shape[0]), {"weight": weight, "bias": bias})


def left_product(weight: np.ndarray, x: Variable, build: Lowering) -> Variable:
    """weight @ x on the last two axes; `weight: (m, k)`, x has two axes at least."""
    if x.shape[-2] != weight.shape[1]:
        raise ShapeError(f"A matrix with {weight.shape[1]} columns meets a value of shape {x.shape}: is the model cut?")
    return build.add("LeftMatMul", (x,), (*x.shape[:-2], weight.shape[0], x.shape[-1]), {"weight": weight})


def scaled(array: np.ndarray, factor: float) -> np.ndarray:
    """factor * array, in float64 unless the factor is 1."""
    return array if factor == 1 else array.astype(np.float64) * float(factor)


def gemm(node: OnnxNode, build: Lowering) -> Value:
    """alpha A' B' + beta C, with A' and B' transposed where the attributes say so.

    Another alpha than 1 is a node of its own: a runtime multiplies the sum by it, or the weights.
    """
    a, b, c = node.value(0), node.value(1), node.given(2)
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise ShapeError(f"Gemm {node.name!r} multiplies shapes {a.shape} and {b.shape}, which are not two matrices.")
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    a = transposed(a, build) if node.flag("transA") else a
    if isinstance(a, Variable) and isinstance(b, np.ndarray):
        weight = build.floats(b if node.flag("transB") else b.T)
        bias = None if isinstance(c, Variable) or c is None else row_bias(c, weight.shape[0])
        shift = None if bias is None else scaled(build.floats(bias), beta)
        result: Value = linear(a, weight, shift if alpha == 1 else None, build)
        if alpha != 1:
            result = build.scale(result, np.float64(alpha), 0.0 if shift is None else shift)
        if bias is not None:
            return result
    else:
        b = transposed(b, build) if node.flag("transB") else b
        result = matrix_product(a, b, build)
        if isinstance(result, Variable) and alpha != 1:
            result = build.scale(result, np.float64(alpha), 0.0)
    if c is None:
        return result
    if isinstance(c, Variable):
        c = c if beta == 1 else build.scale(c, np.float64(beta), 0.0)
    else:
        c = scaled(build.floats(c), beta)
    return add_values(result, c, build)


def row_bias(c: np.ndarray, width: int) -> np.ndarray | None:
    """Gemm's C as one bias (width,) for every row; None where rows differ or it does not fit."""
    if c.ndim > 2 or (c.ndim == 2 and c.shape[0] != 1) or (c.ndim and c.shape[-1] not in (1, width)):
        return None
    return np.broadcast_to(c.reshape(-1), (width,)).copy()


def transposed(matrix: Value, build: Lowering) -> Value:
    """The transpose of a matrix."""
    if isinstance(matrix, np.ndarray):
        return matrix.T
    return build.add("Transpose", (matrix,), matrix.shape[::-1], {}, {"perm": (1, 0)})


def matmul(node: OnnxNode, build: Lowering) -> Value:
    """A @ B by numpy's rules."""
    return matrix_product(node.value(0), node.value(1), build)


def matrix_product(a: Value, b: Value, build: Lowering) -> Variable:
    """a @ b by numpy's rules; at least one depends on the input."""
    if not a.shape or not b.shape:
        raise ShapeError("A matrix product has an operand without dimensions: is the file damaged?")
    if isinstance(a, Variable) and not isinstance(b, Variable) and single_matrix(b):
        return right_matrix(a, build.floats(b), build)
    if not isinstance(a, Variable) and isinstance(b, Variable) and single_matrix(a):
        return left_matrix(build.floats(a), b, build)
    return batched_product(a, b, build)


def single_matrix(array: np.ndarray) -> bool:
    """Whether all axes but the last two have size 1."""
    return all(size == 1 for size in array.shape[:-2])


def right_matrix(x: Variable, array: np.ndarray, build: Lowering) -> Variable:
    """x @ array, where array is one matrix, or one vector (the last axis then goes)."""
    if array.ndim == 1:
        return build.reshape(linear(x, array.reshape(1, -1), None, build), x.shape[:-1])
    if array.ndim > 2:
        x = batch_rank(x, array.ndim, build)
    return linear(x, array.reshape(array.shape[-2:]).T, None, build)


def left_matrix(array: np.ndarray, x: Variable, build: Lowering) -> Variable:
    """array @ x, where array is one matrix, or one vector (its axis then goes)."""
    if array.ndim == 1:
        if len(x.shape) == 1:
            return build.reshape(linear(x, array.reshape(1, -1), None, build), ())
        product = left_product(array.reshape(1, -1), x, build)
        return build.reshape(product, x.shape[:-2] + x.shape[-1:])
    matrix = array.reshape(array.shape[-2:])
    if len(x.shape) == 1:
        product = linear(x, matrix, None, build)
        return build.reshape(product, array.shape[:-2] + product.shape)
    return left_product(matrix, build.raise_rank(x, max(len(x.shape), array.ndim)), build)


def batch_rank(x: Variable, rank: int, build: Lowering) -> Variable:
    """x with the leading 1s that its product with a matrix of `rank` axes has; a vector stands for one row, whose axis goes again."""
    if len(x.shape) == 1:
        return build.reshape(x, (1,) * (rank - 2) + x.shape)
    return build.raise_rank(x, max(rank, len(x.shape)))


def batched_product(a: Value, b: Value, build: Lowering) -> Variable:
    """sum_k a[..., m, k] b[..., k, n]: Reshape both to (..., m, k, n), multiply, ReduceSum."""
    left = a.shape if len(a.shape) > 1 else (1, *a.shape)
    right = b.shape if len(b.shape) > 1 else (*b.shape, 1)
    if left[-1] != right[-2]:
        raise ShapeError(f"A matrix product meets shapes {a.shape} and {b.shape}, whose inner sizes differ: is the file damaged?")
    batch = build.broadcast(left[:-2], right[:-2])
    full = (*batch, left[-2], left[-1], right[-1])
    product = times(view(a, (*left, 1), build), view(b, (*right[:-2], 1, *right[-2:]), build), full, build)
    axis = len(full) - 2
    summed = build.add("ReduceSum", (product,), (*full[:axis], full[-1]), {}, {"axes": (axis,)})
    shape = batch + (left[-2:-1] if len(a.shape) > 1 else ()) + (right[-1:] if len(b.shape) > 1 else ())
    return build.reshape(summed, shape)


def view(value: Value, shape: tuple[int, ...], build: Lowering) -> Value:
    """The same values in C order."""
    return build.reshape(value, shape) if isinstance(value, Variable) else value.reshape(shape)


def times(x: Value, y: Value, shape: tuple[int, ...], build: Lowering) -> Variable:
    """x * y in `shape`; at least one depends on the input."""
    if isinstance(x, Variable) and isinstance(y, Variable):
        return build.product(build.expand(x, shape), build.expand(y, shape))
    variable, constant = (x, y) if isinstance(x, Variable) else (y, x)
    return build.scale(build.expand(variable, shape), constant, 0.0)


def batch_normalization(node: OnnxNode, build: Lowering) -> Value:
    """gamma (x - mean) / sqrt(variance + epsilon) + beta on axis 1, computed in float64."""
    if node.flag("training_mode") or any(node.outputs[1:]):
        raise UnsupportedError("training mode")
    if not node.flag("spatial", default=True):
        raise UnsupportedError("statistics for each position")
    x = node.variable(0)
    channels = x.shape[positive_axis(1, len(x.shape))] if len(x.shape) > 1 else 1
    parts = [node.constant(index, "statistics") for index in range(1, 5)]
    if any(part is None or part.shape != (channels,) for part in parts):
        shapes = ", ".join("none" if part is None else str(part.shape) for part in parts)
        raise ShapeError(f"BatchNormalization {node.name!r} has parameters of shapes {shapes}, but its input has {channels} channels.")
    gamma, beta, average, variance = (part.astype(np.float64).reshape(-1, *(1,) * (len(x.shape) - 2)) for part in parts)
    spread = variance + float(node.attributes.get("epsilon", np.float32(1e-5)))
    if not np.all(spread > 0):
        raise ModelError(f"BatchNormalization {node.name!r} has a variance that is negative.")
    scale = gamma / np.sqrt(spread)
    return build.scale(x, scale, beta - average * scale, np.abs(beta) + np.abs(average * scale))


LINEAR: dict[str, Lower] = {
    "BatchNormalization": batch_normalization,
    "Gemm": gemm,
    "MatMul": matmul,
}
