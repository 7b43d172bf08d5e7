"""A training that was cut: it goes on from its own checkpoint, and from no other's."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from certprune import stages
from certprune.checkpoint import Architecture, Saved, read_tensors
from certprune.models import ModelSpec
from certprune.train.fit import FitConfig, Progress
from certprune.train.initialise import Initialise
from certprune.train.objectives.natural import Natural

ARCHITECTURE = Architecture(ModelSpec("mlp", hidden=(6,)), (1, 8, 8), 3, (0.0,), (1.0,))
FIT = FitConfig(4, 0.0, Natural(), batch=8)
X, Y = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3


def trained(partial: Path, saved: Saved, stop: int | None = None, fit: FitConfig = FIT) -> dict[str, torch.Tensor]:
    task = stages.Training(fit, partial, torch.device("cpu"), lambda _: None, stop)
    return stages.train(saved, X, Y, task, "train").state


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_an_initialisation_for_ibp_is_another_network_of_the_seed() -> None:
    """Its spread is sqrt(2 pi) / fan_in, torch's own 1 / sqrt(3 fan_in): for 64 pixels 0.039 against 0.072; the last layer is torch's own."""
    plain, begun, again = (stages.initial(ARCHITECTURE, 0, how).state for how in (Initialise.DEFAULT, Initialise.IBP, Initialise.IBP))
    first, last = [name for name in plain if name.endswith("weight")]
    assert plain[first].std() == pytest.approx(0.072, rel=0.1) and begun[first].std() == pytest.approx(0.0392, rel=0.1)
    assert torch.equal(plain[last], begun[last]) and equal(begun, again)
    assert not torch.equal(begun[first], stages.initial(ARCHITECTURE, 1, Initialise.IBP).state[first])


@pytest.mark.parametrize("stop", [1, 2, 4, None])
def test_cut_after_the_last_epoch_no_further_one_is_trained(tmp_path: Path, stop: int | None) -> None:
    saved = stages.initial(ARCHITECTURE, 0)
    first = trained(tmp_path / "partial.pt", saved, stop)
    assert len(read_tensors(tmp_path / "partial.pt")["epochs"]) == (stop or FIT.epochs)
    assert equal(trained(tmp_path / "partial.pt", saved, stop), first)


def test_the_checkpoint_of_another_training_is_passed_over(tmp_path: Path) -> None:
    saved, other = stages.initial(ARCHITECTURE, 0), stages.initial(ARCHITECTURE, 1)
    wider = stages.initial(replace(ARCHITECTURE, spec=ModelSpec("mlp", hidden=(7,))), 0)
    alone = trained(tmp_path / "alone.pt", saved)
    for k, (of, fit) in enumerate([(other, FIT), (saved, replace(FIT, lr=0.1)), (wider, FIT)]):
        trained(tmp_path / f"{k}.pt", of, 2, fit)
        assert equal(trained(tmp_path / f"{k}.pt", saved), alone)


def test_the_checkpoint_of_this_training_is_gone_on_from(tmp_path: Path) -> None:
    saved, heard = stages.initial(ARCHITECTURE, 0), []
    trained(tmp_path / "partial.pt", saved, 2)

    def listener(progress: Progress) -> None:
        heard.append(progress.epoch)

    after = stages.train(saved, X, Y, stages.Training(FIT, tmp_path / "partial.pt", torch.device("cpu"), listener), "train").state
    assert set(heard) == {2, 3} and equal(after, trained(tmp_path / "alone.pt", saved))
