"""nn.Module -> ONNX file in one of three forms, written at once, checked against the module.

    masked    the network's own shapes, zeros where it is pruned
    compact   without the channels and neurons that carry nothing (`compact.py`)
    sparse    masked, with the emptiest weights stored as coordinates (`sparse.py`)
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from onnx import ModelProto
from torch import Tensor, nn

import verifier
from certprune.export.check import LayerSparsity, compare_outputs, weights_of
from certprune.export.compact import compact
from certprune.export.files import write_bytes
from certprune.export.fold import fold
from certprune.export.graph_onnx import to_onnx
from certprune.export.sparse import to_sparse


class Form(str, Enum):
    """How pruned weights are written."""

    MASKED = "masked"
    COMPACT = "compact"
    SPARSE = "sparse"


_FORMS: Mapping[Form, Callable[[verifier.Graph], ModelProto]] = {
    Form.MASKED: to_onnx,
    Form.COMPACT: lambda graph: to_onnx(compact(graph)),
    Form.SPARSE: lambda graph: to_sparse(to_onnx(graph)),
}


@dataclass(frozen=True, slots=True)
class ExportReport:
    """One file. Parameters are the numbers it holds (batch norms are folded away), `nonzero` of them are not zero.

    `max_difference`: of onnxruntime's outputs from torch's over the images given, None where none were. `layers`: one entry a weight.
    """

    path: Path
    form: Form
    bytes: int
    parameters: int
    nonzero: int
    max_difference: float | None
    layers: tuple[LayerSparsity, ...]


def export_model(
    model: nn.Module, input_shape: tuple[int, ...], path: str | Path, form: Form | str, images: np.ndarray | Tensor | None = None
) -> ExportReport:
    """Writes the module in eval mode; the module is not touched.

    Args:
        model: what `verifier.load_torch` reads.
        input_shape: of one sample, without the batch.
        path: the `.onnx` file; one that is there is replaced.
        form: see the top of this file.
        images: real ones, `(N, *input_shape)`, on which the file is compared with the module.

    Raises:
        VerifierError: the network holds what cannot be written, the file cannot be written, or its outputs are not the module's.
    """
    path, form = Path(path), _form(form)
    network = fold(model, input_shape)
    proto = _FORMS[form](network.graph)
    data = proto.SerializeToString()
    write_bytes(path, data)
    difference = None if images is None else compare_outputs(path, model, images)[0]
    held = weights_of(proto)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    layers = tuple(LayerSparsity(name, sizes[name], int(np.count_nonzero(held[f"{node}.weight"]))) for node, name in network.weights.items())
    parameters = sum(array.size for array in held.values())
    nonzero = sum(int(np.count_nonzero(array)) for array in held.values())
    return ExportReport(path, form, len(data), parameters, nonzero, difference, layers)


def _form(form: Form | str) -> Form:
    try:
        return Form(form)
    except ValueError:
        raise verifier.VerifierError(f"There is no export form {form!r}: choose one of {', '.join(f.value for f in Form)}.") from None
