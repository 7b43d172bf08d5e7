"""verify and verify_many: verdicts against the truth, and every way in which a claim must not be made."""
from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import verifier
from tests import mlp as nets
from tests.mlp import Mlp, near_truth, random_mlp
from tests.small_models import absolute_value, dense_relu, vnnlib
from verifier.attack import confirm as gate
from verifier.bab.driver import Search, start
from verifier.config import AttackConfig, BabConfig, Config
from verifier.errors import VerifierError
from verifier.graph.ir import Graph, Node
from verifier.reduced.bound import Effort
from verifier.reduced.build import build
from verifier.solve import shared_s
from verifier.spec.spec import Ball, Case, Polytope, Spec
from verifier.verdict import Reason, Status, Verdict

WITH = Config(timeout_s=20, attack=AttackConfig(restarts=3, steps=10))
WITHOUT = Config(timeout_s=20, attack=None)
both = pytest.mark.parametrize("config", [WITH, WITHOUT], ids=["attack", "no attack"])


def spec_of(mlp: Mlp, *cases: Case) -> Spec:
    return Spec(cases, mlp.layers[0][0].shape[1], len(mlp.layers[-1][1]))


def check_witness(verdict: Verdict, spec: Spec, mlp: Mlp) -> None:
    """The counterexample lies in a case and violates it by plain numpy, up to float32."""
    found = verdict.counterexample
    assert found is not None and found.margin >= 0 and found.x.dtype == np.float32
    x = found.x.astype(np.float64)
    y = mlp(x[None])
    assert np.allclose(found.y, y[0], atol=1e-4)
    hits = [
        (x >= case.lower).all() and (x <= case.upper).all() and nets.margin(polytope, x[None], y)[0] <= 1e-4
        for case in spec.cases for polytope in case.polytopes
    ]
    assert any(hits)


def check_verdict(verdict: Verdict, spec: Spec, mlp: Mlp, safe: bool) -> None:
    assert verdict.status is (Status.VERIFIED if safe else Status.FALSIFIED), verdict
    assert verdict.reason is (Reason.PROVED if safe else Reason.REPLAYED)
    assert verdict.sentence and verdict.seconds >= 0 and verdict.engine
    if safe:
        assert verdict.counterexample is None
    else:
        check_witness(verdict, spec, mlp)


@both
@pytest.mark.parametrize("gap", [0.05, -0.05, 2e-3, -2e-3])
def test_verdicts_are_true(gap: float, config: Config) -> None:
    for seed in range(6):
        mlp = random_mlp(seed)
        spec = spec_of(mlp, near_truth(mlp, seed, gap, rows=1 + seed % 2))
        check_verdict(verifier.verify(mlp.graph(), spec, config), spec, mlp, gap > 0)


@both
def test_what_the_root_proves_has_its_bound(config: Config) -> None:
    """Positive and at most the MILP's minimum, which is the gap; a proof by splits tells no bound."""
    bounds = []
    for seed in range(6):
        mlp = random_mlp(seed)
        for gap in (1.0, 2e-3):
            verdict = verifier.verify(mlp.graph(), spec_of(mlp, near_truth(mlp, seed, gap, rows=1 + seed % 2)), config)
            assert verdict.lower_bound is None or 0 < verdict.lower_bound <= gap + 1e-6
            bounds.append(verdict.lower_bound)
    assert None in bounds and any(bound is not None and bound > 0.1 for bound in bounds)


@both
def test_verdicts_over_many_inputs_are_true(config: Config) -> None:
    """More than 20 free inputs: no input splits, single precision."""
    for seed, gap in enumerate([0.1, -0.1, 0.02, -0.02]):
        mlp = random_mlp(seed, (24, 7, 5, 2))
        case = near_truth(mlp, seed, 0.0)
        center, radius = (case.lower + case.upper) / 2, 0.2 * (case.upper - case.lower)
        smallest, _ = nets.smallest_margin(mlp, center - radius, center + radius, case.polytopes[0])
        spec = spec_of(mlp, Case(center - radius, center + radius, (nets.shifted(case.polytopes[0], smallest - gap),)))
        check_verdict(verifier.verify(mlp.graph(), spec, config), spec, mlp, gap > 0)


@both
@pytest.mark.parametrize("unsafe", [None, 0, 1, 2])
def test_a_specification_of_several_cases_is_safe_if_all_are(unsafe: int | None, config: Config) -> None:
    """Cases in disjoint boxes, two of one box with other polytopes; the unsafe one may be any."""
    mlp = random_mlp(1)
    cases = [near_truth(mlp, seed, -0.05 if seed == unsafe else 0.05) for seed in range(3)]
    cases.append(replace(cases[0], polytopes=tuple(nets.shifted(p, -5.0) for p in cases[0].polytopes)))
    spec = spec_of(mlp, *cases)
    check_verdict(verifier.verify(mlp.graph(), spec, config), spec, mlp, unsafe is None)


@both
def test_a_disjunction_is_safe_if_every_polytope_is_unreachable(config: Config) -> None:
    mlp = random_mlp(2)
    case = near_truth(mlp, 2, 0.05)
    safe = (case.polytopes[0], nets.shifted(case.polytopes[0], -0.3), nets.shifted(case.polytopes[0], -2.0))
    other = nets.shifted(case.polytopes[0], 0.1)
    for polytopes, verdict in ((safe, True), ((*safe, other), False), ((other, *safe), False)):
        spec = spec_of(mlp, replace(case, polytopes=polytopes))
        check_verdict(verifier.verify(mlp.graph(), spec, config), spec, mlp, verdict)


def test_rows_that_read_inputs_and_outputs(tmp_path: Path) -> None:
    """|x| <= x - delta has no solution, |x| <= x + delta has; through a file, in either verdict."""
    graph = verifier.load_onnx(absolute_value(tmp_path / "abs.onnx"))
    for delta, status in (("-0.01", Status.VERIFIED), ("0.01", Status.FALSIFIED), ("0.0", Status.FALSIFIED)):
        text = vnnlib(tmp_path / "p.vnnlib", "(>= X_0 -1)", "(<= X_0 1)", f"(<= Y_0 (+ X_0 {delta}))")
        verdict = verifier.verify(graph, verifier.load_vnnlib(text, 1, 1), WITH)
        assert verdict.status is status, delta
    assert verdict.counterexample.x[0] >= 0 and verdict.counterexample.y[0] == verdict.counterexample.x[0]


@pytest.mark.parametrize("lower, upper, bound, status", [
    (-1.0, 1.0, -0.01, Status.VERIFIED), (-1.0, 1.0, 0.0, Status.FALSIFIED), (0.5, 1.0, 0.49, Status.VERIFIED),
    (0.5, 1.0, 0.5, Status.FALSIFIED), (0.25, 0.25, 0.2, Status.VERIFIED), (0.25, 0.25, 0.25, Status.FALSIFIED),
])  # fmt: skip
def test_touching_is_unsafe(tmp_path: Path, lower: float, upper: float, bound: float, status: Status) -> None:
    """|x| <= bound on closed intervals, also where only one point or one end touches."""
    graph = verifier.load_onnx(absolute_value(tmp_path / "abs.onnx"))
    spec = Spec((Case(np.array([lower]), np.array([upper]), (Polytope(np.ones((1, 1)), np.array([bound])),)),), 1, 1)
    assert verifier.verify(graph, spec, WITH).status is status
    assert verifier.verify(graph, spec, WITHOUT).status is status


def test_an_empty_specification_is_verified(tmp_path: Path) -> None:
    graph = verifier.load_onnx(absolute_value(tmp_path / "abs.onnx"))
    for spec in (Spec((), 1, 1), Spec((), 1, 1, note="The unsafe set is empty: no reason.")):
        verdict = verifier.verify(graph, spec, WITH)
        assert verdict.status is Status.VERIFIED and verdict.domains == 0
        assert verdict.sentence == (spec.note or "The input set is empty.")
    nothing = Spec((Case(-np.ones(1), np.ones(1), ()),), 1, 1)
    assert verifier.verify(graph, nothing, WITHOUT).status is Status.VERIFIED


def test_sizes_that_do_not_fit_are_one_sentence() -> None:
    mlp = random_mlp(0)
    for spec in (Spec((), 4, 2), Spec((), 3, 3), Spec((), 0, 0)):
        with pytest.raises(VerifierError) as error:
            verifier.verify(mlp.graph(), spec)
        text = str(error.value)
        assert "\n" not in text and f"{spec.n_in} inputs" in text and "has 3 and 2" in text
    good = spec_of(mlp, near_truth(mlp, 0, 0.05))
    with pytest.raises(VerifierError):
        verifier.verify_many(mlp.graph(), [good, Spec((), 4, 2)])


def test_operations_without_a_rule_are_one_sentence() -> None:
    graph = Graph((Node("x", "Input", (), (1, 2)), Node("odd", "Erf", ("x",), (1, 2))), "odd")
    spec = Spec((Case(-np.ones(2), np.ones(2), (Polytope(np.ones((1, 2)), np.zeros(1)),)),), 2, 2)
    with pytest.raises(VerifierError, match="odd"):
        verifier.verify(graph, spec, WITHOUT)


# --- the gate ------------------------------------------------------------------------------------------------------------------------


def lies(*outputs: float):
    """A replay that disagrees with the network."""

    def replay(graph: Graph):
        return lambda x: np.array(outputs, dtype=np.float32)

    return replay


@both
def test_what_the_replay_denies_is_never_falsified(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is unsafe, its replay says otherwise: UNKNOWN with that reason, whatever found the point."""
    monkeypatch.setattr(gate, "replay_graph", lies(1e3, 1e3))
    for seed in range(3):
        mlp = random_mlp(seed)
        case = near_truth(mlp, seed, -0.05)
        case = replace(case, polytopes=(nets.shifted(Polytope(np.array([[1.0, 1.0]]), np.zeros(1)), 3.0),))
        verdict = verifier.verify(mlp.graph(), spec_of(mlp, case), replace(config, timeout_s=30))
        assert verdict.status is Status.UNKNOWN and verdict.counterexample is None
        assert verdict.reason in (Reason.UNCONFIRMED, Reason.TIMEOUT)
    assert verdict.reason is Reason.UNCONFIRMED and "exact arithmetic" in verdict.sentence


@both
def test_what_the_replay_claims_of_a_safe_network_is_not_asked(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay that calls every point unsafe: the bound proves the property first, or the gate's word counts; never a crash."""
    monkeypatch.setattr(gate, "replay_graph", lies(-1e3, -1e3))
    mlp = random_mlp(0)
    case = Case(-np.ones(3), np.ones(3), (Polytope(np.array([[1.0, 1.0]]), np.array([-100.0])),))
    verdict = verifier.verify(mlp.graph(), spec_of(mlp, case), config)
    assert verdict.status is Status.VERIFIED  # the root proves it, nothing is offered


@both
def test_a_replay_of_nan_confirms_nothing(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "replay_graph", lies(np.nan, np.nan))
    mlp = random_mlp(0)
    verdict = verifier.verify(mlp.graph(), spec_of(mlp, near_truth(mlp, 0, -0.05)), replace(config, timeout_s=5))
    assert verdict.status is Status.UNKNOWN


@both
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_numbers_that_are_not_finite_prove_nothing(value: float, layer: int, config: Config) -> None:
    """A weight or bias that is NaN, infinite, or overflows on the way: UNKNOWN or an honest error, never VERIFIED."""
    for part in (0, 1):
        mlp = random_mlp(layer)
        layers = [tuple(t.copy() for t in pair) for pair in mlp.layers]
        layers[layer][part].reshape(-1)[0] = value
        broken = Mlp(tuple(layers))
        case = near_truth(mlp, layer, 0.05)
        polytope = Polytope(np.array([[1.0, 1.0]]), np.array([-1e3]))
        config = replace(config, timeout_s=1.5)
        verdict = verifier.verify(broken.graph(), spec_of(mlp, Case(case.lower, case.upper, (polytope,))), config)
        if np.isfinite(value) and layer < 2 and verdict.status is Status.VERIFIED:
            continue  # 3e38 does not overflow where ReLU cuts it off
        assert verdict.status is not Status.VERIFIED or np.isfinite(broken(r_points(case))).all()


def r_points(case: Case) -> np.ndarray:
    return np.random.default_rng(0).uniform(case.lower, case.upper, (200, len(case.lower)))


def test_large_inputs_that_cancel_prove_nothing_false() -> None:
    """24 inputs of size 1000 in an interval of 0.02, unsafe by 1e-5 over the reals: VERIFIED would be false."""
    for seed in (1, 3, 8):
        random = np.random.default_rng(seed)
        center = (1000 + random.normal(size=24)).astype(np.float32).astype(np.float64)
        mlp = random_mlp(seed, (24, 6, 2))
        weight, bias = mlp.layers[0]
        mlp = Mlp(((weight, (0.1 * bias - weight @ center).astype(np.float32).astype(np.float64)), mlp.layers[1]))
        polytope = Polytope(np.array([[1.0, -1.0]]), np.zeros(1))
        smallest, x = nets.smallest_margin(mlp, center - 0.01, center + 0.01, polytope)
        case = Case(center - 0.01, center + 0.01, (nets.shifted(polytope, smallest + 1e-5),))
        assert nets.margin(case.polytopes[0], x[None], mlp(x[None]))[0] < -5e-6
        assert verifier.verify(mlp.graph(), spec_of(mlp, case), Config(timeout_s=3)).status is not Status.VERIFIED


def test_a_nan_network_is_unknown_within_its_time() -> None:
    mlp = random_mlp(0)
    broken = Mlp((*mlp.layers[:-1], (mlp.layers[-1][0], np.full(2, np.nan))))
    begin = time.monotonic()
    verdict = verifier.verify(broken.graph(), spec_of(mlp, near_truth(mlp, 0, 0.05)), Config(timeout_s=2))
    assert verdict.status is Status.UNKNOWN and time.monotonic() - begin < 4


# --- networks without a file ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x))
        return self.last(h + torch.relu(self.second(h)))


MODULES = {
    "sequential": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (4,)),
    "residual": (Residual, (4,)),
    "convolutional": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)), (1, 6, 6)),
    "smooth": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3, bias=False)), (4,)),
}


@both
@pytest.mark.parametrize("name", MODULES)
def test_torch_modules(name: str, config: Config) -> None:
    """Small balls around an input are proved, a large one gets a counterexample that the module itself misclassifies."""
    make, shape = MODULES[name]
    torch.manual_seed(3)
    module = make().eval()
    graph = verifier.load_torch(module, shape)
    x = torch.linspace(-0.5, 0.5, int(np.prod(shape))).reshape(shape)
    with torch.no_grad():
        label = int(module(x[None]).argmax())
    safe = verifier.robustness(x.numpy(), label, 1e-4, 3, clip=None)
    assert verifier.verify(graph, safe, config).status is Status.VERIFIED
    verdict = verifier.verify(graph, verifier.robustness(x.numpy(), label, 30.0, 3, clip=None), config)
    assert verdict.status is Status.FALSIFIED
    with torch.no_grad():
        y = module(torch.from_numpy(verdict.counterexample.x).reshape(1, *shape))[0]
    assert y[label] <= y[torch.arange(3) != label].max() + 1e-5
    assert np.allclose(verdict.counterexample.y, y.numpy(), atol=1e-5)


def test_a_network_of_one_activation() -> None:
    """No constants at all, hence no type of its own."""
    graph = Graph((Node("x", "Input", (), (1, 2)), Node("y", "Relu", ("x",), (1, 2))), "y")
    for offset, status in ((-0.1, Status.VERIFIED), (0.1, Status.FALSIFIED)):
        case = Case(-np.ones(2), np.ones(2), (Polytope(np.ones((1, 2)), np.array([offset])),))
        assert verifier.verify(graph, Spec((case,), 2, 2), WITH).status is status


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_balls(norm: str) -> None:
    """Between the largest radius that is proved and the smallest that is falsified lies the truth: the distance to a line."""
    weight = np.array([[3.0, 4.0], [0.0, 0.0]])
    net = Mlp(((np.eye(2), np.array([10.0, 10.0])), (weight, np.array([-69.0, 0.0]))))  # y_0 = 3 x_0 + 4 x_1 + 1 near 0
    distance = {"l1": 1 / 4, "l2": 1 / 5}[norm]
    for eps, status in ((0.98 * distance, Status.VERIFIED), (1.02 * distance, Status.FALSIFIED)):
        verdict = verifier.verify(net.graph(), verifier.robustness(np.zeros(2), 0, eps, 2, norm, clip=None), WITH)
        assert verdict.status is status
        if verdict.counterexample is not None:
            assert np.linalg.norm(verdict.counterexample.x, {"l1": 1, "l2": 2}[norm]) <= eps
    assert verifier.verify(net.graph(), verifier.robustness(np.zeros(2), 0, 0.0, 2, norm, clip=None), WITH).status is Status.VERIFIED


def test_a_point_in_the_box_but_not_in_the_ball_is_no_counterexample() -> None:
    net = Mlp(((np.eye(2), np.array([10.0, 10.0])), (np.array([[1.0, 1.0]]), np.array([-20.0]))))  # x_0 + x_1
    case = Case(-np.ones(2), np.ones(2), (Polytope(np.ones((1, 1)), np.array([-1.5])),), Ball(np.zeros(2), 1.0, 2))
    verdict = verifier.verify(net.graph(), spec_of(net, case), replace(WITH, timeout_s=5))
    assert verdict.status is not Status.FALSIFIED  # the smallest sum in the ball is -1.41
    assert verdict.status is Status.VERIFIED


# --- many properties, time, interruption ---------------------------------------------------------------------------------------------


@both
def test_many_properties_get_what_each_gets_alone(config: Config) -> None:
    mlp = random_mlp(5)
    gaps = [0.05, -0.05, 0.01, -0.01, 0.3, -0.3]
    specs = [spec_of(mlp, near_truth(mlp, seed, gap)) for seed, gap in enumerate(gaps)]
    specs.insert(2, Spec((), 3, 2))
    specs.insert(4, spec_of(mlp, *specs[0].cases, *specs[1].cases))
    expected = [True, False, True, True, False, False, True, False]
    verdicts = verifier.verify_many(mlp.graph(), specs, config)
    for verdict, spec, safe in zip(verdicts, specs, expected, strict=True):
        if spec.cases:
            check_verdict(verdict, spec, mlp, safe)
        assert verdict.status is verifier.verify(mlp.graph(), spec, config).status
    assert verifier.verify_many(mlp.graph(), [], config) == []


def hard(seed: int = 0) -> tuple[Mlp, Spec]:
    """A random network that no method decides within seconds: safe by a hair over a wide box of many inputs."""
    mlp = random_mlp(seed, (40, 60, 60, 60, 2))
    lower, upper = -np.ones(40), np.ones(40)
    y = mlp(np.random.default_rng(seed).uniform(lower, upper, (20000, 40)))[:, 0]
    polytope = Polytope(np.array([[1.0, 0.0]]), np.array([float(y.min()) - 3 * float(np.ptp(y))]))
    return mlp, spec_of(mlp, Case(lower, upper, (polytope,)))


@both
@pytest.mark.parametrize("timeout_s", [0.05, 1.0, pytest.param(5.0, marks=pytest.mark.slow)])
def test_the_time_is_kept(timeout_s: float, config: Config) -> None:
    """Within two seconds of the time-out there is an answer, and where it is UNKNOWN it says that the time is over."""
    mlp, spec = hard()
    graph = mlp.graph()
    begin = time.monotonic()
    verdict = verifier.verify(graph, spec, replace(config, timeout_s=timeout_s))
    assert time.monotonic() - begin < timeout_s + 2
    assert verdict.status is Status.UNKNOWN and verdict.reason is Reason.TIMEOUT
    assert f"{timeout_s:g} s" in verdict.sentence and verdict.seconds < timeout_s + 2


def test_each_of_many_properties_has_its_own_time() -> None:
    """An undecidable property does not take the time of the others."""
    mlp, spec = hard()
    easy = Spec((replace(spec.cases[0], polytopes=(nets.shifted(spec.cases[0].polytopes[0], -1e6),)),), 40, 2)
    begin = time.monotonic()
    verdicts = verifier.verify_many(mlp.graph(), [easy, spec, easy, spec, easy], Config(timeout_s=1.0, attack=None))
    assert time.monotonic() - begin < 2 * 1.0 + 4
    assert [v.status for v in verdicts] == [Status.VERIFIED, Status.UNKNOWN, Status.VERIFIED, Status.UNKNOWN, Status.VERIFIED]


def test_what_is_proved_among_what_is_not_has_time_for_its_check() -> None:
    """Properties that take some splits, beside some that use up all their time: the checker has accepted the former nevertheless."""
    mlp, spec = hard()
    narrow, (polytope,) = replace(spec.cases[0], lower=-np.full(40, 0.06), upper=np.full(40, 0.06)), spec.cases[0].polytopes
    search = Search(0, build(mlp.graph().to("cpu", torch.float64), narrow))
    start(search, Effort(20))
    root = float(search.floor[0])
    least = nets.margin(polytope, *(lambda x: (x, mlp(x)))(np.random.default_rng(0).choice([-0.06, 0.06], (5000, 40)))).min()
    assert root < least
    splits = Spec((replace(narrow, polytopes=(nets.shifted(polytope, root + 0.2 * (least - root)),)),), 40, 2)
    verdicts = verifier.verify_many(mlp.graph(), [spec, splits, spec, splits, spec, spec, spec, spec], Config(timeout_s=1.0, attack=None))
    assert all(v.status is Status.VERIFIED and v.domains > 1 and v.seconds < 1.5 for v in (verdicts[1], verdicts[3]))
    assert {v.reason for k, v in enumerate(verdicts) if k not in (1, 3)} == {Reason.TIMEOUT}


@pytest.mark.parametrize(
    ("spent", "charged"),
    [
        ([0.2, 0.5], [0.2, 0.5]), ([0.0, 1.5, 1.5], [1.0, 1.0, 1.0]), ([0.2, 0.6, 1.6], [0.6, 0.8, 1.0]), ([1.0], [1.0]),
        ([1.1, 1.3], [1.2, 1.2]), ([], []),
    ],
)
def test_a_common_purse_is_charged_in_full(spent: list[float], charged: list[float]) -> None:
    """Nobody pays more than a second unless all are beyond it, and together what was spent."""
    assert shared_s(spent, 1.0) == pytest.approx(charged)


@both
def test_an_interrupt_tells_what_was_reached(config: Config) -> None:
    """Ctrl-C while branch and bound works: UNKNOWN, INTERRUPTED, with the domains and the bound so far."""
    mlp, spec = hard()
    lines = []

    def listener(progress) -> None:
        lines.append(progress)
        if progress.stage == "branch and bound" and progress.closed_domains + progress.open_domains > 20:
            raise KeyboardInterrupt

    begin = time.monotonic()
    verdict = verifier.verify(mlp.graph(), spec, replace(config, timeout_s=60), listener)
    assert time.monotonic() - begin < 30
    assert verdict.status is Status.UNKNOWN and verdict.reason is Reason.INTERRUPTED
    assert verdict.domains > 0 and verdict.lower_bound is not None and verdict.lower_bound < 0
    assert verdict.seconds > 0 and lines[-1].stage == "branch and bound"


def test_an_interrupt_keeps_what_was_decided() -> None:
    """Of three properties the first is proved when the interrupt comes: its verdict stays."""
    mlp, spec = hard()
    easy = Spec((replace(spec.cases[0], polytopes=(nets.shifted(spec.cases[0].polytopes[0], -1e6),)),), 40, 2)

    def listener(progress) -> None:
        if progress.stage == "branch and bound":
            raise KeyboardInterrupt

    verdicts = verifier.verify_many(mlp.graph(), [easy, spec, spec], Config(timeout_s=60, attack=None), listener)
    assert [v.status for v in verdicts] == [Status.VERIFIED, Status.UNKNOWN, Status.UNKNOWN]
    assert {v.reason for v in verdicts[1:]} == {Reason.INTERRUPTED}


def test_memory_that_is_used_up_is_a_reason() -> None:
    mlp, spec = hard()
    verdict = verifier.verify(mlp.graph(), spec, Config(timeout_s=20, attack=None, bab=BabConfig(frontier_bytes=2**20)))
    assert verdict.status is Status.UNKNOWN and verdict.reason is Reason.MEMORY and verdict.sentence


def test_columns_beyond_the_budget_are_a_reason() -> None:
    mlp = random_mlp(0, (600, 500, 2))
    case = Case(-np.ones(600), np.ones(600), (Polytope(np.ones((1, 2)), np.array([-1e9])),))
    verdict = verifier.verify(mlp.graph(), spec_of(mlp, case), Config(timeout_s=20, attack=None, memory_bytes=2**20))
    assert verdict.status is Status.UNKNOWN and verdict.reason is Reason.MEMORY and "GiB" in verdict.sentence


def test_progress_is_told() -> None:
    mlp, spec = hard()
    lines = []
    verifier.verify(mlp.graph(), spec, Config(timeout_s=1.5), lines.append)
    assert {"bounds", "branch and bound"} <= {line.stage for line in lines}
    assert all(line.seconds >= 0 for line in lines) and any(line.lower_bound is not None for line in lines)


def test_devices_that_are_not_there_are_one_sentence() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    mlp = random_mlp(0)
    with pytest.raises(VerifierError, match="CUDA"):
        verifier.verify(mlp.graph(), Spec((), 3, 2), Config(device="cuda"))


@given(st.integers(0, 10**6), st.floats(-0.5, 0.5))
@settings(max_examples=25)
def test_no_verdict_is_ever_false(seed: int, gap: float) -> None:
    """Random networks, boxes and thresholds from disk-exact weights: VERIFIED and FALSIFIED agree with the MILP wherever it is clear."""
    mlp = random_mlp(seed, (2, 5, 4, 2))
    spec = spec_of(mlp, near_truth(mlp, seed, gap, rows=1 + seed % 2))
    verdict = verifier.verify(mlp.graph(), spec, Config(timeout_s=10, attack=AttackConfig(1, 2)))
    if abs(gap) > 1e-4:
        check_verdict(verdict, spec, mlp, gap > 0)
    else:
        assert verdict.sentence


def test_one_graph_serves_two_runs_at_once(tmp_path: Path) -> None:
    """A run within a run (by the listener) gives what each gives alone: nothing is kept between or shared."""
    random = np.random.default_rng(0)
    graph = verifier.load_onnx(dense_relu(tmp_path / "net.onnx", random.normal(size=(6, 3)), random.normal(size=(2, 6))))
    mlp, spec = hard()
    case = Case(-np.ones(3), np.ones(3), (Polytope(np.array([[1.0, 0.0]]), np.array([-100.0])),))
    inner = []

    def listener(progress) -> None:
        inner.append(verifier.verify(graph, Spec((case,), 3, 2), WITHOUT))

    assert verifier.verify(mlp.graph(), spec, Config(timeout_s=0.5, attack=None), listener).status is Status.UNKNOWN
    assert inner and {v.status for v in inner} == {Status.VERIFIED}
