"""What rows exclude is cut off the boxes of a search: no unsafe point is, and the leaves cover the region and are proved."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.mlp import near_truth, random_mlp
from tests.small_certificates import case_records, check_case
from verifier.bab import input_split
from verifier.bab.budget import Deadline
from verifier.bab.cut import cut
from verifier.bab.driver import Oracle
from verifier.bab.input_split import Boxes, InputSearch, InputSplitConfig, _rows_of, _trimmed, advance_boxes, input_search
from verifier.bab.log import walk
from verifier.exact.highs import leaf_answer
from verifier.reduced.boxes import box_bounds


def searched(seed: int, rows: int, worthwhile: float, monkeypatch: pytest.MonkeyPatch) -> tuple:
    """A safe problem and its search to the end, sides being cut off that are so large."""
    monkeypatch.setattr(input_split, "WORTHWHILE", worthwhile)
    mlp = random_mlp(seed, (3, 8, 6, 2))
    case = near_truth(mlp, seed, 0.02, rows)
    search = input_search(0, mlp.problem(case))
    advance_boxes(search, InputSplitConfig(batch=64), Oracle(lambda *_: False, leaf_answer), Deadline.after(30))
    assert search.proved and search.volume == pytest.approx(1)
    return mlp, case, search


def leaves(search: InputSearch) -> tuple[torch.Tensor, torch.Tensor]:
    return search.log.boxes(walk(search.log.tree, [0]).leaf, search.problem.inputs)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_leaves_cover_the_region_and_are_proved(seed: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, case, search = searched(seed, rows, 0.02, monkeypatch)
    lower, upper = leaves(search)
    assert float((upper - lower).prod(1).sum()) == pytest.approx(8, rel=1e-5)
    assert check_case(mlp.graph(), case_records(mlp.graph(), case, mlp.problem(case), search)) == []


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("gap", [-1e-3, -0.1, -0.5])
def test_no_unsafe_point_is_cut_off(gap: float, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sampled point of the polytope lies in what is left of its box, over networks of which some boxes lose much."""
    monkeypatch.setattr(input_split, "WORTHWHILE", 0.02)
    unsafe, lost = 0, 0.0
    for seed in range(12):
        mlp = random_mlp(seed, (3, 8, 6, 2))
        problem = mlp.problem(near_truth(mlp, seed, gap, rows))
        search = input_search(0, problem)
        ends = torch.linspace(-1, 1, 5, dtype=problem.A.dtype)
        lower, upper = (torch.cartesian_prod(*[side] * problem.n) for side in (ends[:-1], ends[1:]))
        count = len(lower)
        part = Boxes(problem, lower, upper, lower.new_ones(count), torch.arange(count), lower.new_zeros(count, rows))
        search.log.tree.roots(count)
        bounds = box_bounds(problem, lower, upper)
        found = [cut(*_rows_of(part, bounds, 0), (upper - lower) / 2)]
        index = (found[0].best <= 0).nonzero().squeeze(-1)
        trimmed, left = _trimmed(search, part.take(index), found, index)
        x = lower[index] + torch.rand(2000, len(index), problem.n, dtype=lower.dtype) * (upper - lower)[index]
        inside = (problem.evaluate(x.flatten(0, 1))[1] <= 0).all(1).view(2000, -1)
        kept = left & ((x >= trimmed.lower) & (x <= trimmed.upper)).all(2)
        assert bool(kept[inside].all())
        unsafe, lost = unsafe + int(inside.sum()), lost + search.volume
    assert unsafe and lost > 1


def test_cuts_save_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    without, with_cuts = (
        np.array([searched(seed, 1, worthwhile, monkeypatch)[2].domains for seed in range(8)]) for worthwhile in (np.inf, 0.2)
    )
    assert with_cuts.sum() < 0.9 * without.sum()
