"""Records as files, and what the checker says of them."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.soundness import nets
from tests.soundness.exact_truth import Claim, Net
from tests.soundness.handmade import Part, vnnlib
from verifier.certificate.arithmetic import Arithmetic, Rounded
from verifier.certificate.check import check
from verifier.certificate.property import property_digest
from verifier.certificate.schema import Record, write_header, write_record
from verifier.errors import VerifierError
from verifier.graph.onnx_file import model_digest


@dataclass(frozen=True)
class Files:
    """A model and a property on disk."""

    model: Path
    prop: Path

    def head(self, arithmetic: str) -> Part:
        fields = {"arithmetic": arithmetic, "model": model_digest(self.model), "property": property_digest(self.prop), "prover": "battery"}
        return "HEAD", fields, {}


def files(net: Net, claims: Sequence[Claim], folder: Path, text: str = "") -> Files:
    """The network and the claims, or their property as `text` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    prop = folder / "claim.vnnlib"
    prop.write_text(text or vnnlib(claims, net.n_out))
    return Files(nets.save(net, folder / "net.onnx"), prop)


def whole(head: Part, parts: Sequence[Part], cases: int = 1) -> list[Part]:
    """With what stands first and last."""
    return [head, *parts, ("DONE", {"cases": cases}, {})]


def write(parts: Sequence[Part], path: Path) -> Path:
    with path.open("wb") as file:
        write_header(file)
        for kind, fields, arrays in parts:
            write_record(file, Record(kind, fields, arrays))
    return path


@dataclass(frozen=True)
class Judgement:
    """accepted, rejected (read, and not proved) or unreadable, and the sentence."""

    verdict: str
    sentence: str
    leaves: int = 0


ROUNDED = Rounded()


def judged(where: Files, certificate: Path, arithmetic: Arithmetic = ROUNDED) -> Judgement:
    """What the checker says; one sentence of the verifier's own errors, or it is an error of the test."""
    try:
        with np.errstate(all="ignore"):
            report = check(where.model, where.prop, certificate, arithmetic=arithmetic)
    except VerifierError as error:
        return Judgement("unreadable", str(error))
    return Judgement("accepted" if report.accepted else "rejected", report.sentence, report.leaves)
