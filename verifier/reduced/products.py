"""Products with the inputs' matrix A, the dearest part of a bound over images: sparse where A is nearly empty, rough where no bound depends on it.

A neuron of an early convolution sees a small patch of the image, so its row of A is nearly empty: on the CPU a sparse product of such rows is ten
times faster than the dense one that it equals. Gradients and branching scores only steer, whatever they are the bound stays valid: they take the
remaining dense product in bfloat16 where this machine is faster at it, which is measured.
"""
from __future__ import annotations

import time
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from verifier.reduced.problem import FastInputs, Stack

DENSEST = 0.12
"""Share of nonzeros below which the sparse product of MKL was faster than the dense one (one thread, 256 rows)."""
SMALLEST = 100_000
"""Entries of A below which nothing is worth preparing."""
FASTER = 1.5
"""How much faster the rough product must be to be used."""


def with_fast_inputs(stack: Stack) -> Stack:
    """The stack with a sparse copy of the leading blocks of A that are nearly empty, and a rough copy of the rest; itself where neither pays."""
    if len(stack.problems) > 1 or stack.A.device.type != "cpu" or stack.A.dtype != torch.float32 or stack.A.numel() < SMALLEST:
        return stack
    count = 0
    for block in stack.blocks:
        rows = stack.A[0, block.start:block.end]
        if int(rows.count_nonzero()) > DENSEST * rows.numel():
            break
        count = block.end
    sparse = stack.A[0, :count]
    dense = stack.A[0, count:]
    rough = dense.bfloat16() if dense.numel() >= SMALLEST and _rough_pays(dense) else None
    if count == 0 and rough is None:
        return stack
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        fast = FastInputs(count, sparse.to_sparse_csr(), sparse.T.contiguous().to_sparse_csr(), rough)
    return replace(stack, fast=fast)


def _rough_pays(dense: Tensor) -> bool:
    """Times one small product in either type (the first is warm-up)."""
    rows = dense.new_ones(32, min(256, len(dense)))
    exact, rough = dense[:256], dense[:256].bfloat16()
    seconds = []
    for left, right in ((rows, exact), (rows.bfloat16(), rough)):
        left @ right
        begin = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - begin)
    return seconds[0] > FASTER * seconds[1]


def to_inputs(stack: Stack, nu: Tensor) -> Tensor:
    """nu @ A, `(P, K, U)` to `(P, K, n)`."""
    fast = stack.fast
    if fast is None or fast.count == 0:
        return nu @ stack.A
    own = (fast.transposed @ nu[0, :, :fast.count].T).T.unsqueeze(0)
    return own if fast.count == nu.shape[-1] else own + nu[..., fast.count:] @ stack.A[:, fast.count:]


def to_inputs_roughly(stack: Stack, nu: Tensor) -> Tensor:
    """`to_inputs` to about two digits: for branching scores, never for a bound that is kept."""
    fast = stack.fast
    if fast is None or fast.rough is None:
        return to_inputs(stack, nu)
    value = (nu[..., fast.count:].bfloat16() @ fast.rough).float()
    return value if fast.count == 0 else value + (fast.transposed @ nu[0, :, :fast.count].T).T.unsqueeze(0)


def from_inputs_roughly(stack: Stack, x: Tensor) -> Tensor:
    """x @ A.T, `(P, K, n)` to `(P, K, U)`, to about two digits: for gradients and scores."""
    fast = stack.fast
    if fast is None:
        return x @ stack.A.mT
    z = torch.empty(*x.shape[:2], stack.A.shape[1], dtype=x.dtype, device=x.device)
    if fast.count:
        z[0, :, :fast.count] = (fast.rows @ x[0].T.contiguous()).T
    if fast.count < z.shape[-1]:
        dense = x @ stack.A[:, fast.count:].mT if fast.rough is None else x.bfloat16() @ fast.rough.T
        z[..., fast.count:] = dense
    return z
