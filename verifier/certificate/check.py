"""The checker: does a certificate prove that a network has a property? docs/certificate.md says what is read and what is proved.

Trusted here: the tree walk, whose leaves cover the region (trees.py), the proof rule (bound.py, smooth.py), the reduced problem (reduce.py,
affine.py, arithmetic.py), what holds the two together (case.py, boxes.py), the readers (schema.py, property.py) and graph/onnx_load.py, the only
part that the prover shares. Nothing of the prover's numbers is.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from verifier.certificate.arithmetic import ROUNDED, RUNTIMES, Arithmetic
from verifier.certificate.case import Case, Failure
from verifier.certificate.property import covered, property_digest, read_property
from verifier.certificate.schema import CertificateError, Record, open_certificate, read_records
from verifier.graph.onnx_load import load_onnx

Listener = Callable[[float], None]
"""Told the share of the file that is done."""


@dataclass(frozen=True, slots=True)
class Report:
    """Whether the certificate was accepted; the sentence says why not. `leaves`: how many multiplier vectors and boxes were evaluated."""

    accepted: bool
    sentence: str
    arithmetic: str
    cases: int = 0
    leaves: int = 0
    seconds: float = 0.0
    failures: tuple[Failure, ...] = ()


def check(
    model: str | Path, prop: str | Path, certificate: str | Path, arithmetic: Arithmetic = ROUNDED, listener: Listener = lambda share: None
) -> Report:
    """Whether the certificate proves the property of the model.

    Raises:
        CertificateError: the certificate cannot be read, or means nothing.
        VerifierError: the model or the property cannot be read.
    """
    begin = time.monotonic()
    with open_certificate(certificate) as file:
        size = max(1, Path(certificate).stat().st_size)
        records = read_records(file, str(certificate))
        head = next(records)
        about = head.field("arithmetic", str)
        if about not in RUNTIMES:
            raise CertificateError(f"{head.place} is about {about!r} arithmetic: {', '.join(RUNTIMES)} are known.")
        graph, leaves, failures = load_onnx(model), [], []
        for what, given, own in (("model", model, graph.digest), ("property", prop, property_digest(prop))):
            if head.field(what, str) != own:
                seen = f"its SHA-256 begins with {head.field(what, str)[:12]!r}, not {own[:12]!r}"
                return Report(False, f"It is a certificate for another {what} than {given}: {seen}.", about)
        if RUNTIMES[about] and graph.arithmetic != about:
            return Report(False, f"It speaks of {about} arithmetic, but {model} does not compute in {about} throughout.", about)

        def proved() -> Iterator[tuple]:
            """What the cases state, one by one, up to the first that is not proved."""
            record: Record | None = next(records)
            while record is not None and record.kind == "CASE":
                own = record.field("arithmetic", str) if "arithmetic" in record.fields else about
                if own not in RUNTIMES or about not in (own, "real"):
                    raise CertificateError(f"{record.place} is about {own!r} arithmetic, which says nothing of {about}.")
                case = Case(graph, record, RUNTIMES[own], arithmetic, len(leaves))
                if case.statement.ball is not None:
                    raise CertificateError(f"{record.place} has a ball, and a property's file states none: it covers no disjunct.")
                record = case.run(records, lambda: listener(file.tell() / size))
                leaves.append(case.leaves)
                failures.extend(case.failures())
                if failures:
                    return
                yield case.states()
            if record is None or record.kind != "DONE" or record.field("cases", int) != len(leaves):
                raise CertificateError(f"{certificate} has a record out of place: a CASE, or DONE of {len(leaves)} cases, is due.")

        missing = covered(read_property(prop, prod(graph.input_shape), prod(graph.output_shape)), proved(), graph.input_type)
        sentence = failures[0].sentence() if failures else missing
        return Report(sentence is None, sentence or "Accepted.", about, len(leaves), sum(leaves), time.monotonic() - begin, tuple(failures))
