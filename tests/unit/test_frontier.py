"""The frontier: a list of domains in arrays, and what it costs."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from verifier.bab.domains import DomainBatch
from verifier.bab.frontier import Frontier


def numbered(ids: list[int], cuts: bool = False) -> DomainBatch:
    """Domains that carry their number in every array."""
    n = torch.tensor(ids, dtype=torch.int64)
    wide = n.unsqueeze(1).expand(-1, 3)
    ends = (wide.double(), wide.double() + 1) if cuts else ()
    lower = (n * 7919 % 101).double() - 50
    return DomainBatch(n % 5, lower, (n % 100).to(torch.int16), (wide % 100).to(torch.int8), (wide % 200).to(torch.uint8), wide.half(), n, *ends)


def numbers(batch: DomainBatch, cuts: bool = False) -> list[int]:
    """The numbers, after a check that all arrays of a domain still belong together."""
    ids = batch.beta[:, 0].long()
    for own, right in zip(batch.arrays(), numbered(ids.tolist(), cuts).arrays()):
        assert (own is None and right is None) or torch.equal(own, right)
    return ids.tolist()


operations = st.lists(st.tuples(st.sampled_from(["push", "worst", "row", "pop", "discard"]), st.integers(0, 40), st.randoms()), max_size=25)


@given(operations, st.booleans())
@settings(max_examples=150)
def test_the_frontier_is_a_list_of_domains(steps: list, cuts: bool) -> None:
    frontier, model, born = Frontier(), [], 0
    bound = lambda i: i * 7919 % 101 - 50  # noqa: E731
    for name, count, random in steps:
        if name == "push":
            fresh = list(range(born, born + count))
            frontier.push(numbered(fresh, cuts))
            model, born = model + fresh, born + count
        elif not model:
            assert len(frontier) == 0 and frontier.minimum() is None
            continue
        elif name == "worst":
            taken = numbers(frontier.pop_worst(max(1, count)), cuts)
            assert sorted(map(bound, taken)) == sorted(map(bound, model))[:max(1, count)]
            model = [i for i in model if i not in taken]
        elif name == "row":
            taken = numbers(frontier.pop_worst_of_each_row(), cuts)
            worst = {row: min(bound(i) for i in model if i % 5 == row) for row in {i % 5 for i in model}}
            assert {i % 5: bound(i) for i in taken} == worst and len(taken) == len(worst)
            model = [i for i in model if i not in taken]
        elif name == "pop":
            places = random.sample(range(len(model)), min(count, len(model)))
            expected = [numbers(frontier.open.take(torch.tensor([k])), cuts)[0] for k in places]
            assert numbers(frontier.pop(torch.tensor(places, dtype=torch.int64)), cuts) == expected
            model = [i for i in model if i not in expected]
        else:
            keep = torch.tensor([i % 3 > 0 for i in numbers(frontier.open, cuts)], dtype=torch.bool)
            frontier.discard(keep)
            model = [i for i in model if i % 3 > 0]
        assert len(frontier) == len(model)
        if model:
            assert sorted(numbers(frontier.open, cuts)) == sorted(model)
            assert frontier.minimum() == min(map(bound, model))


def test_growth_costs_one_array_at_a_time() -> None:
    """While a frontier grows, at most one array exists twice; capacity exceeds what is open by an eighth."""
    frontier, neurons, peak = Frontier(), 300, 0
    batch = domains_of(64, neurons)
    grow = torch.Tensor.new_empty

    def watched(tensor: torch.Tensor, *shape: int, **options: object) -> torch.Tensor:
        nonlocal peak
        made = grow(tensor, *shape, **options)
        peak = max(peak, frontier.nbytes() + made.nbytes)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", watched)
        while len(frontier) < 20_000:
            frontier.push(batch)
    each = batch.nbytes() / len(batch)
    largest = batch.beta.nbytes / len(batch)
    assert frontier.nbytes() <= 1.13 * each * len(frontier)
    assert 0 < peak <= (1.13 * each + largest) * len(frontier)
    assert (1.13 * each + largest) * 1_000_000 < 2**31


def domains_of(count: int, neurons: int) -> DomainBatch:
    """`count` domains with bounds drawn at random."""
    return DomainBatch(
        torch.zeros(count, dtype=torch.int64), torch.rand(count), torch.zeros(count, dtype=torch.int16),
        torch.zeros(count, neurons, dtype=torch.int8), torch.zeros(count, neurons, dtype=torch.uint8),
        torch.zeros(count, neurons, dtype=torch.float16), torch.zeros(count, dtype=torch.int64),
    )




@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of one process is read from /proc")
def test_a_million_domains_fit_two_gibibytes() -> None:
    """A million open domains of 300 neurons, pushed and popped as branch and bound does: the process' peak grows by less than 2 GiB."""
    code = (
        "import torch\n"
        "from tests.unit.test_frontier import domains_of\n"
        "from verifier.bab.frontier import Frontier\n"
        "status = lambda: open('/proc/self/status').read()\n"  # ru_maxrss would begin with the peak of the process that forked
        "peak = lambda: 1024 * int(status().split('VmHWM:')[1].split()[0])\n"
        "frontier, batch = Frontier(), domains_of(4096, 300)\n"
        "frontier.push(batch); frontier.pop_worst(64); before = peak()\n"
        "while len(frontier) < 1_000_000:\n"
        "    frontier.push(batch); frontier.pop_worst(1024)\n"
        "assert len(frontier) >= 1_000_000\n"
        "print(peak() - before, frontier.nbytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    grown, held = map(int, done.stdout.split())
    assert 10**9 < grown < 2**31 and held < 2**31
