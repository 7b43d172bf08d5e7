"""The prover's logs -> the records of a case (docs/certificate.md). Nothing here is trusted: a mistake makes a certificate that is refused.

The neurons' table is that of the problem before branch and bound; what splits mention is kept. A LEAF record holds consecutive leaves whose
multipliers are of one form: alpha and beta as they were bounded, or nu where a linear program proved the leaf or where not all neurons are ReLUs.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from torch import Tensor

from verifier.bab.domains import DomainBatch, unpack_alpha
from verifier.bab.driver import Search
from verifier.bab.input_split import InputSearch
from verifier.bab.log import Lemma, Log, Walk, walk
from verifier.certificate.case import Failure
from verifier.certificate.schema import Record
from verifier.graph.ir import Graph
from verifier.reduced.bound import Rows, through_neurons
from verifier.reduced.planes import Domains, fixed_planes, planes_at
from verifier.reduced.problem import ReducedProblem, stack
from verifier.spec.spec import Case

MOST_LEAVES, MOST_BYTES = 4096, 2**27
"""Of one LEAF record."""


@dataclass(frozen=True, slots=True)
class Table:
    """Where a neuron (node, number) stands in a case's table, and the nodes' names."""

    position: dict[tuple[int, int], int]
    nodes: tuple[str, ...]
    neuron: np.ndarray

    @staticmethod
    def of(graph: Graph, neuron: Tensor) -> Table:
        """The table of a problem's neurons `(U, 2)`."""
        rows = neuron.cpu().numpy()
        used = sorted(set(rows[:, 0].tolist()))
        table = np.stack([np.searchsorted(used, rows[:, 0]), rows[:, 1]], 1).astype(np.int32)
        return Table({tuple(row): k for k, row in enumerate(rows.tolist())}, tuple(graph.nodes[k].name for k in used), table)

    def columns(self, neuron: Tensor) -> np.ndarray:
        """The places of neurons `(M, 2)`."""
        return np.array([self.position[node, number] for node, number in neuron.tolist()], np.uint32)


@dataclass(frozen=True, slots=True)
class _Trees:
    """A TREE record to be: a log's trees from these `roots`, what each is about, and `columns`, the places of the log's neurons."""

    log: Log
    about: str
    target: np.ndarray
    walked: Walk
    columns: np.ndarray


def proof_records(table: Table, by: Search | InputSearch) -> Iterator[Record]:
    """The records behind a case's CASE: the proof of the search `by`, which speaks of neurons by their places in the `table`."""
    if isinstance(by, InputSearch):
        yield _box_record(by)
        return
    for part in _trees(by.log, table):
        if isinstance(part, _Trees):
            yield _tree_record(part)
            yield from _leaf_records(part)
        else:
            yield Record("STEP", {}, {"kept": part})


def case_record(case: Case, table: Table, n_out: int, dtype: str) -> Record:
    """The CASE: what is stated, and the neurons that a proof may speak of.

    Args:
        dtype: of the network's input, which says what a runtime receives for an input that is fixed.
    """
    lower, upper = case.received(dtype)
    arrays: dict[str, Any] = {
        "lower": lower, "upper": upper, "output": np.concatenate([np.zeros((0, n_out)), *(p.output for p in case.polytopes)]),
        "offset": np.concatenate([np.zeros(0), *(p.offset for p in case.polytopes)]), "neuron": table.neuron,
        "kept": np.arange(len(table.neuron), dtype=np.uint32),
    }
    if any(p.input is not None for p in case.polytopes):
        none = np.zeros_like(lower)
        arrays["input"] = np.concatenate([np.tile(none, (len(p.offset), 1)) if p.input is None else p.input for p in case.polytopes]).astype(float)
    fields = {"rows": [len(p.offset) for p in case.polytopes], "nodes": list(table.nodes)}
    if case.ball is not None:
        arrays |= {"center": case.ball.center, "radius": np.array([case.ball.covering])}
        fields["norm"] = case.ball.norm
    return Record("CASE", fields, arrays)


def _trees(log: Log, table: Table) -> list[_Trees | np.ndarray]:
    """The lemmas, a STEP being the places of the neurons that stay in it whatever is known of them, and then the polytopes."""
    found = [_of_neurons(lemma, table) if isinstance(lemma, Lemma) else table.columns(lemma).astype(np.uint32) for lemma in log.lemmas]
    polytopes = sorted(log.root)
    target = np.array(polytopes, np.int32).reshape(-1, 1)
    walked = walk(log.tree, [log.root[k] for k in polytopes])
    return [*found, _Trees(log, "polytopes", target, walked, table.columns(log.problem.neuron))]


def _of_neurons(lemma: Lemma, table: Table) -> _Trees:
    log, roots = lemma.log, [lemma.log.root[row] for row in lemma.row.tolist()]
    target = np.stack([table.columns(lemma.neuron).astype(np.int32), lemma.sign.cpu().numpy().astype(np.int32)], 1)
    return _Trees(log, "neurons", target, walk(log.tree, roots, log.enough()), table.columns(log.problem.neuron))


def _tree_record(part: _Trees) -> Record:
    what, point = part.walked.what, part.walked.point
    tree = np.where(what < 0, -1, part.columns.astype(np.int32)[what] if len(part.columns) else -1).astype(np.int32)
    arrays = {"target": part.target, "columns": part.columns, "tree": tree}
    return Record("TREE", {"target": part.about}, arrays | ({"point": point} if point.any() else {}))


def _leaf_records(part: _Trees) -> Iterator[Record]:
    """Consecutive leaves of one form, so many that a record stays small."""
    log, leaf, relu = part.log, part.walked.leaf, part.log.problem.is_relu
    ends = np.concatenate([[0], np.cumsum(part.walked.depth)])
    most = max(1, min(MOST_LEAVES, MOST_BYTES // (8 * max(1, len(part.columns)))))
    for by_program, run in groupby(range(len(leaf)), lambda k: int(leaf[k]) in log.programs):
        places = np.array(list(run))
        for own in np.split(places, range(most, len(places), most)):
            domains = log.domains(leaf[own])
            weight = _weights(log.problem, domains.row)
            if by_program:
                proofs = [log.programs[region] for region in leaf[own].tolist()]
                arrays = {"nu": np.stack([nu for _, nu in proofs])}
                weight = None if weight is None else np.stack([_padded(w, weight.shape[1]) for w, _ in proofs])
            elif relu:
                depth = part.walked.depth[own]
                path = part.walked.path[ends[own[0]]:ends[own[-1] + 1]]
                beta = domains.beta.float().cpu().numpy()[np.repeat(np.arange(len(own)), depth), path]
                arrays = {"alpha": domains.alpha.cpu().numpy(), "beta": beta.astype(np.float32)}
            else:
                arrays = {"nu": _multipliers(log.problem, domains).float().cpu().numpy()}
            yield Record("LEAF", {}, arrays if weight is None else arrays | {"weight": weight})


def _weights(problem: ReducedProblem, row: Tensor) -> np.ndarray | None:
    """One for the row of its polytope that was bounded, `(L, R)`; None where no polytope has two rows."""
    _, first, counts = np.unique(problem.polytope.cpu().numpy(), return_index=True, return_counts=True)
    if counts.max(initial=1) == 1:
        return None
    rows = row.cpu().numpy()
    weight = np.zeros((len(rows), counts.max()), np.float32)
    weight[np.arange(len(rows)), rows - first[np.searchsorted(first, rows, "right") - 1]] = 1
    return weight


def _padded(weight: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([weight, np.zeros(count - len(weight))])


def _multipliers(problem: ReducedProblem, domains: DomainBatch) -> Tensor:
    """nu `(L, U)` as the prover's backward pass had it."""
    single, row, dtype = stack([problem]), domains.row, problem.b.dtype
    rows = Rows(problem.W_o[row].unsqueeze(0), problem.A_o[row].unsqueeze(0), problem.b_o[row].unsqueeze(0))
    own = Domains(*(t.unsqueeze(0) for t in (domains.split, domains.cut_lower, domains.cut_upper)))
    planes = planes_at(single, own, fixed_planes(single, own), unpack_alpha(domains.alpha, dtype).unsqueeze(0))
    return through_neurons(single, rows, own, planes, domains.beta.to(dtype).unsqueeze(0))[1][0]


def _box_record(search: InputSearch) -> Record:
    log = search.log
    walked = walk(log.tree, [0])
    _, weight = log.leaves()
    arrays = {"tree": walked.what.astype(np.int32), "point": walked.point}
    several = len(search.problem.polytope.unique()) < len(search.problem.polytope)
    return Record("BOXS", {}, arrays | ({"weight": weight[walked.leaf]} if several else {}))


def reopen(by: Search | InputSearch, failures: list[Failure]) -> None:
    """Opens the leaves that a checker refused, with a margin by which the prover's bounds must exceed zero from now on.

    Args:
        by: the search that holds the log of the case's proof.
        failures: what the checker said of its records.
    """
    if isinstance(by, InputSearch):  # one tree for all polytopes
        by.reopen([(leaf, failure.polytope, margin) for failure in failures for leaf, margin in failure.places()])
        return
    for failure in failures:
        by.reopen(failure.polytope, failure.leaf or 0, -failure.bound)
