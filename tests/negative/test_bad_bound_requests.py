"""What a bound request can get wrong, and what a machine can lack: one sentence each, never a traceback from torch."""
from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.cases import CASES, Builder
from verifier.bounds.alpha import AlphaConfig, alpha_crown
from verifier.bounds.chunks import with_memory
from verifier.bounds.crown import crown
from verifier.bounds.engine import BoundRequest, NormBall
from verifier.bounds.ibp import ibp
from verifier.box import Box
from verifier.errors import OutOfMemory, ShapeError, UnsupportedError, VerifierError

CASE = next(case for case in CASES if case.name == "convolutional, different widths")
ENGINES = pytest.mark.parametrize("engine", [ibp, crown, partial(alpha_crown, config=AlphaConfig(iterations=1))], ids=["ibp", "crown", "alpha"])


def test_shapes_that_disagree_show_both() -> None:
    flat = Box(CASE.box.lower.flatten(1), CASE.box.upper.flatten(1))
    with pytest.raises(ShapeError, match=r"\(B, 112\).*\(1, 2, 7, 8\)"):
        BoundRequest(CASE.graph, flat)
    with pytest.raises(ShapeError, match=r"\(3, 4, 5\), expected \(3, S, 2\)"):
        BoundRequest(CASE.graph, CASE.box, rows=torch.zeros(3, 4, 5))
    with pytest.raises(ShapeError, match=r"\(2, 4\), expected \(3, 4\)"):
        BoundRequest(CASE.graph, CASE.box, rows=torch.zeros(3, 4, 2), constants=torch.zeros(2, 4))


def test_balls_and_settings_out_of_range_are_refused() -> None:
    with pytest.raises(VerifierError, match="norm is 3"):
        NormBall(CASE.box.center, torch.ones(3), 3)
    with pytest.raises(VerifierError, match="-1"):
        AlphaConfig(iterations=-1)
    with pytest.raises(VerifierError, match="positive"):
        AlphaConfig(learning_rate=0.0)


@ENGINES
def test_operations_without_a_rule_are_all_named(engine) -> None:
    b = Builder((1, 3), 0)
    graph = b.graph(b.same("Softmax", b.linear(b.same("Erf", "x"), 3)))
    with pytest.raises(UnsupportedError, match=r"'erf1'.*'softmax3'|'softmax3'.*'erf1'"):
        engine(BoundRequest(graph, Box(torch.zeros(1, 1, 3), torch.ones(1, 1, 3))))


@ENGINES
def test_an_operation_that_the_output_does_not_need_does_no_harm(engine) -> None:
    b = Builder((1, 3), 0)
    used = b.linear("x", 2)
    b.same("Erf", "x")
    result = engine(BoundRequest(b.graph(used), Box(torch.zeros(1, 1, 3), torch.ones(1, 1, 3))))
    assert bool((result.lower < result.upper).all())


@ENGINES
def test_not_a_number_never_becomes_a_bound(engine) -> None:
    nodes = [replace(n, constants={k: v * float("nan") for k, v in n.constants.items()}) if n.op == "Conv" else n for n in CASE.graph.nodes]
    with pytest.raises(VerifierError, match="NaN"):
        engine(BoundRequest(replace(CASE.graph, nodes=tuple(nodes)), CASE.box))


@pytest.mark.parametrize("words", ["[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes", "CUDA out of memory."])
def test_rows_are_halved_until_they_fit(words: str) -> None:
    sizes = []

    def cut(most: int):
        yield from [most] * 2

    def work(rows: int) -> int:
        sizes.append(rows)
        if rows > 3:
            raise RuntimeError(words)
        return rows

    assert with_memory(cut, 20, work) == [2, 2]
    assert sizes == [20, 10, 5, 2, 2]


def test_a_single_row_that_does_not_fit_is_out_of_memory() -> None:
    def work(rows: int) -> None:
        raise RuntimeError("can't allocate memory")

    with pytest.raises(OutOfMemory, match="One row"):
        with_memory(lambda most: iter([most]), 8, work)


def test_another_error_is_not_taken_for_lack_of_memory() -> None:
    def work(rows: int) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        with_memory(lambda most: iter([most]), 8, work)


def test_bounds_survive_a_machine_that_runs_out_of_memory_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's own chunks, with a pass that fails for more than four rows: the same bounds."""
    import verifier.bounds.crown as module

    whole, right = crown(BoundRequest(CASE.graph, CASE.box)), module.lower_bounds

    def scarce(network, target, rows, *rest):
        if rows.coeff.shape[:2].numel() > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return right(network, target, rows, *rest)

    monkeypatch.setattr(module, "lower_bounds", scarce)
    single = Box(CASE.box.lower[:1], CASE.box.upper[:1])
    cut = crown(BoundRequest(CASE.graph, single))
    assert torch.allclose(cut.lower, whole.lower[:1])
    assert torch.allclose(cut.upper, whole.upper[:1])
