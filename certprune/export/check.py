"""Is the file the network, and as sparse as its mask says? Asked of the file alone, as a stranger would read it.

Three readers must agree: torch runs the module, onnxruntime runs the file, and the verifier reads the file's weights. Zeros are counted in
the file.
"""
from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto, load, numpy_helper
from torch import Tensor, nn

import verifier

# onnxruntime and torch may differ by this share of the largest output: both sum in float32 (roundoff 6e-8) but in other orders, through up to
# thirty layers, and batch norms are folded before the rounding in one and not in the other. The verifier allows the same.
RELATIVE_TOLERANCE = 1e-4
BATCH = 256


@dataclass(frozen=True, slots=True)
class LayerSparsity:
    """One weight: its parameter's name and number of entries in the module, and how many nonzero ones the file holds."""

    name: str
    size: int
    nonzero: int

    @property
    def sparsity(self) -> float:
        return 1 - self.nonzero / self.size


@dataclass(frozen=True, slots=True)
class Check:
    """What `check_export` found, all of it within what it allows.

    `max_difference`: of onnxruntime's outputs from torch's. `ties`: images whose predictions differ, their best outputs being closer than
    rounding. `sparsity`: of the mask's weights, the fraction that is removed or zero in the file; never below `mask_sparsity`, the mask's own,
    and above it where a weight that lives is zero or, in a compact file, reads a dead channel.
    """

    images: int
    max_difference: float
    ties: int
    sparsity: float
    mask_sparsity: float


def check_export(path: str | Path, model: nn.Module, images: np.ndarray | Tensor, mask: Mapping[str, Tensor]) -> Check:
    """Compares a file with the module that it was exported from.

    Args:
        path: the ONNX file, of any form.
        model: the module, its pruned weights already zero.
        images: real ones, `(N, *input_shape)`.
        mask: True where a weight is kept, by parameter name; entries that are no weights (biases, batch norms) are not looked at.

    Raises:
        VerifierError: the outputs differ by more than rounding, a pruned weight is not zero in the file, or the verifier reads other weights.
    """
    difference, ties = compare_outputs(path, model, images)
    weights = {name: kept for name, kept in mask.items() if kept.ndim > 1}
    held = read_weights(path)
    for name, kept in weights.items():
        _check_zeros(path, name, held.get(name), kept.cpu().numpy())
    _check_reader(path, held)
    size = max(sum(kept.numel() for kept in weights.values()), 1)
    nonzero = sum(np.count_nonzero(held[name]) for name in weights)
    living = sum(int(kept.sum()) for kept in weights.values())
    return Check(len(images), difference, ties, 1 - nonzero / size, 1 - living / size)


def compare_outputs(path: str | Path, model: nn.Module, images: np.ndarray | Tensor) -> tuple[float, int]:
    """max |onnxruntime(file, x) - torch(model, x)| over the images, and how many predictions differ.

    Raises:
        VerifierError: more than `RELATIVE_TOLERANCE` of the largest output; so predictions differ between outputs closer than twice that alone.
    """
    x = np.asarray(images, np.float32)
    theirs = verifier.OnnxRunner(path).many(x.reshape(len(x), -1))
    ours = _outputs(model, x)
    difference = float(np.abs(theirs - ours).max(initial=0.0))
    allowed = RELATIVE_TOLERANCE * max(float(np.abs(ours).max(initial=0.0)), 1e-6)
    if not difference <= allowed:
        raise verifier.VerifierError(
            f"{path}: onnxruntime's outputs differ from the model's by {difference:.3g} (at most {allowed:.3g} is rounding): "
            "is this the file of another model?")
    return difference, int((theirs.argmax(1) != ours.argmax(1)).sum())


def _outputs(model: nn.Module, x: np.ndarray) -> np.ndarray:
    """f(x) by a copy in eval mode on the CPU, `(N, n_out)`."""
    twin = copy.deepcopy(model).cpu().float().eval()
    with torch.no_grad():
        parts = [twin(torch.from_numpy(x[i:i + BATCH])).reshape(len(x[i:i + BATCH]), -1).numpy() for i in range(0, len(x), BATCH)]
    return np.concatenate(parts)


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """The file's floating initializers by name, the sparse ones made dense; only of files that CertPrune wrote."""
    return weights_of(load(str(path)))


def weights_of(model: ModelProto) -> dict[str, np.ndarray]:
    """The same of a model."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for sparse in model.graph.sparse_initializer:
        values = numpy_helper.to_array(sparse.values)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        dense.reshape(-1)[numpy_helper.to_array(sparse.indices)] = values
        found[sparse.values.name] = dense
    return {name: array for name, array in found.items() if array.dtype == np.float32}


def _check_zeros(path: str | Path, name: str, held: np.ndarray | None, kept: np.ndarray) -> None:
    """Where the mask removes a weight the file has a zero; a compact file, of other shapes, has no more nonzero ones than the mask keeps."""
    if held is None:
        raise verifier.VerifierError(f"{path} has no weight {name!r}, which the mask names: is this the file of another model?")
    too_many = int(np.count_nonzero(held[~kept])) if held.shape == kept.shape else int(np.count_nonzero(held) - kept.sum())
    if too_many > 0:
        raise verifier.VerifierError(f"{path}: {too_many} weights of {name!r} are not zero although the mask removes them: set them to zero first.")


def _check_reader(path: str | Path, held: Mapping[str, np.ndarray]) -> None:
    """The verifier's reader finds the file's weights, each in the node of its layer."""
    for node in verifier.load_onnx(path).nodes:
        name = f"{node.name}.weight"
        if "weight" in node.constants and not (name in held and np.array_equal(np.asarray(node.constants["weight"]), held[name])):
            raise verifier.VerifierError(f"{path}: the verifier reads other weights for {node.op} {node.name!r} than the file holds: report it.")
