"""A network on disk: what it is (spec, shapes, normalisation), its weights, its mask, and what it has been through.

Files are read without unpickling objects (`weights_only`), and written beside their place first, so that a full disk leaves the old file whole.
"""
from __future__ import annotations

import errno
import io
import os
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import verifier
from certprune.models import ModelSpec, build_model

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything `build` needs. `input_shape` (C, H, W); mean and std one a channel."""

    spec: ModelSpec
    input_shape: tuple[int, ...]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def build(self) -> nn.Module:
        return build_model(self.spec, self.input_shape, self.classes, self.mean, self.std)


@dataclass(frozen=True, slots=True)
class Saved:
    """A trained network: `state` by parameter and buffer names, `mask` (empty: dense), `history`: one plain record for each thing done to it."""

    architecture: Architecture
    state: dict[str, Tensor]
    mask: dict[str, Tensor] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()

    def model(self) -> nn.Module:
        """The module in eval mode."""
        made = self.architecture.build()
        made.load_state_dict(self.state)
        return made.eval()


def save(saved: Saved, path: str | Path) -> None:
    """Writes the file at once or not at all.

    Raises:
        VerifierError: it cannot be written; an older file of this name is untouched.
    """
    content = {
        "format": FORMAT, "architecture": asdict(saved.architecture), "state": saved.state, "mask": saved.mask, "history": list(saved.history),
    }
    write_tensors(content, path)


def write_tensors(content: dict[str, Any], path: str | Path) -> None:
    """torch.save of tensors and plain values, at once or not at all; errors as for `save`."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        in_memory = io.BytesIO()  # torch's own writer does not say why a file cannot be written
        torch.save(content, in_memory)
        beside.write_bytes(in_memory.getbuffer())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        kept = "the older file is kept" if path.exists() else "nothing was written"
        raise verifier.VerifierError(f"Cannot write {path} ({error.strerror}): {kept}; make room and start again.") from None


def load(path: str | Path) -> Saved:
    """The network of a file.

    Raises:
        VerifierError: the file cannot be read, is no checkpoint, or its weights do not fit its own architecture.
    """
    content = read_tensors(path)
    try:
        if content["format"] != FORMAT:
            raise verifier.VerifierError(f"{path} has format {content['format']}, this release reads {FORMAT}: write it again.")
        about = content["architecture"]
        spec = ModelSpec(**{k: tuple(v) if isinstance(v, list) else v for k, v in about["spec"].items()})
        shape, mean, std = (tuple(about[k]) for k in ("input_shape", "mean", "std"))
        saved = Saved(Architecture(spec, shape, about["classes"], mean, std), content["state"], content["mask"], tuple(content["history"]))
    except (KeyError, TypeError) as error:
        raise verifier.VerifierError(f"{path} is no checkpoint of certprune: {error} is missing or wrong.") from None
    try:
        saved.model()
    except RuntimeError as error:
        what = str(error).splitlines()[-1].strip()
        raise verifier.VerifierError(f"{path}: its weights do not fit the architecture {spec.name!r}: {what}") from None
    other = [name for name, kept in saved.mask.items() if name not in saved.state or saved.state[name].shape != kept.shape]
    if other:
        raise verifier.VerifierError(f"{path}: its mask does not fit its weights: {other[0]!r} is missing or of another shape.")
    return saved


_BROKEN = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError)
"""What torch's unpickler raises on bytes that are cut or are something else."""


def read_tensors(path: str | Path) -> dict[str, Any]:
    """What `write_tensors` wrote; errors as for `load`."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        cut = error.errno == errno.EINVAL  # torch seeks beyond the end of a file that was cut
        raise verifier.VerifierError(f"Cannot read the checkpoint {path}: {'it is cut or damaged' if cut else error.strerror or error}.") from None
    except _BROKEN:  # what torch says of it advises to load the file without care
        raise verifier.VerifierError(f"{path} is no checkpoint: it is cut, damaged or something else; write it again.") from None
    if not isinstance(content, dict):
        raise verifier.VerifierError(f"{path} is no checkpoint of certprune: it holds a {type(content).__name__}.")
    return content
