"""The battery of bound tests can fail: broken rules and broken engines must turn it red."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import CASES, Case
from tests.property.test_bounds import assert_sound
from verifier.bounds.alpha import AlphaConfig, alpha_crown
from verifier.bounds.crown import crown
from verifier.bounds.engine import BoundEngine, BoundRequest, BoundResult
from verifier.bounds.ibp import ibp
from verifier.form import Relaxation
from verifier.ops.affine import Linear
from verifier.ops.bilinear import Mul
from verifier.ops.conv import Conv
from verifier.ops.pool import MaxPool
from verifier.ops.relu import Relu
from verifier.ops.smooth import Sigmoid

ENGINES: dict[str, BoundEngine] = {"ibp": ibp, "crown": crown, "alpha-crown": lambda r: alpha_crown(r, AlphaConfig(iterations=2))}


@contextmanager
def broken(owner: type, method: str, change: Callable[..., Any]) -> Iterator[None]:
    """`owner.method` returns `change(what it returned)`."""
    right = getattr(owner, method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, lambda *args, **kwargs: change(right(*args, **kwargs)))
        yield


def tightened(planes: Any, **changes: float) -> Any:
    """Planes with some fields multiplied."""
    return replace(planes, **{name: getattr(planes, name) * factor for name, factor in changes.items()})


def is_red(engine: BoundEngine, cases: list[Case]) -> bool:
    for case in cases:
        try:
            assert_sound(engine, case)
        except AssertionError:
            return True
    return False


def named(graph: str) -> list[Case]:
    return [case for case in CASES if case.name.startswith(f"{graph}, ") and "1e" not in case.name]


def swapped(engine: BoundEngine) -> BoundEngine:
    """The first two rows' bounds exchanged."""

    def wrong(request: BoundRequest) -> BoundResult:
        result = engine(request)
        order = [1, 0, *range(2, result.lower.shape[1])]
        return replace(result, lower=result.lower[:, order], upper=result.upper[:, order])

    return wrong


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
@pytest.mark.parametrize("graph", ["dense", "convolutional"])
def test_the_battery_is_green_and_swapped_rows_are_red(engine: BoundEngine, graph: str) -> None:
    assert not is_red(engine, named(graph))
    assert is_red(swapped(engine), named(graph))


@pytest.mark.parametrize("engine", [ENGINES["crown"], ENGINES["alpha-crown"]], ids=["crown", "alpha-crown"])
@pytest.mark.parametrize(("rule", "graph", "changes"), [
    (Relu, "dense", {"upper_offset": 0.99}),
    (Relu, "dense", {"upper_slope": 0.99}),
    (Sigmoid, "sigmoid", {"upper_slope": 0.99}),
    (Sigmoid, "sigmoid", {"lower_offset": 1.01}),
    (Mul, "products", {"lower_offset": 0.99}),
    (MaxPool, "pool_alone", {"upper_offset": 0.99}),
])
def test_planes_that_are_one_percent_too_tight_are_red(engine: BoundEngine, rule: type, graph: str, changes: dict[str, float]) -> None:
    with broken(rule, "relax", lambda planes: tightened(planes, **changes)):
        assert is_red(engine, named(graph))


@pytest.mark.parametrize(("rule", "graph"), [(Linear, "dense"), (Conv, "convolutional")])
def test_a_dropped_bias_is_red(rule: type, graph: str) -> None:
    with broken(rule, "shift", lambda shift: None):
        assert is_red(crown, named(graph))


@pytest.mark.parametrize("engine", [ibp, crown], ids=["ibp", "crown"])
def test_an_interval_that_is_one_percent_too_narrow_is_red(engine: BoundEngine) -> None:
    def narrowed(box: Any) -> Any:
        return type(box)(box.lower + 0.01 * box.radius, box.upper - 0.01 * box.radius)

    with broken(Linear, "interval", narrowed):
        assert is_red(engine, named("dense"))


@pytest.mark.parametrize("graph", ["convolutional", "transposed"])
def test_a_wrong_adjoint_of_convolutions_is_red(graph: str) -> None:
    import verifier.ops.conv as module

    right = module._transpose_by_convolution

    def shifted(*args: Any) -> Tensor:
        return right(*args).roll(1, dims=-1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_transpose_by_convolution", shifted)
        assert is_red(crown, named(graph))


def test_planes_are_values_and_not_shared() -> None:
    """Two interleaved requests give what each gives alone: nothing is kept on nodes or in modules."""
    first, second = named("dense")[0], named("dense")[1]
    requests = [BoundRequest(case.graph, case.box) for case in (first, second)]
    alone = [crown(request).lower for request in requests]
    again = [crown(request).lower for request in (requests[1], requests[0])]
    assert torch.equal(alone[0], again[1])
    assert torch.equal(alone[1], again[0])
    assert Relaxation.__dataclass_params__.frozen
