"""Our engines beside auto_LiRPA on the table of small graphs; skipped where auto_LiRPA is not installed. Half of it shows what is refused."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.cases import CASES, GRAPHS, Case, boxes
from tests.tolerances import REFERENCE_RELATIVE
from verifier.bounds.alpha import alpha_crown
from verifier.bounds.crown import PureCrown, crown
from verifier.bounds.engine import BoundRequest, NormBall
from verifier.bounds.ibp import ibp
from verifier.bounds.lirpa import installed, lirpa
from verifier.box import Box
from verifier.errors import UnsupportedError, VerifierError

needs_lirpa = pytest.mark.skipif(not installed(), reason="auto_LiRPA is not installed")
# Graphs whose every operation it can be given, away from boxes so wide or thin that its float thresholds decide.
NAMES = ("dense", "residual", "ends_in_relu", "affine_only")
SAME = [case for case in CASES if case.name.split(", ")[0] in NAMES and "1e" not in case.name]
every_case = pytest.mark.parametrize("case", SAME, ids=lambda case: case.name)


def request_of(case: Case) -> BoundRequest:
    """In float32: auto_LiRPA 0.7.1 makes tensors of the default type, and fails where the request has another."""
    box = Box(case.box.lower.float(), case.box.upper.float())
    rows = torch.tensor([[1.0, 0.0], [1.0, -1.0]]).expand(box.lower.shape[0], 2, 2)
    return BoundRequest(case.graph, box, rows)


@needs_lirpa
@every_case
def test_crown_equals_auto_lirpas(case: Case) -> None:
    request = request_of(case)
    ours, theirs = crown(request, PureCrown()), lirpa(request, "CROWN")
    assert torch.allclose(ours.lower, theirs.lower, rtol=REFERENCE_RELATIVE, atol=1e-5)
    assert torch.allclose(ours.upper, theirs.upper, rtol=REFERENCE_RELATIVE, atol=1e-5)


@needs_lirpa
@every_case
def test_intervals_of_the_outputs_equal_auto_lirpas(case: Case) -> None:
    request = replace(request_of(case), rows=None)
    ours, theirs = ibp(request), lirpa(request, "IBP")
    assert torch.allclose(ours.lower, theirs.lower, rtol=REFERENCE_RELATIVE, atol=1e-5)
    assert torch.allclose(ours.upper, theirs.upper, rtol=REFERENCE_RELATIVE, atol=1e-5)


@needs_lirpa
def test_alpha_crown_is_as_tight_on_average() -> None:
    widths = []
    for case in SAME:
        request = request_of(case)
        ours, theirs = alpha_crown(request), lirpa(request, "alpha-CROWN")
        widths.append([float((result.upper - result.lower).mean()) for result in (ours, theirs)])
    ours, theirs = torch.tensor(widths).mean(0)
    assert ours <= theirs * (1 + REFERENCE_RELATIVE)


@needs_lirpa
def test_what_cannot_be_handed_over_is_named() -> None:
    _, box = next(boxes(GRAPHS["shapes"].input_shape))
    box = Box(box.lower.float(), box.upper.float())
    with pytest.raises(UnsupportedError, match="LeftMatMul"):
        lirpa(BoundRequest(GRAPHS["shapes"], box))
    request = request_of(SAME[0])
    ball = NormBall(request.box.center, torch.ones(3), 2)
    with pytest.raises(UnsupportedError, match="ball"):
        lirpa(replace(request, ball=ball))
    with pytest.raises(VerifierError, match="IBP, CROWN, alpha-CROWN"):
        lirpa(request, "DeepPoly")


@pytest.mark.skipif(installed(), reason="auto_LiRPA is installed")
def test_its_absence_is_one_sentence() -> None:
    with pytest.raises(VerifierError, match="not installed"):
        lirpa(request_of(SAME[0]))
