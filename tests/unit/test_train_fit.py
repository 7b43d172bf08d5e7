"""The training loop: resumed anywhere it ends alike, masks hold, schedules are as stated, and what goes wrong is said."""
from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import verifier
from certprune.train.fit import Checkpoint, Epoch, FitConfig, Progress, Task, augment, fit, learning_rate, pixels, radius
from certprune.train.net import Net
from certprune.train.objectives.ibp import Ibp
from certprune.train.objectives.natural import Natural
from certprune.train.objectives.pgd import Pgd
from certprune.train.regularizers import NormalizedReluStability
from certprune.train.weights import Weights

SHAPE = (1, 4, 4)


def small_model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))


def data(count: int = 25) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, 256, (count, *SHAPE), generator=generator, dtype=torch.uint8)
    return x, x.float().mean((1, 2, 3)).gt(128).long() + x[:, 0, 0, 0].gt(128).long()


def task(model: nn.Module, config: FitConfig, mask: dict[str, Tensor] | None = None) -> Task:
    return Task(Net(model, SHAPE), Weights(model, mask or {}), *data(), config)


RESUMED = [
    FitConfig(4, 0.05, Pgd(steps=2), batch=8, lr=0.01, warmup=0.5, ramp=2.0, shift=1, flip=True, seed=7),
    FitConfig(4, 0.05, Ibp(), (NormalizedReluStability(0.1),), batch=8, lr=0.01, optimizer="sgd", ramp=3.0, weight_decay=1e-3, seed=7),
]


@pytest.mark.parametrize("config", RESUMED, ids=["pgd-adam", "ibp-sgd"])
def test_resumed_after_any_epoch_it_ends_with_the_same_bits(config: FitConfig) -> None:
    model = small_model()
    kept = list(fit(task(model, config)))
    assert not model.training
    for epochs in range(1, 5):
        again = small_model(seed=99)
        last = [kept[epochs - 1], *fit(task(again, config), kept[epochs - 1])][-1]
        assert [epoch.loss for epoch in last.epochs] == [epoch.loss for epoch in kept[-1].epochs]
        if epochs < 4:
            assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_checkpoint_is_a_value_that_training_on_does_not_change() -> None:
    states = fit(task(small_model(), RESUMED[0]))
    first = next(states)
    frozen = deepcopy(first)
    for _ in states:
        pass
    assert all(torch.equal(first.model[name], value) for name, value in frozen.model.items())
    for number, slots in frozen.optimizer["state"].items():
        assert all(torch.equal(first.optimizer["state"][number][name], value) for name, value in slots.items())


def test_a_finished_checkpoint_is_restored_without_training() -> None:
    config = RESUMED[0]
    last = list(fit(task(small_model(), config)))[-1]
    again = small_model(seed=99)
    assert list(fit(task(again, config), last)) == []
    assert all(torch.equal(value, last.model[name]) for name, value in again.state_dict().items())


def test_the_seed_is_all_the_randomness() -> None:
    def final(seed: int) -> Checkpoint:
        return list(fit(task(small_model(), FitConfig(2, 0.05, Pgd(steps=1), batch=8, seed=seed))))[-1]

    one, same, other = final(1), final(1), final(2)
    assert all(torch.equal(one.model[name], same.model[name]) for name in one.model)
    assert any(not torch.equal(one.model[name], other.model[name]) for name in one.model)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_removed_weights_stay_zero(optimizer: str) -> None:
    model = small_model()
    generator = torch.Generator().manual_seed(0)
    mask = {name: torch.rand(model.get_parameter(name).shape, generator=generator) < 0.4 for name in ("0.weight", "4.weight")}
    for _ in fit(task(model, FitConfig(3, 0.05, Ibp(), batch=8, lr=0.05, optimizer=optimizer, weight_decay=0.01), mask)):
        for name, kept in mask.items():
            assert bool((model.get_parameter(name)[~kept] == 0).all()) and bool((model.get_parameter(name)[kept] != 0).all())


@pytest.mark.parametrize("objective", [Natural(), Pgd(steps=1), Ibp()], ids=lambda o: o.name)
def test_a_loss_that_is_not_finite_is_one_sentence(objective: object) -> None:
    states = fit(task(small_model(), FitConfig(3, 0.05, objective, batch=8, lr=1e30)))
    with pytest.raises(verifier.VerifierError, match=r"lower lr \(it is 1e\+30\)") as caught:
        list(states)
    assert "\n" not in str(caught.value)


def test_a_listener_hears_every_batch_and_epochs_have_numbers() -> None:
    heard: list[Progress] = []
    last = list(fit(task(small_model(), FitConfig(2, 0.1, Natural(), batch=8, ramp=1.0)), listener=heard.append))[-1]
    # 25 images in batches of 8 leave one image, of which BatchNorm knows no variance
    assert [(p.epoch, p.batch, p.batches) for p in heard] == [(e, b, 3) for e in range(2) for b in (1, 2, 3)]
    assert [type(epoch) for epoch in last.epochs] == [Epoch, Epoch]
    assert [(epoch.number, epoch.eps) for epoch in last.epochs] == [(0, pytest.approx(0.1)), (1, pytest.approx(0.1))]
    assert all(0 <= epoch.accuracy <= 1 and epoch.loss > 0 for epoch in last.epochs)


def grid(config: FitConfig) -> Iterator[tuple[float, float, float]]:
    for k in range(10 * 400 + 1):
        yield k / 400, *radius(config, k / 400)


@pytest.mark.parametrize(("warmup", "ramp"), [(0.0, 4.0), (2.0, 4.0), (1.5, 0.5), (3.0, 7.0)])
def test_the_radius_rises_continuously_and_smoothly(warmup: float, ramp: float) -> None:
    config = FitConfig(10, 0.3, Natural(), warmup=warmup, ramp=ramp)
    points = list(grid(config))
    assert all(eps == 0 and share == 0 for at, eps, share in points if at <= warmup)
    assert all(eps == pytest.approx(0.3) and share == 1 for at, eps, share in points if at >= warmup + ramp)
    steps = [later[1] - earlier[1] for earlier, later in pairwise(points)]
    steepest = 0.3 / ramp / 400 * 8 / 7  # a quarter of the ramp quadratic, then linear: 1 / (1 - 1/8) times the mean slope
    assert min(steps) >= -1e-15
    assert max(steps) == pytest.approx(steepest, rel=1e-6)
    bends = [later - earlier for earlier, later in pairwise(steps) if max(earlier, later) < steepest * 0.999]
    assert max(bends) <= steepest * 1.01 / (0.25 * ramp * 400), "no kink where the quadratic part meets the linear one"


def test_without_a_ramp_the_radius_jumps_after_the_warmup() -> None:
    config = FitConfig(10, 0.3, Natural(), warmup=2.0)
    assert [radius(config, at) for at in (0, 1.99, 2, 9)] == [(0, 0), (0, 0), (0.3, 1), (0.3, 1)]


def test_the_learning_rate_waits_for_the_ramp_and_falls_by_a_cosine() -> None:
    config = FitConfig(10, 0.3, Natural(), lr=0.5, final_lr=0.1, warmup=1.0, ramp=3.0)
    rates = [learning_rate(config, at / 10) for at in range(101)]
    assert rates[:41] == [0.5] * 41
    assert rates[40:] == sorted(rates[40:], reverse=True)
    assert rates[70] == pytest.approx(0.5 * 0.55) and rates[100] == pytest.approx(0.05)
    assert learning_rate(FitConfig(3, 0.3, Natural(), lr=0.5, warmup=1.0, ramp=5.0), 2.9) == 0.5


def test_augmentation_shifts_zeros_in_and_mirrors() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + 0.5 * torch.rand(40, 1, 4, 4, generator=generator)
    config = FitConfig(1, 0.1, Natural(), shift=1, flip=True)
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    seen = set()
    for k, image in enumerate(augment(x, config, generator)):
        options = {
            (mirror, i, j): padded[k].flip(2)[:, i : i + 4, j : j + 4] if mirror else padded[k][:, i : i + 4, j : j + 4]
            for mirror in (False, True) for i in range(3) for j in range(3)
        }
        found = [name for name, option in options.items() if torch.equal(option, image)]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 10
    assert torch.equal(augment(x, FitConfig(1, 0.1, Natural()), generator), x)


def test_pixels_are_scaled_from_bytes_only() -> None:
    assert pixels(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    assert pixels(torch.tensor([0.25])).tolist() == [0.25]
