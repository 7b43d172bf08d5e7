"""Certified accuracy with a proof for each image: a folder that holds the properties and their certificates, `image-7.vnnlib` and `image-7.cert`.

    a certificate that is there, of this model, property and arithmetic  -> checked again
    else, where cheap bounds of many images prove it                      -> a certificate without trees: the checker's own root bounds may do
    else, or where those do not                                           -> the solver, which answers `unsat` only with an accepted certificate

An image counts as certified only if the checker accepted the file that lies in the folder.
"""
from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from verifier.bab.budget import Deadline, Listener, Progress
from verifier.certificate.check import check
from verifier.certificate.gate import CaseGate, Gate, network_of
from verifier.certificate.schema import MAGIC, CertificateError, read_records
from verifier.config import CertificateConfig, Config
from verifier.errors import OutOfMemory, OutOfTime, UnsupportedError, VerifierError
from verifier.graph.ir import Graph
from verifier.measure.screen import bare_record
from verifier.outputs import keep_apart, replace_file
from verifier.solve import claims_of, verify
from verifier.spec.normal import load_vnnlib
from verifier.spec.spec import Spec
from verifier.spec.write import to_vnnlib
from verifier.verdict import Reason, Status, Verdict

if TYPE_CHECKING:
    from verifier.measure.screen import Screen


class ProofFolder:
    """Properties and certificates of one network's images, about one arithmetic ("auto": its own, or the reals).

    Image k of a run is number `first` + k there.

    Files of another model, property or arithmetic are never replaced or removed unless `overwrite` says so, those of `others` (what else the run
    reads or writes, by what it is) never.

    Raises:
        VerifierError: the network has no file, or the folder cannot be made.
    """

    def __init__(
        self, folder: str | Path, graph: Graph, arithmetic: str = "auto", overwrite: bool = False, first: int = 0,
        others: Mapping[str, Path | str | None] | None = None,
    ) -> None:
        if not graph.source:
            raise VerifierError("Certificates name the network's file, and this network has none: export it as ONNX and load that.")
        self.folder, self.graph, self.arithmetic, self.overwrite, self.first = Path(folder), graph, arithmetic, overwrite, first
        self.others = {"the network": graph.source, **(others or {})}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VerifierError(f"The folder of certificates {folder} cannot be made: {error.strerror or error}.") from None

    @cached_property
    def model(self) -> str:
        return network_of(self.graph).digest

    def wanted(self, image: int) -> CertificateConfig:
        """The certificate of an image, and the file of its property."""
        name = self.folder / f"image-{self.first + image}"
        return CertificateConfig(name.with_suffix(".cert"), name.with_suffix(".vnnlib"))

    def claim(self, count: int, spec_of: Callable[[int], Spec]) -> None:
        """Makes sure, before any work, that nothing of another question lies where the files of `count` images go; `spec_of` is asked where any do.

        Raises:
            VerifierError: something does, and is not to be overwritten, or is the network itself.
        """
        for image in range(count):
            wanted = self.wanted(image)
            keep_apart(self.others, {"A certificate": wanted.path, "a property": wanted.property})
            if not (wanted.path.exists() or wanted.property.exists()):
                continue
            foreign = self._foreign(wanted, spec_of(image))
            if foreign is not None and not self.overwrite:
                raise VerifierError(f"{foreign}: give another folder, or --overwrite to lose the files of these images that are there.")
            if foreign is not None:
                self.discard(image)

    def _foreign(self, wanted: CertificateConfig, spec: Spec) -> str | None:
        """The sentence that names what is of another question; a damaged certificate of this property is of none."""
        text = to_vnnlib(spec).encode()
        try:
            if wanted.property.exists() and wanted.property.read_bytes() != text:
                return f"{wanted.property} is there and states another property"
            if not wanted.path.exists():
                return None
            with open(wanted.path, "rb") as file:
                head = next(read_records(file, str(wanted.path))).fields
        except OSError as error:
            return f"{wanted.path} cannot be read ({error.strerror or error})"
        except CertificateError:
            damaged = wanted.property.exists() and wanted.path.read_bytes()[: len(MAGIC)] in (MAGIC, b"")
            return None if damaged else f"{wanted.path} is there and is no certificate of this property"
        if head.get("model") != self.model:
            return f"{wanted.path} is there and is the certificate of another model"
        if head.get("property") != hashlib.sha256(text).hexdigest():
            return f"{wanted.path} is there and is the certificate of another property"
        return None if self.arithmetic in ("auto", head.get("arithmetic")) else f"{wanted.path} is there and speaks of another arithmetic"

    def state(self, image: int, spec: Spec) -> Spec:
        """Writes the property, and reads it as the file states it.

        Raises:
            VerifierError: the property is not one of boxes, or the file cannot be written.
        """
        path = self.wanted(image).property
        replace_file(path, to_vnnlib(spec).encode())
        return load_vnnlib(path, spec.n_in, spec.n_out)

    def discard(self, image: int) -> None:
        """Without the files of an image that has no proof; `claim` has seen that they are of this question."""
        wanted = self.wanted(image)
        wanted.path.unlink(missing_ok=True)
        wanted.property.unlink(missing_ok=True)

    def known(self, image: int, spec: Spec) -> Verdict | None:
        """VERIFIED by the certificate that is there; None where there is none, or none of this property that is accepted."""
        wanted = self.wanted(image)
        try:
            if not wanted.path.is_file() or wanted.property.read_bytes() != to_vnnlib(spec).encode():
                return None
            report = check(self.graph.source, wanted.property, wanted.path)
        except (OSError, CertificateError, UnsupportedError):
            return None
        if not report.accepted or self.arithmetic not in ("auto", report.arithmetic):
            return None
        return _proved("certificate", report.seconds, None, wanted, report.arithmetic)

    def at_root(self, image: int, spec: Spec, engine: str, lower: float, limit_s: float) -> Verdict | None:
        """VERIFIED where the checker's root bounds prove the property as well; `engine` and `lower` say what proved it before."""
        begin, wanted, network = time.monotonic(), self.wanted(image), network_of(self.graph)
        gate, deadline = Gate(network, spec, wanted), Deadline.after(limit_s)
        try:
            for number, case in enumerate(spec.cases):
                checker = CaseGate(gate, number, bare_record(network, case), deadline)
                if all(checker.failures([], claim) for claim in claims_of(network, self.arithmetic)):
                    return None
                gate.add(checker)
            if gate.finish() is not None:
                return None
        except (OutOfTime, OutOfMemory, MemoryError, UnsupportedError):  # the solver meets them too, and says so
            return None
        finally:
            gate.close()
        return _proved(engine, time.monotonic() - begin, lower, wanted, gate.proved())


class ProvingSolver:
    """Verdicts of images, VERIFIED only with a certificate in the folder; `screen` proves the easy ones at little cost."""

    def __init__(self, proofs: ProofFolder, screen: Screen | None, config: Config, listener: Listener) -> None:
        self.proofs, self.screen, self.config, self.listener = proofs, screen, config, listener

    def verdicts(self, specs: Mapping[int, Spec]) -> Iterator[dict[int, Verdict]]:
        """Verdicts by the image's number, as they come."""
        self.listener(Progress("certificates", 0.0))
        known = {image: verdict for image, spec in specs.items() if (verdict := self.proofs.known(image, spec)) is not None}
        yield known
        waiting = [image for image in specs if image not in known]
        spent, bounds = dict.fromkeys(waiting, 0.0), {}
        if waiting and self.screen is not None:
            self.listener(Progress("bounds of many", 0.0))
            found = self.screen.prove([specs[image].cases[0] for image in waiting], self.config.timeout_s)
            spent = dict(zip(waiting, found.seconds.tolist()))
            bounds = {image: (engine, lower) for image, engine, lower in zip(waiting, found.engine, found.lower.tolist()) if engine}
        for image in waiting:
            verdict = self._verdict(image, self.proofs.state(image, specs[image]), bounds.get(image), spent[image])
            if verdict.status is not Status.VERIFIED:
                self.proofs.discard(image)
            yield {image: verdict}

    def _verdict(self, image: int, spec: Spec, bound: tuple[str, float] | None, spent_s: float) -> Verdict:
        if bound is not None:
            begin, verdict = time.monotonic(), self.proofs.at_root(image, spec, *bound, self.config.timeout_s)
            spent_s += time.monotonic() - begin
            if verdict is not None:
                return replace(verdict, seconds=spent_s)
        config = replace(self.config, timeout_s=max(self.config.timeout_s - spent_s, 0.1 * self.config.timeout_s), arithmetic=self.proofs.arithmetic)
        verdict = verify(self.proofs.graph, spec, config, self.listener, self.proofs.wanted(image))
        return replace(verdict, seconds=verdict.seconds + spent_s)


def _proved(engine: str, seconds: float, lower: float | None, wanted: CertificateConfig, arithmetic: str) -> Verdict:
    sentence = f"All unsafe sets are unreachable, and {wanted.path} proves it in {arithmetic} arithmetic."
    path = str(wanted.path)
    return Verdict(Status.VERIFIED, Reason.PROVED, sentence, seconds, engine=engine, lower_bound=lower, certificate=path, proved=arithmetic)
