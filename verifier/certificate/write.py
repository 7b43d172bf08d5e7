"""A certificate's file while a run makes it: every case is checked from its bytes before it is added, the whole before the file gets its name."""
from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from io import BytesIO
from itertools import pairwise
from typing import BinaryIO

import numpy as np

from verifier import __version__
from verifier.bab.budget import Deadline
from verifier.certificate.arithmetic import RUNTIMES, Rounded
from verifier.certificate.case import Case, Failure
from verifier.certificate.property import covered, property_digest, read_property
from verifier.certificate.schema import Record, make_room, read_records, write_header, write_record
from verifier.config import CertificateConfig
from verifier.errors import OutOfTime, VerifierError
from verifier.graph.ir import Graph
from verifier.graph.onnx_file import arithmetic_of, model_digest, parse_model
from verifier.graph.onnx_load import load_onnx
from verifier.spec.spec import Spec


class Writer:
    """The file lies in an unnamed temporary one until it is whole, so that no end of the process leaves half of it."""

    def __init__(self, wanted: CertificateConfig, graph: Graph, spec: Spec) -> None:
        """Removes an older certificate, so that no run leaves a proof that it did not make.

        Raises:
            VerifierError: no certificate can be made of this network or property, or not there: whatever else lies there is kept.
        """
        if not graph.source:
            raise VerifierError("A certificate speaks of an ONNX file, and this network comes from none: export it and load the file.")
        if any(case.ball is not None for case in spec.cases):
            raise VerifierError("Certificates are for boxes, and this property has an l1 or l2 ball: use the linf norm, or ask for no certificate.")
        if RUNTIMES[wanted.arithmetic] and arithmetic_of(parse_model(graph.source)) != wanted.arithmetic:
            own = wanted.arithmetic
            raise VerifierError(f"{graph.source} does not compute in {own}, so nothing is said of {own} here: use --arithmetic real.")
        self.wanted, self.cases, self.network = wanted, 0, load_onnx(graph.source)
        self._property = read_property(wanted.property, spec.n_in, spec.n_out)
        self._head = Record("HEAD", {
            "arithmetic": wanted.arithmetic, "model": model_digest(graph.source), "property": property_digest(wanted.property),
            "prover": f"verifier {__version__}",
        }, {})
        make_room(wanted.path)
        try:
            self._file: BinaryIO = tempfile.TemporaryFile(dir=wanted.path.parent)  # noqa: SIM115  (`close` ends it)
        except OSError as error:
            raise VerifierError(f"Cannot write the certificate {wanted.path}: {error.strerror}.") from None
        self._start(self._file)

    def _start(self, file: BinaryIO) -> None:
        write_header(file)
        write_record(file, self._head)

    def add(self, records: Iterable[Record], deadline: Deadline) -> list[Failure]:
        """What a checker that reads the bytes of these records, one case, leaves unproved; the case is added where that is nothing.

        Raises:
            OutOfTime: the deadline came before the checker was done.
        """
        body = BytesIO()
        for record in records:
            _in_time(deadline)
            write_record(body, record)
        whole = BytesIO()
        self._start(whole)
        whole.write(body.getbuffer())
        write_record(whole, _done(1))
        whole.seek(0)
        records = read_records(whole, "The certificate")
        next(records)  # HEAD
        case = Case(self.network, next(records), RUNTIMES[self.wanted.arithmetic], Rounded(), self.cases)
        case.run(records, lambda: _in_time(deadline))
        failures = case.failures()
        if not failures:
            self._file.write(body.getbuffer())
            self.cases += 1
        return failures

    def finish(self) -> str | None:
        """Gives the file its name once it is read again and covers the property; None, or the sentence why it does not."""
        write_record(self._file, _done(self.cases))
        self._file.seek(0)
        cases = (_statement(record) for record in read_records(self._file, "The certificate") if record.kind == "CASE")
        missing = covered(self._property, cases)
        if missing is not None:
            return missing
        self._file.seek(0)
        path = self.wanted.path
        part = path.with_name(f"{path.name}.{os.getpid()}.part")  # of this process alone, and no other file's name
        try:
            with open(part, "wb") as file:
                shutil.copyfileobj(self._file, file)
            os.replace(part, path)
        except OSError as error:
            raise VerifierError(f"Cannot write the certificate {path}: {error.strerror}.") from None
        finally:
            part.unlink(missing_ok=True)
        return None

    def close(self) -> None:
        self._file.close()


def _done(cases: int) -> Record:
    return Record("DONE", {"cases": cases}, {})


def _in_time(deadline: Deadline) -> None:
    if deadline.expired():
        raise OutOfTime("The time was over before the certificate was checked.")


def _statement(record: Record) -> tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """What a CASE says: its box, and (output, offset, input) of each polytope."""
    ends = np.cumsum([0, *record.fields["rows"]])
    a = record.arrays
    given = a.get("input", np.zeros((ends[-1], len(a["lower"]))))
    return a["lower"], a["upper"], [(a["output"][i:j], a["offset"][i:j], given[i:j]) for i, j in pairwise(ends)]
