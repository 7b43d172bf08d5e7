"""No accepted certificate of a false claim, on networks made to fool; and a float solver without the checker does prove some of them."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.soundness import handmade, planted, traps
from tests.soundness.handmade import Part, Recipe
from tests.soundness.nets import ORDERS, run_float32
from tests.soundness.planted import float_bound
from tests.soundness.proofs import Judgement, files, judged, whole, write
from tests.soundness.traps import Trap

FAMILIES: dict[str, Callable[[int], Iterator[Trap]]] = {
    "planted": lambda count: (traps.planted(seed, 1 + seed % 3, 4 + seed % 5) for seed in range(count)),
    "planted, fooling": lambda count: planted.fooling(count),
    "planted, the tip": lambda count: (traps.planted_close(seed, 1 + seed % 3, 4 + seed % 5) for seed in range(count)),
    "thresholds": lambda count: (trap for made in traps.random_nets(count) for trap in traps.thresholds(*made)),
    "summation": lambda count: traps.summation(),
    "scales": lambda count: traps.scales(),
    "boxes": lambda count: traps.boxes(),
    "decimals": lambda count: traps.decimals(),
}


def certificates(trap: Trap) -> Iterator[list[Part]]:
    """The most favourable ones: multipliers by LP, with and without bounds of neurons before, nothing at all, and input splits."""
    yield [handmade.case(trap.net, trap.claim, [], [])]
    yield handmade.boxes(trap.net, trap.claim, 3)
    with np.errstate(all="ignore"):
        for lemmas in (False, True) if max(trap.net.sizes()) <= 12 else (False,):
            try:
                yield handmade.certificate(trap.net, trap.claim, Recipe(lemmas=lemmas))[0]
            except ValueError as error:  # numbers beyond float64 are no linear program
                assert "inf" in str(error)


def verdicts(trap: Trap, folder: Path) -> Iterator[tuple[str, Judgement]]:
    """(arithmetic, what the checker says) of each certificate."""
    where = files(trap.net, [trap.claim], folder, trap.text)
    for parts in certificates(trap):
        for arithmetic in ("real", "float32"):
            yield arithmetic, judged(where, write(whole(where.head(arithmetic), parts), folder / "trap.cert"))


def is_false(trap: Trap, arithmetic: str) -> bool:
    """What is false over the reals is false of a runtime that happens not to round, too."""
    return not trap.real or (arithmetic == "float32" and trap.float32 is False)


def check_family(family: str, count: int, folder: Path) -> None:
    for trap in FAMILIES[family](count):
        assert traps.check_truth(trap), trap.name
        for arithmetic, judgement in verdicts(trap, folder):
            assert not (is_false(trap, arithmetic) and judgement.verdict == "accepted"), (trap.name, arithmetic)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_false_claim_is_proved(family: str, tmp_path: Path) -> None:
    check_family(family, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["planted", "planted, the tip", "thresholds"])
def test_no_false_claim_is_proved_of_many(family: str, tmp_path: Path) -> None:
    check_family(family, 60, tmp_path)


@pytest.mark.slow
def test_what_is_true_by_less_than_float32_rounds_is_proved_of_the_reals(tmp_path: Path) -> None:
    kept = [trap for trap in FAMILIES["thresholds"](4) if trap.real and trap.float32 is False]
    said = [{judgement.verdict for arithmetic, judgement in verdicts(trap, tmp_path) if arithmetic == "real"} for trap in kept]
    assert len(kept) >= 3 and sum("accepted" in each for each in said) >= len(kept) - 1


def test_the_witnesses_break_their_claims() -> None:
    broken = [trap for family in FAMILIES for trap in FAMILIES[family](5) if trap.witness is not None]
    assert len(broken) >= 15
    for trap in broken:
        assert trap.witness is not None
        order, x = trap.witness
        assert traps.violated(trap.net, trap.claim, x) is not None
        assert all(low <= Fraction(v) <= high for v, low, high in zip(x, trap.claim.lower, trap.claim.upper))
        y = run_float32(trap.net, x, ORDERS[order])
        assert any(all(float(np.dot([float(c) for c in row], y)) <= float(offset) + 1e-9 for row, offset in p) for p in trap.claim.polytopes)


def test_onnxruntime_reaches_the_planted_counterexamples(tmp_path: Path) -> None:
    for trap in FAMILIES["planted"](4):
        session = onnxruntime.InferenceSession(str(files(trap.net, [trap.claim], tmp_path).model), providers=["CPUExecutionProvider"])
        assert trap.witness is not None
        y = session.run(None, {"x": np.array([trap.witness[1]], np.float32)})[0]
        assert y[0, 0] <= float(trap.claim.polytopes[0][0][1])


@pytest.mark.parametrize(("kind", "arithmetic"), [(np.float32, "real"), (np.float64, "float32")])
def test_a_float_solver_without_the_checker_proves_false_claims(kind: type, arithmetic: str) -> None:
    """float32 bounds prove what is false over the reals, float64 bounds what is false of float32."""
    drawn = [trap for family in ("thresholds", "summation", "boxes") for trap in FAMILIES[family](3)]
    tried = [t for t in drawn if is_false(t, arithmetic) and (arithmetic == "real" or t.real)]
    fooled = [trap.name for trap in tried if float_bound(trap, kind) > 0]
    assert len(fooled) >= 3, fooled


def test_planted_networks_fool_a_plain_float_solver(tmp_path: Path) -> None:
    """Every one of them, by a margin; the checker refuses the same multipliers."""
    made = list(planted.fooling(6))
    assert [trap.name for trap in made if not float_bound(trap, np.float32) > 0] == []
    assert all(traps.check_truth(trap) and not trap.real for trap in made)
    assert [trap.name for trap in made for _, judgement in verdicts(trap, tmp_path) if judgement.verdict == "accepted"] == []
