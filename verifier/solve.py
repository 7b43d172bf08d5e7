"""verify: a graph and a property in, a Verdict out. The order of work: attack, reduce, bound, split; every claim passes its gate."""
from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from verifier.acceptance import Acceptance, accept, demand
from verifier.attack.confirm import REFUSALS, LateReplay, Replay, input_dtype, judge
from verifier.attack.pgd import pgd
from verifier.bab.budget import Deadline, Listener, Progress, silent
from verifier.bab.driver import Oracle, Search, advance
from verifier.bab.ladder import FEW_INPUTS, Climb, Outcome, open_root, outcome_of, solve_problem
from verifier.certificate.emit import Table, case_record
from verifier.certificate.gate import REAL, CaseGate, Gate, network_of
from verifier.config import AttackConfig, CertificateConfig, Config
from verifier.errors import OutOfMemory, OutOfTime, VerifierError
from verifier.exact.highs import leaf_answer
from verifier.graph.ir import Graph
from verifier.graph.validate import Comparison
from verifier.reduced.build import BuildConfig, build
from verifier.reduced.problem import ReducedProblem
from verifier.spec.spec import Case, Spec
from verifier.verdict import Counterexample, NeuronSplit, Reason, Status, Verdict

GLANCE, GLANCE_S = AttackConfig(restarts=1, steps=10), 0.2
"""A look at few-input problems before anything is bounded: their samples cover the region, and their root can be dear."""
QUICK = AttackConfig(restarts=2, steps=20)
SLICE_S = 0.5
"""Branch and bound of many searches goes on for so long before the proofs that it has found are checked."""
SMALL_NETWORK = 50_000
"""Neurons up to which a problem with few inputs is solved in double precision: its boxes become so small that float32 rounding decides."""


def verify(
    graph: Graph, spec: Spec, config: Config = Config(), listener: Listener = silent, certificate: CertificateConfig | None = None
) -> Verdict:
    """Whether the network is safe: VERIFIED by a proof that the checker accepted, FALSIFIED with a counterexample that was replayed, or UNKNOWN with

    the reason.

    Args:
        graph: from `load_onnx` (counterexamples are replayed by onnxruntime on its file) or `load_torch` (by the graph itself).
        spec: from `load_vnnlib` or `robustness`.
        config: `timeout_s` counts from this call.
        listener: is told of progress a few times a second.
        certificate: where the proof is to be kept.

    Raises:
        VerifierError: the property does not fit the network, an operation is not supported, or nothing can be certified here.
    """
    _check_sizes(graph, spec)
    return _verdicts(_Run(graph, [spec], config, listener, [certificate]))[0]


def verify_many(
    graph: Graph, specs: Sequence[Spec], config: Config = Config(), listener: Listener = silent,
    certificates: Sequence[CertificateConfig | None] | None = None,
) -> list[Verdict]:
    """One verdict for each property of one network, as of `verify`; `certificates`: one for each.

    `config.timeout_s` is the time for each property; those that are searched together may use what others of them leave over.
    """
    for spec in specs:
        _check_sizes(graph, spec)
    return _verdicts(_Run(graph, specs, config, listener, certificates or [None] * len(specs)))


def _verdicts(run: _Run) -> list[Verdict]:
    try:
        with torch.no_grad(), _threads(1 if run.tiny else torch.get_num_threads()):
            return run.verdicts()
    finally:
        run.close()


def _check_sizes(graph: Graph, spec: Spec) -> None:
    n_in, n_out = int(np.prod(graph.input_shape)), int(np.prod(graph.output_shape))
    if (spec.n_in, spec.n_out) != (n_in, n_out):
        raise VerifierError(
            f"The property {spec.source or 'given'} has {spec.n_in} inputs and {spec.n_out} outputs, "
            f"but the network {graph.source or 'given'} has {n_in} and {n_out}."
        )


def device_of(name: str) -> torch.device:
    """`auto` is CUDA where there is one. TF32 is switched off: its products have ten bits."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise VerifierError(f"Device {name!r} was asked for, but torch finds no CUDA device here: use --device cpu.")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


@dataclass(slots=True, eq=False)
class _Job:
    """One case of one property at work: its gate, its search once it is bounded, and what became of it."""

    spec: int
    case: Case
    replay: Replay
    search: Search | None = None
    problem: ReducedProblem | None = None
    checker: CaseGate | None = None
    outcome: Outcome | None = None
    acceptance: Acceptance | None = None
    failure: tuple[Reason, str] | None = None
    found: Counterexample | None = None
    found_by: str = ""
    refused: set[Reason] = field(default_factory=set)
    asked: bool = False
    seconds: float = 0.0
    unstable: int | None = None
    root: float | None = None

    @property
    def open(self) -> bool:
        return self.found is None and self.failure is None and self.acceptance is None and (self.outcome is None or not self.outcome.proved)

    @property
    def accepted(self) -> bool:
        return self.acceptance is not None and bool(self.acceptance.arithmetic)

    def offer(self, polytope: int, points: np.ndarray, by: str) -> bool:
        """Whether a point of `(K, n_in)` passes the gate."""
        for x in points:
            found = judge(x, self.case, self.case.polytopes[polytope], self.replay)
            if isinstance(found, Counterexample):
                self.found, self.found_by = found, by
                return True
            self.refused.add(found)
        return False


class _Run:
    """All properties of one network: bound every case at the root, attack what is open, split what is left, many problems in one frontier."""

    def __init__(
        self, graph: Graph, specs: Sequence[Spec], config: Config, listener: Listener, certificates: Sequence[CertificateConfig | None]
    ) -> None:
        self.config, self.listener, self.specs = config, listener, specs
        network = network_of(graph)
        self.gates = [Gate(network, spec, wanted) for spec, wanted in zip(specs, certificates, strict=True)]
        self.claims = claims_of(network, config.arithmetic)
        self.comparison = Comparison(graph, [(case.lower, case.upper) for spec in specs for case in spec.cases])
        self.device = device_of(config.device)
        self.source = graph
        self.graph = graph.to(self.device, torch.float32)
        self.small = sum(int(np.prod(node.shape)) for node in graph.nodes) <= SMALL_NETWORK
        self.tiny = self.small and all(_free_inputs(case) <= FEW_INPUTS for spec in specs for case in spec.cases)
        self.jobs = [_Job(k, case, self.replay) for k, spec in enumerate(specs) for case in spec.cases]
        self.many = len(specs) > 1  # an attack of many at once is cheaper than their roots
        self.interrupted = False

    @cached_property
    def replay(self) -> Replay:
        """One for all jobs; it opens the file when it is first asked."""
        return LateReplay(self.source)

    def verdicts(self) -> list[Verdict]:
        try:
            waiting: list[_Job] = []
            if self.config.attack:
                self._attack([job for job in self.jobs if _free_inputs(job.case) <= FEW_INPUTS], GLANCE, GLANCE_S)
                if self.many:
                    self._attack([job for job in self.jobs if job.open], QUICK)
            for job in self.jobs:
                self._bound(job)
                if job.open and job.search is not None:
                    waiting.append(job)
                if sum(_nbytes(w.search.problem) for w in waiting) > self.config.memory_bytes // 2:
                    self._decide(waiting)
                    waiting = []
            self._decide(waiting)
        except KeyboardInterrupt:
            self.interrupted = True
        return [self._verdict(k, spec) for k, spec in enumerate(self.specs)]

    def _left_s(self, job: _Job) -> float:
        """What the property of this job has left of its time."""
        return self.config.timeout_s - sum(other.seconds for other in self.jobs if other.spec == job.spec)

    def _shut(self, job: _Job) -> bool:
        """Whether the property is decided without this job, or has no time left."""
        return self._left_s(job) <= 0 or any(other.found for other in self.jobs if other.spec == job.spec)

    def _bound(self, job: _Job) -> None:
        """Root bounds: builds the reduced problem and opens a search, or proves the case."""
        if self._shut(job):
            return
        with _timed([job]), _resources(job):
            self.listener(Progress("bounds", 0.0))
            deadline = Deadline.after(self._left_s(job))
            double = self.small and _free_inputs(job.case) <= FEW_INPUTS
            graph = self.source.to(self.device, torch.float64) if double else self.graph
            job.problem = build(graph, job.case, BuildConfig(self.config.memory_bytes, deadline.at_s))
            search = Search(self.jobs.index(job), job.problem)
            job.unstable = search.problem.unstable
            open_root(search, deadline)
            job.search, job.outcome = search, outcome_of(search, "alpha-CROWN")
            job.root = _root_margin(search)
        self._certify(job)

    def _certify(self, job: _Job) -> None:
        """Has the checker accept the proof of a case that is proved; what it refuses is searched again, with a margin."""
        if job.failure or job.outcome is None or job.outcome.by is None:
            return
        begin_s = time.monotonic() - job.seconds
        with _timed([job]), _resources(job):
            self.listener(Progress("check of the proof", 0.0))
            self.comparison.agrees()
            climb = Climb(self.config.bab, self._oracle(), Deadline.after(self._left_s(job)), self.listener)
            table, checker = Table.of(self.graph, job.problem.neuron), self._checker(job, climb.deadline)
            job.acceptance = accept(job.outcome, checker, table, self.claims, climb, begin_s)
            job.outcome, job.problem, job.checker = job.acceptance.outcome, None, None
            if job.acceptance.arithmetic:
                self.gates[job.spec].add(checker)
            elif job.found is None:
                job.failure = job.acceptance.refusal()

    def _checker(self, job: _Job, deadline: Deadline) -> CaseGate:
        """The checker at the job's case, with what it has prepared before."""
        if job.checker is None:
            gate, number = self.gates[job.spec], [other for other in self.jobs if other.spec == job.spec].index(job)
            record = case_record(job.case, Table.of(self.graph, job.problem.neuron), self.specs[job.spec].n_out, gate.network.input_type)
            job.checker = CaseGate(gate, number, record, deadline)
        job.checker.deadline = deadline
        return job.checker

    def close(self) -> None:
        for gate in self.gates:
            gate.close()

    def _decide(self, waiting: list[_Job]) -> None:
        """Attack, then turns of branch and bound for all while they decide some, then each by itself; searches are dropped as their jobs end."""
        if self.config.attack and not self.many:
            self._attack(waiting, QUICK)
        open_jobs = [job for job in waiting if job.open and not self._shut(job)]
        left, before = open_jobs, math.inf
        while 1 < len(left) < before:
            self._turn(left)
            before, left = len(left), [job for job in left if job.open and not self._shut(job)]
        for job in open_jobs:
            if job.open and not self._shut(job):
                with _timed([job]), _resources(job):
                    climb = Climb(self.config.bab, self._oracle(), Deadline.after(self._left_s(job)), self.listener)
                    self._demand(job, climb.deadline.at_s)
                    job.outcome = solve_problem(job.search, climb)
        if self.config.attack:
            self._attack([job for job in open_jobs if job.open and not self._shut(job)], self.config.attack)
        for job in waiting:
            self._certify(job)
            job.search = None

    def _demand(self, job: _Job, end_s: float) -> None:
        """Asks the job's search once for the margin that errors take; the work ends at `end_s`."""
        search = job.search
        if self.claims[0] != REAL and not job.asked:
            job.asked, times_s = True, (time.monotonic() - job.seconds, end_s)
            checker, table = self._checker(job, Deadline.after(self._left_s(job))), Table.of(self.graph, job.problem.neuron)
            demand(search, checker, table, self.claims[0], times_s, self.config.seed)
        elif search.least is not None:
            search.least = replace(search.least, end_s=end_s)

    def _turn(self, jobs: list[_Job]) -> None:
        """Up to a second for each of the jobs, which they share: branch and bound for all in one frontier, and the checker for what it proves."""
        each_s = min(min(self._left_s(job) for job in jobs), 1.0)
        deadline = Deadline.after(each_s * len(jobs))
        for job in jobs:
            with _timed([job]), _resources(job):
                self._demand(job, deadline.at_s)
        spent = {job.search.key: 0.0 for job in jobs}
        try:
            while not deadline.expired() and (left := [job for job in jobs if job.open]):
                with _resources(*left):
                    advance([job.search for job in left], self.config.bab, self._oracle(), deadline.sooner(SLICE_S), self.listener, spent)
                for job in left:
                    job.outcome = outcome_of(job.search, "beta-CROWN")
                    self._certify(job)
        finally:
            for job, seconds in zip(jobs, shared_s(list(spent.values()), each_s)):
                job.seconds += seconds

    def _attack(self, jobs: list[_Job], config: AttackConfig, limit_s: float = math.inf) -> None:
        if not jobs:
            return
        self.listener(Progress("attack", 0.0))
        share_s = 0.1 * self.config.timeout_s * len(jobs)
        deadline = Deadline.after(min(limit_s, share_s, min(self._left_s(job) for job in jobs)))
        with _timed(jobs), torch.enable_grad():
            dtype = getattr(torch, input_dtype(self.replay).name)
            graph = self.source if dtype == torch.float64 else self.graph
            for candidate in pgd(graph, [job.case for job in jobs], config, self.config.seed, deadline, self.device, dtype):
                job = jobs[candidate.case]
                if job.found is None:
                    job.offer(candidate.polytope, candidate.x[None], "PGD")
                if all(job.found for job in jobs):
                    return

    def _oracle(self) -> Oracle:
        def offer(key: int, polytope: int, x: Tensor) -> bool:
            return self.jobs[key].offer(polytope, x.cpu().numpy(), "a corner of a bound")

        return Oracle(offer, leaf_answer)

    def _verdict(self, k: int, spec: Spec) -> Verdict:
        jobs = [job for job in self.jobs if job.spec == k]
        outcomes = [job.outcome for job in jobs if job.outcome is not None]
        answer = self._answer(k, spec, jobs, outcomes)
        built = [job.unstable for job in jobs if job.unstable is not None]
        return replace(
            answer, seconds=sum(job.seconds for job in jobs), domains=sum(o.domains for o in outcomes), splits=self._splits(outcomes),
            unstable=sum(built) if built else None,
        )

    def _splits(self, outcomes: list[Outcome]) -> tuple[NeuronSplit, ...]:
        total: Counter[tuple[int, int]] = Counter()
        for outcome in outcomes:
            total.update(outcome.splits)
        nodes, places = self.source.nodes, Counter()
        for (node, number), times in total.items():
            places[node, number % max(1, int(np.prod(nodes[node].shape)))] += times
        return tuple(NeuronSplit(nodes[node].name, neuron, times) for (node, neuron), times in places.most_common())

    def _answer(self, k: int, spec: Spec, jobs: list[_Job], outcomes: list[Outcome]) -> Verdict:
        found = next((job for job in jobs if job.found is not None), None)
        if found is not None:
            sentence = f"Counterexample found by {found.found_by}, replayed with margin {found.found.margin:.3g}.{found.found.remark()}"
            return Verdict(Status.FALSIFIED, Reason.REPLAYED, sentence, engine=found.found_by, counterexample=found.found)
        if all(job.accepted for job in jobs):
            if not jobs:
                empty = Verdict(Status.VERIFIED, Reason.PROVED, spec.note or "The input set is empty.", engine="specification")
                return self._certified(k, empty)
            roots = [job.root for job in jobs]
            lowest = None if None in roots else min(roots)
            lacks = next((job.acceptance.lacks for job in jobs if job.acceptance.lacks), "")
            verdict = self._certified(k, Verdict(Status.VERIFIED, Reason.PROVED, "", engine=_engines(outcomes), lower_bound=lowest), lacks)
            return verdict if verdict.sentence else replace(verdict, sentence=_proved_sentence(jobs, outcomes, verdict))
        reason, sentence = self._why_unknown(jobs)
        lowest = [o.lower for o in outcomes if o.lower is not None and not o.proved]
        return Verdict(Status.UNKNOWN, reason, sentence, engine=_engines(outcomes), lower_bound=min(lowest, default=None))

    def _certified(self, k: int, verdict: Verdict, lacks: str = "") -> Verdict:
        """The verdict of a property whose every case was accepted, once the cases are seen to cover it."""
        gate = self.gates[k]
        missing = gate.finish()
        if missing is not None:
            return Verdict(Status.UNKNOWN, Reason.REFUSED, f"A proof was found, but the checker does not accept it: {missing}")
        path = None if gate.wanted is None else str(gate.wanted.path)
        proved = gate.proved() if gate.arithmetics else self.claims[0]
        return replace(verdict, certificate=path, proved=proved, lacks=lacks if proved != self.claims[0] else "")

    def _why_unknown(self, jobs: list[_Job]) -> tuple[Reason, str]:
        failure = next((job.failure for job in jobs if job.failure is not None), None)
        if failure is not None:
            return failure
        if self.interrupted:
            return Reason.INTERRUPTED, "Interrupted."
        if any(job.outcome is not None and job.outcome.full for job in jobs):
            return Reason.MEMORY, f"The open domains fill their {self.config.bab.frontier_bytes / 2**30:.1f} GiB: raise bab.frontier_bytes."
        if any(job.open and self._shut(job) for job in jobs):
            return Reason.TIMEOUT, f"The time of {self.config.timeout_s:g} s is over."
        for reason, sentence in REFUSALS.items():
            if any(reason in job.refused for job in jobs):
                return reason, sentence
        return Reason.INCOMPLETE, "Splitting came to its end: what is open is thinner than the arithmetic resolves."


def shared_s(spent: Sequence[float], most_s: float) -> list[float]:
    """What each of several is charged that have spent this time of a common purse: what is beyond `most_s` is taken from what others left over."""
    over, room = sum(max(0.0, s - most_s) for s in spent), [max(0.0, most_s - s) for s in spent]
    if over >= sum(room):
        return [sum(spent) / len(spent)] * len(spent) if spent else []
    return [min(s, most_s) + r * over / sum(room) for s, r in zip(spent, room)]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch with so many threads inside: operations on small tensors are faster on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _timed(jobs: list[_Job]) -> Iterator[None]:
    """Charges the time inside to these jobs, in equal parts."""
    begin = time.monotonic()
    try:
        yield
    finally:
        for job in jobs:
            job.seconds += (time.monotonic() - begin) / len(jobs)


@contextmanager
def _resources(*jobs: _Job) -> Iterator[None]:
    """Turns the exhaustion of memory or time into the jobs' failure."""
    try:
        yield
    except OutOfTime as error:
        failure = (Reason.TIMEOUT, str(error))
    except (OutOfMemory, MemoryError, torch.OutOfMemoryError) as error:
        failure = (Reason.MEMORY, str(error) or "The memory of this machine is used up.")
    except RuntimeError as error:  # what the CPU allocator of torch raises
        if "can't allocate memory" not in str(error):
            raise
        failure = (Reason.MEMORY, "The memory of this machine is used up.")
    else:
        return
    for job in jobs:
        job.failure = failure


def _free_inputs(case: Case) -> int:
    return int((case.upper > case.lower).sum())


def _root_margin(search: Search) -> float | None:
    """min over polytopes of max over their rows of the proved bound, where the root proves all; splits leave no bound behind."""
    polytope = search.problem.polytope
    if not search.proved or not len(polytope):
        return None
    return min(float(search.floor[polytope == k].max()) for k in polytope.unique().tolist())


def _nbytes(problem: ReducedProblem) -> int:
    return problem.A.nbytes + problem.W.nbytes


def _engines(outcomes: list[Outcome]) -> str:
    return ", ".join(dict.fromkeys(o.engine for o in outcomes))


def claims_of(network: Graph, wanted: str) -> tuple[str, ...]:
    """The arithmetics that a proof may be about, the strongest first.

    Raises:
        VerifierError: the network does not compute in the one that is asked for.
    """
    own = network.arithmetic
    if wanted not in ("auto", REAL, own):
        said = f"computes in {own}" if own else network.mixed or "has no arithmetic of its own"
        raise VerifierError(f"The network {network.source or 'given'} {said}, so nothing is said of {wanted} here: use --arithmetic auto or real.")
    return (wanted,) if wanted != "auto" else (own, REAL) if own else (REAL,)


def _proved_sentence(jobs: list[_Job], outcomes: list[Outcome], verdict: Verdict) -> str:
    count = sum(len(job.case.polytopes) for job in jobs)
    subject = "The unsafe set is" if count == 1 else f"All {count} unsafe sets are"
    where = "over the reals" if verdict.proved == REAL else f"in {verdict.proved} arithmetic"
    lacks = f" Not in the model's own arithmetic: {verdict.lacks}" if verdict.lacks else ""
    return f"{subject} unreachable, proved {where} by {_engines(outcomes)}.{lacks}"
