"""The inputs' part of a stack's products, with the rows of early convolutions as sparse matrices.

A neuron of an early convolution sees a small patch of the image, so its row of A is nearly empty: on the CPU a sparse product of such rows is ten
times faster than the dense one that it equals.
"""
from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from verifier.reduced.problem import SparseRows, Stack

DENSEST = 0.12
"""Share of nonzeros below which the sparse product of MKL was faster than the dense one (one thread, 256 rows)."""
SMALLEST = 100_000
"""Entries of A below which no sparse copy is worth making."""


def with_sparse_inputs(stack: Stack) -> Stack:
    """The stack with a sparse copy of the leading blocks of A that are nearly empty; itself where that does not pay."""
    if len(stack.problems) > 1 or stack.A.device.type != "cpu" or stack.A.numel() < SMALLEST or stack.sparse is not None:
        return stack
    count = 0
    for block in stack.blocks:
        rows = stack.A[0, block.start:block.end]
        if int(rows.count_nonzero()) > DENSEST * rows.numel():
            break
        count = block.end
    if count == 0:
        return stack
    rows = stack.A[0, :count]
    return replace(stack, sparse=SparseRows(count, rows.to_sparse_csr(), rows.T.contiguous().to_sparse_csr()))


def to_inputs(stack: Stack, nu: Tensor) -> Tensor:
    """nu @ A, `(P, K, U)` to `(P, K, n)`."""
    sparse = stack.sparse
    if sparse is None:
        return nu @ stack.A
    own = (sparse.transposed @ nu[0, :, :sparse.count].T).T.unsqueeze(0)
    return own if sparse.count == nu.shape[-1] else own + nu[..., sparse.count:] @ stack.A[:, sparse.count:]


def from_inputs(stack: Stack, x: Tensor) -> Tensor:
    """x @ A.T, `(P, K, n)` to `(P, K, U)`."""
    sparse = stack.sparse
    if sparse is None:
        return x @ stack.A.mT
    z = torch.empty(*x.shape[:2], stack.A.shape[1], dtype=x.dtype, device=x.device)
    z[0, :, :sparse.count] = (sparse.rows @ x[0].T.contiguous()).T
    if sparse.count < z.shape[-1]:
        z[..., sparse.count:] = x @ stack.A[:, sparse.count:].mT
    return z
