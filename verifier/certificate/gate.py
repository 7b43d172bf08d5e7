"""The gate between a proof and VERIFIED: the checker, in this process, at every case of a property. What it accepted is kept where a file is wanted.

A `Gate` stands for one network and one property, a `CaseGate` for one of its cases. The records of a proof are handed over as they are; the network
is the loader's, before any pass of the prover has changed it; the statement that a CASE record makes is compared with the property that was asked,
and once more, by the checker's own reader, with the file that states it.
"""
from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from copy import copy
from pathlib import Path
from typing import BinaryIO

import numpy as np

from verifier import __version__
from verifier.bab.budget import Deadline
from verifier.certificate.arithmetic import ROUNDED, RUNTIMES
from verifier.certificate.case import Case, Failure
from verifier.certificate.property import Property, covered, property_digest, read_property
from verifier.certificate.schema import MAGIC, CertificateError, Record, read_records, write_header, write_record
from verifier.config import CertificateConfig
from verifier.errors import OutOfTime, SpecError, UnsupportedError, VerifierError
from verifier.graph.ir import Graph
from verifier.graph.onnx_file import model_digest
from verifier.graph.onnx_load import load_onnx
from verifier.spec.spec import Ball, Polytope, Spec
from verifier.spec.spec import Case as Asked

REAL = "real"
States = tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]


def network_of(graph: Graph) -> Graph:
    """The network that the checker follows: that of the file, as the loader reads it, or the graph itself where it comes from none."""
    if graph.raw is not None and graph.source:
        return graph.raw
    return load_onnx(graph.source) if graph.source else graph.to_numpy()


class Gate:
    """One property at the checker, with the cases that it has accepted."""

    def __init__(self, network: Graph, spec: Spec, wanted: CertificateConfig | None = None) -> None:
        """
        Args:
            network: from `network_of`.
            spec: the property; where it was read from a file the checker reads that file itself.
            wanted: where the certificate is to be written; an older one there is removed, so that no run leaves a proof that it did not make.

        Raises:
            VerifierError: no certificate can be made of this network or property, or not there: whatever else lies there is kept.
        """
        self.network, self.spec, self.wanted = network, spec, wanted
        self.stated: list[States] = []
        self.arithmetics: list[str] = []
        self._file: BinaryIO | None = None
        if wanted is not None:
            _check_wanted(network, spec)
            _property(spec, wanted)
            make_room(wanted, network.source)
            try:
                self._file = tempfile.TemporaryFile(dir=wanted.path.parent)  # noqa: SIM115  (`close` ends it)
            except OSError as error:
                raise VerifierError(f"Cannot write the certificate {wanted.path}: {error.strerror}.") from None

    def proved(self) -> str:
        """The arithmetic that the proofs of all cases are about: a proof in floats holds over the reals too."""
        said = set(self.arithmetics)
        return said.pop() if len(said) == 1 else REAL

    def add(self, case: CaseGate) -> None:
        """Counts a case that was accepted."""
        self.stated.append(case.accepted.states())
        self.arithmetics.append(case.arithmetic)
        if self._file is not None:
            case.copy_to(self._file)

    def finish(self) -> str | None:
        """None where the accepted cases cover the property, or the sentence why they do not; the certificate gets its name then."""
        try:
            stated = _property(self.spec, self.wanted)
        except SpecError as error:
            return f"its reader does not take the property: {error}"
        missing = None if stated is None else covered(stated, self.stated, self.network.input_type)
        if missing is None and self._file is not None:
            self._publish()
        return missing

    def _publish(self) -> None:
        path = self.wanted.path
        part = path.with_name(f"{path.name}.{os.getpid()}.part")  # of this process alone, and no other file's name
        head = {
            "arithmetic": self.proved() if self.arithmetics else self.network.arithmetic or REAL, "model": self.network.digest,
            "property": property_digest(self.wanted.property), "prover": f"verifier {__version__}",
        }
        self._file.seek(0)
        try:
            with open(part, "wb") as file:
                write_header(file)
                write_record(file, Record("HEAD", head, {}))
                shutil.copyfileobj(self._file, file)
                write_record(file, Record("DONE", {"cases": len(self.stated)}, {}))
            os.replace(part, path)
        except OSError as error:
            raise VerifierError(f"Cannot write the certificate {path}: {error.strerror}.") from None
        finally:
            part.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class CaseGate:
    """The checker at one case: the network is reduced once an arithmetic, whatever number of proofs are tried on it."""

    def __init__(self, gate: Gate, number: int, record: Record, deadline: Deadline) -> None:
        """`record`: the CASE; `number`: which of the property's cases it states."""
        self.gate, self.number, self.record, self.deadline = gate, number, record, deadline
        self.accepted: Case | None = None
        self.arithmetic = ""
        self._prepared: dict[str, Case] = {}
        self._known: dict[str, set[tuple]] = {}
        self._kept: BinaryIO | None = None

    def prepared(self, arithmetic: str) -> Case:
        """The checker's case before any lemma.

        Raises:
            UnsupportedError: the checker cannot follow the network in this arithmetic.
        """
        if arithmetic not in self._prepared:
            self._in_time()
            self._prepared[arithmetic] = Case(self.gate.network, self.record, RUNTIMES[arithmetic], ROUNDED, self.number)
        return self._prepared[arithmetic]

    def failures(self, records: Iterable[Record], arithmetic: str) -> list[Failure]:
        """What the checker leaves unproved of a proof, the records behind the CASE; where that is nothing, the case is accepted.

        Raises:
            OutOfTime: the deadline came first.
            UnsupportedError: the checker cannot follow the network, or the proof states another case than the one that was asked.
        """
        file = tempfile.SpooledTemporaryFile(2**24) if self.gate.wanted is not None else None  # noqa: SIM115  (kept, or closed below)
        case = self.tried(records if file is None else _copied([self._named(arithmetic)], records, file), arithmetic)
        failures = case.failures()
        if not failures:
            if not states_case(case, self.gate.spec.cases[self.number], self.gate.network.input_type):
                raise UnsupportedError("the records state another case than the property's.")
            self.accepted, self.arithmetic = case, arithmetic
            self._kept, file = file, self._kept
        if file is not None:
            file.close()
        return failures

    def tried(self, records: Iterable[Record], arithmetic: str) -> Case:
        """The checker's case after the records: nothing is accepted by that."""
        case = copy(self.prepared(arithmetic))
        case.open, case.known = dict(case.open), self._known_in(arithmetic)
        case.run(records, self._in_time)
        return case

    def _known_in(self, arithmetic: str) -> set[tuple]:
        """Boxes that earlier proofs of this case have closed in this arithmetic, or in floats, which cover the reals; for a file all are new."""
        if self.gate.wanted is not None:
            return set()
        known = self._known.setdefault(arithmetic, set())
        if arithmetic == REAL:
            known.update(*self._known.values())
        return known

    def _named(self, arithmetic: str) -> Record:
        return Record(self.record.kind, self.record.fields | {"arithmetic": arithmetic}, self.record.arrays)

    def copy_to(self, file: BinaryIO) -> None:
        """Appends the records that were accepted."""
        self._kept.seek(0)
        shutil.copyfileobj(self._kept, file)
        self._kept.close()

    def _in_time(self) -> None:
        if self.deadline.expired():
            raise OutOfTime("The time was over before the proof was checked.")


def _copied(first: Iterable[Record], records: Iterable[Record], file: BinaryIO) -> Iterator[Record]:
    """The records, each written to the file as it passes; those of `first` are written alone."""
    for record in first:
        write_record(file, record)
    for record in records:
        write_record(file, record)
        yield record


def states_case(proved: Case, asked: Asked, dtype: str) -> bool:
    """Whether what was proved is no less than what was asked: the region contains the other one, and the polytopes are the same or larger."""
    lower, upper, polytopes = proved.states()
    least, most = asked.received(dtype)
    inside = bool((lower <= least).all() and (most <= upper).all()) and _states_ball(proved.statement.ball, asked.ball)
    return inside and len(polytopes) == len(asked.polytopes) and all(_states_polytope(*pair) for pair in zip(polytopes, asked.polytopes))


def _states_ball(stated: tuple[np.ndarray, float, int] | None, asked: Ball | None) -> bool:
    if stated is None or asked is None:
        return stated is None
    center, radius, norm = stated
    return np.array_equal(center, asked.center) and norm == asked.norm and radius >= asked.covering


def _states_polytope(stated: tuple[np.ndarray, np.ndarray, np.ndarray], asked: Polytope) -> bool:
    output, offset, given = stated
    own = np.zeros_like(given) if asked.input is None else asked.input
    return np.array_equal(output, asked.output) and np.array_equal(given, own) and bool((offset >= asked.offset).all())


def make_room(wanted: CertificateConfig, model: str | Path) -> None:
    """No older certificate lies where the new one goes.

    Raises:
        CertificateError: something else lies there, or a certificate of another model or property that is not to be overwritten: it is kept.
    """
    path = wanted.path
    try:
        if path.exists() and not path.is_file():
            raise CertificateError(f"{path} is there and is no certificate; it would be overwritten: give the certificate another name.")
        if path.exists() and path.stat().st_size:
            _check_room(wanted, model)
        path.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise CertificateError(f"Cannot write the certificate {path}: {getattr(error, 'strerror', None) or error}.") from None


def _check_room(wanted: CertificateConfig, model: str | Path) -> None:
    path = wanted.path
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise CertificateError(f"{path} is there and is no certificate; it would be overwritten: give the certificate another name.")
        try:
            head = next(read_records(file, str(path))).fields
        except CertificateError:
            return  # half of one, which proves nothing
    own = {"model": model_digest(model), "property": property_digest(wanted.property)}
    other = next((what for what, digest in own.items() if head.get(what) != digest), None)
    if other is not None and not wanted.overwrite:
        raise CertificateError(f"{path} is there and is the certificate of another {other}: give another name, or --overwrite to lose it.")


def _property(spec: Spec, wanted: CertificateConfig | None) -> Property | None:
    """The property's file as the checker reads it; None where the property comes from no file."""
    path = wanted.property if wanted is not None else Path(spec.path) if spec.path else None
    return None if path is None else read_property(path, spec.n_in, spec.n_out)


def _check_wanted(network: Graph, spec: Spec) -> None:
    if not network.source:
        raise VerifierError("A certificate speaks of an ONNX file, and this network comes from none: export it and load the file.")
    if any(case.ball is not None for case in spec.cases):
        raise VerifierError("A certificate speaks of a VNN-LIB file, which states no l1 or l2 ball: use the linf norm, or ask for no certificate.")

