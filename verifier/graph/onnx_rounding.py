"""Which constants, computed at loading, a runtime may have rounded otherwise: a proof about floats is refused only for these."""
from __future__ import annotations

import numpy as np

from verifier.graph.onnx_file import is_floating

# What takes, moves, compares or picks values, and so gives every runtime the same ones.
_PICKS = frozenset("""
    Abs And ArgMax ArgMin Ceil Clip Compress Concat Constant ConstantOfShape DepthToSpace Dropout Equal Expand EyeLike Flatten Floor Gather
    GatherElements GatherND GlobalMaxPool Greater GreaterOrEqual Hardmax Identity IsInf IsNaN Less LessOrEqual Max MaxPool Min Neg NonZero Not
    OneHot Or Pad ReduceMax ReduceMin Relu Reshape Round Shape Sign Size Slice SpaceToDepth Split Squeeze Tile TopK Transpose Trilu Unique
    Unsqueeze Where Xor
""".split())  # noqa: SIM905  (a list of words)
# Sums of integers, and of products of two, are exact in any order up to here: float32 holds every integer below.
_WHOLE = 2.0**24


def is_rounded(op: str, inputs: tuple[np.ndarray | None, ...], outputs: tuple[np.ndarray, ...]) -> bool:
    """Whether the outputs may differ between runtimes: not what is picked, integer, or exact in real arithmetic as far as is easily seen."""
    given = [value for value in inputs if value is not None]
    if op in _PICKS or not any(map(is_floating, (*given, *outputs))):
        return False
    if op in ("Resize", "Upsample"):
        return not np.isin(outputs[0], given[0]).all()
    if op in ("Cast", "CastLike"):
        return not _same(given[0], outputs[0])
    if len(outputs) != 1 or not all(value.dtype == np.float32 for value in (*given, *outputs)):
        return True
    with np.errstate(all="ignore"):
        if op in ("Add", "Sub", "Mul", "Div", "Sqrt", "Reciprocal"):
            return not _exact(op, [value.astype(np.float64) for value in given], outputs[0].astype(np.float64))
        return op not in ("CumSum", "MatMul", "ReduceSum", "Sum") or not _whole(op, [value.astype(np.float64) for value in given], outputs[0])


def _same(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether a cast kept every value, or cut it to an integer or a truth value, as all runtimes do."""
    with np.errstate(all="ignore"):
        if is_floating(x) and not is_floating(y):
            return y.dtype == bool or bool((np.trunc(x.astype(np.float64)) == y.astype(np.float64)).all())
        return bool((y.astype(x.dtype) == x).all() and (y.astype(np.float64) == x.astype(np.float64)).all())


def _exact(op: str, given: list[np.ndarray], result: np.ndarray) -> bool:
    """Whether float32 numbers, here in float64, add, multiply, divide or have the root that `result` says, exactly.

    Products of two fit into float64. A sum's rounding error in float64 is got exactly (Knuth's TwoSum), and must be 0.
    """
    if op in ("Sqrt", "Reciprocal"):
        return bool((result * result == given[0]).all() if op == "Sqrt" else (result * given[0] == 1).all())
    a, b = given
    if op == "Mul":
        return bool((a * b == result).all())
    if op == "Div":
        return bool((result * b == a).all())
    b = -b if op == "Sub" else b
    total = a + b
    part = total - a
    return bool((((a - (total - part)) + (b - part) == 0) & (total == result)).all())


def _whole(op: str, given: list[np.ndarray], result: np.ndarray) -> bool:
    """Whether all numbers are integers, and so few and small that no partial sum in any order is beyond 2^24."""
    if not all((value == np.rint(value)).all() for value in given):
        return False
    if op == "MatMul":
        return bool((np.matmul(abs(given[0]), abs(given[1])) < _WHOLE).all())
    return sum(float(abs(value).sum()) for value in given) < _WHOLE
