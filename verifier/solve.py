"""verify: a graph and a property in, a Verdict out. The order of work: attack, reduce, bound, split; every claim passes its gate."""
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from verifier.attack.confirm import Replay, confirm, replay_graph, replay_onnx
from verifier.attack.pgd import pgd, polish
from verifier.bab.budget import Deadline, Listener, Progress, silent
from verifier.bab.driver import Oracle
from verifier.bab.ladder import FEW_INPUTS, Outcome, solve_problem
from verifier.config import AttackConfig, Config
from verifier.errors import OutOfMemory, VerifierError
from verifier.exact.highs import leaf_answer
from verifier.graph.ir import Graph
from verifier.reduced.build import BuildConfig, build
from verifier.spec.spec import Case, Spec
from verifier.verdict import Counterexample, Reason, Status, Verdict

QUICK = AttackConfig(restarts=2, steps=20)
SMALL_NETWORK = 50_000
"""Neurons up to which a problem with few inputs is solved in double precision: its boxes become so small that float32 rounding decides."""


def verify(graph: Graph, spec: Spec, config: Config = Config(), listener: Listener = silent) -> Verdict:
    """Whether the network is safe: VERIFIED, FALSIFIED with a counterexample that was replayed, or UNKNOWN with the reason.

    Args:
        graph: from `load_onnx` (counterexamples are replayed by onnxruntime on its file) or `load_torch` (by the graph itself).
        spec: from `load_vnnlib` or `robustness`.
        config: `timeout_s` counts from this call.
        listener: is told of progress a few times a second.

    Raises:
        VerifierError: the property does not fit the network, or an operation is not supported.
    """
    return verify_many(graph, [spec], config, listener)[0]


def verify_many(graph: Graph, specs: Sequence[Spec], config: Config = Config(), listener: Listener = silent) -> list[Verdict]:
    """One verdict for each property of one network. `config.timeout_s` is the time for each property."""
    for spec in specs:
        _check_sizes(graph, spec)
    with torch.no_grad():
        run = _Run(graph, config, listener)
        return [run.verdict(spec) for spec in specs]


def _check_sizes(graph: Graph, spec: Spec) -> None:
    n_in, n_out = int(np.prod(graph.input_shape)), int(np.prod(graph.output_shape))
    if (spec.n_in, spec.n_out) != (n_in, n_out):
        raise VerifierError(
            f"The property {spec.source or 'given'} has {spec.n_in} inputs and {spec.n_out} outputs, but the network {graph.source or 'given'} has {n_in} and {n_out}."
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


@dataclass(slots=True)
class _Case:
    """A case at work: the gate, and the counterexample it let through."""

    case: Case
    replay: Replay
    found: Counterexample | None = None
    refused: int = 0

    def offer(self, polytope: int, x: np.ndarray) -> bool:
        found = confirm(x, self.case, self.case.polytopes[polytope], self.replay)
        if found is None:
            self.refused += 1
        elif self.found is None or found.margin > self.found.margin:
            self.found = found
        return self.found is not None


class _Run:
    """What all properties of one network share."""

    def __init__(self, graph: Graph, config: Config, listener: Listener) -> None:
        self.config, self.listener = config, listener
        self.device = device_of(config.device)
        self.source = graph
        self.graph = graph.to(self.device, torch.float32)
        self.small = sum(int(np.prod(node.shape)) for node in graph.nodes) <= SMALL_NETWORK
        self._replay: Replay | None = None

    def replay(self, x: np.ndarray) -> np.ndarray:
        if self._replay is None:
            self._replay = replay_onnx(self.source.source) if self.source.source else replay_graph(self.source)
        return self._replay(x)

    def verdict(self, spec: Spec) -> Verdict:
        begin = time.monotonic()
        deadline = Deadline.after(self.config.timeout_s)
        cases = [_Case(case, self.replay) for case in spec.cases]
        outcomes: list[Outcome] = []
        try:
            answer = self._solve(spec, cases, outcomes, deadline)
        except KeyboardInterrupt:
            answer = _unknown(Reason.INTERRUPTED, "Interrupted.", outcomes)
        except (OutOfMemory, torch.OutOfMemoryError) as error:
            answer = _unknown(Reason.MEMORY, str(error), outcomes)
        return replace(answer, seconds=time.monotonic() - begin, domains=sum(o.domains for o in outcomes))

    def _solve(self, spec: Spec, cases: list[_Case], outcomes: list[Outcome], deadline: Deadline) -> Verdict:
        if not cases:
            return Verdict(Status.VERIFIED, Reason.PROVED, spec.note or "The input set is empty.", engine="specification")
        if self.config.attack and (found := self._attack(cases, QUICK, deadline.sooner(0.1 * self.config.timeout_s))):
            return found
        open_cases = []
        for k, case in enumerate(cases):
            outcome = self._prove(k, cases, deadline.sooner(max(1.0, deadline.left_s() / (len(cases) - k))))
            outcomes.append(outcome)
            if outcome.falsified:
                return _falsified(case, "a corner of a bound")
            if not outcome.proved:
                open_cases.append(case)
            if deadline.expired():
                break
        if len(outcomes) == len(cases) and not open_cases:
            return Verdict(Status.VERIFIED, Reason.PROVED, _proved_sentence(cases, outcomes), engine=_engines(outcomes))
        return self._undecided(cases, outcomes, deadline)

    def _undecided(self, cases: list[_Case], outcomes: list[Outcome], deadline: Deadline) -> Verdict:
        if deadline.expired():
            return _unknown(Reason.TIMEOUT, f"The time of {self.config.timeout_s:g} s is over.", outcomes)
        if self.config.attack and (found := self._attack(cases, self.config.attack, deadline)):
            return found
        if any(case.refused for case in cases):
            return _unknown(Reason.UNCONFIRMED, "A point violates the property in exact arithmetic, but onnxruntime's rounded outputs do not.", outcomes)
        return _unknown(Reason.INCOMPLETE, "Splitting came to its end: what is open is thinner than the arithmetic resolves.", outcomes)

    def _attack(self, cases: list[_Case], config: AttackConfig, deadline: Deadline) -> Verdict | None:
        self.listener(Progress("attack", 0.0))
        with torch.enable_grad():
            for candidate in pgd(self.graph, [c.case for c in cases], config, self.config.seed, deadline, self.device):
                if cases[candidate.case].offer(candidate.polytope, candidate.x):
                    return _falsified(cases[candidate.case], "PGD")
        return None

    def _prove(self, k: int, cases: list[_Case], deadline: Deadline) -> Outcome:
        case = cases[k]
        free = int((case.case.upper > case.case.lower).sum())
        graph = self.source.to(self.device, torch.float64) if self.small and free <= FEW_INPUTS else self.graph
        problem = build(graph, case.case, BuildConfig(self.config.memory_bytes))

        def offer(key: int, polytope: int, x: Tensor) -> bool:
            return any(case.offer(polytope, point) for point in x.cpu().numpy())

        return solve_problem(k, problem, self.config.bab, Oracle(offer, leaf_answer), deadline, self.listener)


def _falsified(case: _Case, by: str) -> Verdict:
    return Verdict(
        Status.FALSIFIED, Reason.REPLAYED, f"Counterexample found by {by}, replayed with margin {case.found.margin:.3g}.", engine=by, counterexample=case.found,
    )


def _unknown(reason: Reason, sentence: str, outcomes: list[Outcome]) -> Verdict:
    lowest = [o.lower for o in outcomes if o.lower is not None and not o.proved]
    return Verdict(Status.UNKNOWN, reason, sentence, engine=_engines(outcomes), lower_bound=min(lowest, default=None))


def _engines(outcomes: list[Outcome]) -> str:
    return ", ".join(dict.fromkeys(o.engine for o in outcomes))


def _proved_sentence(cases: list[_Case], outcomes: list[Outcome]) -> str:
    count = sum(len(case.case.polytopes) for case in cases)
    return f"All {count} unsafe {'set is' if count == 1 else 'sets are'} unreachable, proved by {_engines(outcomes)}."
