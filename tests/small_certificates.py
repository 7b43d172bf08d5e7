"""Certificates without a tree, written by hand: the checker proves their polytopes from the root bounds, or not at all."""
from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from verifier.bab.driver import Search
from verifier.bab.input_split import InputSearch
from verifier.certificate.arithmetic import ROUNDED, RUNTIMES
from verifier.certificate.case import Case, Failure
from verifier.certificate.emit import Table, case_record, proof_records
from verifier.certificate.property import property_digest
from verifier.certificate.schema import Record, read_records, write_header, write_record
from verifier.graph.ir import Graph
from verifier.graph.onnx_file import model_digest
from verifier.reduced.problem import ReducedProblem
from verifier.spec.spec import Case as Asked


def head(model: Path, prop: Path, arithmetic: str = "real") -> Record:
    return Record("HEAD", {"arithmetic": arithmetic, "model": model_digest(model), "property": property_digest(prop), "prover": "a test"}, {})


def case(lower: Any, upper: Any, output: Any, offset: Any) -> Record:
    """A case of one-row polytopes, `output (S, n_out)`, `offset (S,)`."""
    numbers = {"lower": lower, "upper": upper, "output": output, "offset": offset}
    arrays = {name: np.array(value, np.float64) for name, value in numbers.items()}
    arrays |= {"neuron": np.zeros((0, 2), np.int32), "kept": np.zeros(0, np.uint32)}
    return Record("CASE", {"rows": [1] * len(arrays["offset"]), "nodes": []}, arrays)


def done(cases: int) -> Record:
    return Record("DONE", {"cases": cases}, {})


def as_bytes(*records: Record) -> bytes:
    file = io.BytesIO()
    write_header(file)
    for record in records:
        write_record(file, record)
    return file.getvalue()


def from_bytes(data: bytes) -> list[Record]:
    return list(read_records(io.BytesIO(data), "small.cert"))


def case_records(graph: Graph, asked: Asked, problem: ReducedProblem, by: Search | InputSearch) -> list[Record]:
    """The records of the proof of one case, CASE first; `problem` is the reduced one before branch and bound."""
    table = Table.of(graph, problem.neuron)
    return [case_record(asked, table, int(np.prod(graph.output_shape)), graph.input_type), *proof_records(table, by)]


def check_case(graph: Graph, records: Iterable[Record], claim: str = "real") -> list[Failure]:
    """What the records of one case, CASE first, leave unproved; `graph` is what `graph.onnx_load.load_onnx` gives."""
    records = iter(records)
    case = Case(graph, next(records), RUNTIMES[claim], ROUNDED, 0)
    assert case.run(records, lambda: None) is None, "other records follow"
    return case.failures()
