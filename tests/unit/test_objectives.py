"""Every objective against its paper, written out in float64 (tests/tiny_net.py), value and gradients; laws between them; each trains."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

import verifier
from certprune.train.fit import FitConfig, Task, fit
from certprune.train.net import Batch, Net
from certprune.train.objectives.cc_ibp import CcIbp
from certprune.train.objectives.crown_ibp import CrownIbp
from certprune.train.objectives.exp_ibp import ExpIbp
from certprune.train.objectives.fgsm import FgsmGradAlign
from certprune.train.objectives.gaussian import Gaussian
from certprune.train.objectives.ibp import Ibp
from certprune.train.objectives.mixtrain import MixTrain
from certprune.train.objectives.mtl_ibp import MtlIbp
from certprune.train.objectives.natural import Natural
from certprune.train.objectives.objective import Objective, worst_case
from certprune.train.objectives.pgd import Pgd
from certprune.train.objectives.registry import OBJECTIVES
from certprune.train.objectives.sabr import Sabr, small_box
from certprune.train.weights import Weights
from tests import tiny_net
from tests.tiny_net import SHAPE, ascent, crown_ibp_margins, forward, ibp_margins, layers_of, softmax_loss, tiny_images
from tests.tolerances import EXACT

EPS, PROGRESS, SEED = 0.07, 0.6, 5


def batch_of(model: nn.Module, eps: float = EPS, progress: float = PROGRESS) -> Batch:
    x, y = tiny_images()
    return Batch(Net(model, SHAPE), x, y, eps, 2 * EPS, progress, torch.Generator().manual_seed(SEED))


class Truth:
    """What an oracle may use: the images, their eps boxes, the layers over clean statistics, and the same random numbers."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.x, self.y = tiny_images()
        self.lower, self.upper = (self.x - EPS).clamp(0, 1), (self.x + EPS).clamp(0, 1)
        self.layers = layers_of(model, self.x)
        self.generator = torch.Generator().manual_seed(SEED)

    def noise(self) -> Tensor:
        return 2 * torch.rand(self.x.shape, generator=self.generator, dtype=torch.float64) - 1

    def clean(self) -> Tensor:
        return cross_entropy(forward(self.layers, self.x), self.y)

    def own_statistics(self, x: Tensor, reduction: str = "mean") -> Tensor:
        """The loss at x with BatchNorm over x's own statistics."""
        return cross_entropy(forward(layers_of(self.model, x), x), self.y[: len(x)], reduction=reduction)

    def point(self, loss: Callable[[Tensor], Tensor], steps: int, step: float) -> Tensor:
        middle, half = (self.lower + self.upper) / 2, (self.upper - self.lower) / 2
        return ascent(loss, middle + half * self.noise(), step * half, self.lower, self.upper, steps)

    def frozen_point(self, steps: int, step: float) -> Tensor:
        return self.point(lambda x: softmax_loss([(w.detach(), b.detach()) for w, b in self.layers], x, self.y), steps, step)

    def interval_loss(self, lower: Tensor, upper: Tensor) -> Tensor:
        return cross_entropy(-ibp_margins(self.layers, lower, upper, self.y), self.y)


def fgsm(t: Truth) -> Tensor:
    moved = (t.x + EPS * t.noise()).clamp(0, 1)

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(t.own_statistics(x, "sum"), x, create_graph=True)[0]

    point = torch.min(torch.max(moved + 1.25 * EPS * gradient(moved).sign().detach(), t.lower), t.upper)
    cosine = cosine_similarity(gradient(t.x[:3]).flatten(1), gradient(moved[:3]).flatten(1), dim=1)
    return t.own_statistics(point) + 0.2 * (1 - cosine).mean()


def gaussian(t: Truth) -> Tensor:
    return t.own_statistics(t.x + 0.3 * torch.randn(t.x.shape, generator=t.generator, dtype=torch.float64))


def ibp(t: Truth) -> Tensor:
    kappa = 1 - (1 - 0.25) * PROGRESS
    return kappa * t.clean() + (1 - kappa) * t.interval_loss(t.lower, t.upper)


def crown_ibp(t: Truth) -> Tensor:
    beta, kappa = 1 - (1 - 0.5) * PROGRESS, 1 - PROGRESS
    crown, interval = (f(t.layers, t.lower, t.upper, t.y) for f in (crown_ibp_margins, ibp_margins))
    return kappa * t.clean() + (1 - kappa) * cross_entropy(-(beta * crown + (1 - beta) * interval), t.y)


def sabr(t: Truth) -> Tensor:
    tau = 0.4 * EPS
    center = torch.min(torch.max(t.frozen_point(3, 0.5), t.x - EPS + tau), t.x + EPS - tau)
    return t.interval_loss((center - tau).clamp(0, 1), (center + tau).clamp(0, 1))


def mtl_ibp(t: Truth) -> Tensor:
    return 0.7 * cross_entropy(forward(t.layers, t.frozen_point(3, 0.5)), t.y) + 0.3 * t.interval_loss(t.lower, t.upper)


def cc_ibp(t: Truth) -> Tensor:
    logits = forward(t.layers, t.frozen_point(3, 0.5))
    margins = torch.stack([logits[k, label] - logits[k] for k, label in enumerate(t.y)])
    return cross_entropy(-(0.7 * margins + 0.3 * ibp_margins(t.layers, t.lower, t.upper, t.y)), t.y)


def exp_ibp(t: Truth) -> Tensor:
    at_point = cross_entropy(forward(t.layers, t.frozen_point(3, 0.5)), t.y, reduction="none")
    over_box = cross_entropy(-ibp_margins(t.layers, t.lower, t.upper, t.y), t.y, reduction="none")
    return torch.exp(0.7 * at_point.log() + 0.3 * over_box.log()).mean()


def mixtrain(t: Truth) -> Tensor:
    weight = 0.5 * PROGRESS
    chosen = torch.randperm(len(t.x), generator=t.generator)[:2]
    margins = ibp_margins(t.layers, t.lower[chosen], t.upper[chosen], t.y[chosen])
    return (1 - weight) * t.clean() + weight * cross_entropy(-margins, t.y[chosen])


def mixtrain_adversarial(t: Truth) -> Tensor:
    weight = 0.5 * PROGRESS
    at_point = cross_entropy(forward(t.layers, t.frozen_point(2, 0.5)), t.y)
    chosen = torch.randperm(len(t.x), generator=t.generator)[:2]
    margins = ibp_margins(t.layers, t.lower[chosen], t.upper[chosen], t.y[chosen])
    return (1 - weight) * at_point + weight * cross_entropy(-margins, t.y[chosen])


PAPERS: list[tuple[Objective, Callable[[Truth], Tensor]]] = [
    (Natural(), Truth.clean),
    (Pgd(steps=3, step=0.5), lambda t: t.own_statistics(t.point(lambda x: t.own_statistics(x, "sum"), 3, 0.5))),
    (FgsmGradAlign(weight=0.2, step=1.25, share=0.5), fgsm),
    (Gaussian(sigma=0.3), gaussian),
    (Ibp(final_kappa=0.25), ibp),
    (CrownIbp(final_kappa=0.0, final_beta=0.5), crown_ibp),
    (Sabr(small_box=0.4, steps=3, step=0.5), sabr),
    (MtlIbp(alpha=0.3, steps=3, step=0.5), mtl_ibp),
    (CcIbp(alpha=0.3, steps=3, step=0.5), cc_ibp),
    (ExpIbp(alpha=0.3, steps=3, step=0.5), exp_ibp),
    (MixTrain(alpha=0.5, images=2), mixtrain),
    (MixTrain(alpha=0.5, images=2, steps=2, step=0.5), mixtrain_adversarial),
]
IDS = [repr(objective) for objective, _ in PAPERS]


def test_the_table_names_every_objective() -> None:
    assert {objective.name for objective, _ in PAPERS} == set(OBJECTIVES)
    assert all(kind.name == name for name, kind in OBJECTIVES.items())


def distance(objective: Objective, paper: Callable[[Truth], Tensor]) -> float:
    """The largest difference of values, and of gradients relative to the largest one of each parameter."""
    model = tiny_net.tiny_net()
    parameters = list(model.parameters())
    ours, theirs = objective(batch_of(model)), paper(Truth(model))
    found = [float((ours - theirs).detach().abs())]
    for mine, true in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True):
        largest = float(true.abs().max())
        assert largest > 1e-6, "no gradient reaches this parameter: the test could not fail"
        found.append(float((mine - true).abs().max()) / largest)
    return max(found)


@pytest.mark.parametrize(("objective", "paper"), PAPERS, ids=IDS)
def test_value_and_gradients_are_the_papers(objective: Objective, paper: Callable[[Truth], Tensor]) -> None:
    assert distance(objective, paper) <= 1e-7


SMALL_BOX = "certprune.train.objectives.sabr.small_box"
SABOTAGE: list[tuple[type, str, Callable]] = [
    (MtlIbp, "certprune.train.net.Batch.at", Batch.frozen),  # no gradient through the statistics
    (CcIbp, "certprune.train.net.Batch.at", Batch.search),  # other statistics at the point than in the bounds
    (ExpIbp, "certprune.train.net.Batch.frozen", Batch.search),  # another function attacked
    (Pgd, "certprune.train.net.Batch.search", lambda batch, x: batch.net.model.eval()(x)),  # running statistics
    (Ibp, "certprune.train.net.Net.graph", lambda net, statistics, graph=Net.graph: graph(net, {})),
    (Ibp, "certprune.train.net.Net.graph", lambda net, known, graph=Net.graph: graph(net, {name: value.detach() for name, value in known.items()})),
    (Sabr, SMALL_BOX, lambda batch, point, share: small_box(batch, point, 0.99 * share)),
    (Sabr, SMALL_BOX, lambda batch, point, share: batch.box(point, share * EPS)),  # the centre is not cut back
    (MixTrain, "certprune.train.net.Batch.part", lambda batch, chosen, part=Batch.part: part(batch, chosen.flip(0) - 1)),
    (FgsmGradAlign, "certprune.train.objectives.fgsm.inside", lambda box, x: x),
]


@pytest.mark.parametrize(("kind", "place", "wrong"), SABOTAGE, ids=[f"{kind.name}-{k}" for k, (kind, _, _) in enumerate(SABOTAGE)])
def test_a_wrong_step_is_seen(kind: type, place: str, wrong: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, wrong)
    objective, paper = next((objective, paper) for objective, paper in PAPERS if isinstance(objective, kind))
    assert distance(objective, paper) > 1e-4


@pytest.mark.parametrize(("objective", "paper"), PAPERS, ids=IDS)
def test_a_step_moves_running_statistics_once(objective: Objective, paper: Callable[[Truth], Tensor]) -> None:
    model = tiny_net.tiny_net()
    before = model[1].running_mean.clone()
    objective(batch_of(model))
    assert [int(model[k].num_batches_tracked) for k in (1, 4)] == [1, 1]
    assert not torch.equal(model[1].running_mean, before)


@pytest.mark.parametrize("objective", [o for o, _ in PAPERS if not isinstance(o, Gaussian)], ids=repr)
def test_without_eps_every_objective_is_natural(objective: Objective) -> None:
    model = tiny_net.tiny_net()
    assert abs(float(objective(batch_of(model, eps=0.0, progress=0.0)) - Truth(model).clean())) <= EXACT


@pytest.mark.parametrize("margins", [lambda b: b.ibp().lower, lambda b: b.crown_ibp(10), lambda b: b.crown_ibp(1), lambda b: b.crown().lower])
def test_no_point_of_the_box_has_more_than_the_worst_case_loss(margins: Callable[[Batch], Tensor]) -> None:
    batch = batch_of(tiny_net.tiny_net(1))
    box, bound = batch.box(), margins(batch)
    worst = cross_entropy(-bound, batch.y, reduction="none")
    assert abs(float((worst.mean() - worst_case(bound, batch.y)).detach())) <= EXACT
    for _ in range(60):
        corner = torch.where(batch.noise() > 0, box.upper.squeeze(1), box.lower.squeeze(1))
        point = torch.where(batch.noise() > 0, corner, (batch.x + batch.eps * batch.noise()).clamp(0, 1))
        loss = cross_entropy(batch.at(point), batch.y, reduction="none")
        assert bool((loss <= worst + EXACT).all())


@pytest.mark.parametrize("kind", [MtlIbp, CcIbp, ExpIbp])
def test_alpha_leads_from_the_attack_to_the_bounds(kind: type) -> None:
    """Expressivity: monotone in alpha, the attack's loss at 0, the intervals' at 1."""
    model = tiny_net.tiny_net()
    truth = Truth(model)
    values = [float(kind(alpha=alpha, steps=3, step=0.5)(batch_of(model))) for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)]
    at_point = cross_entropy(forward(truth.layers, truth.frozen_point(3, 0.5)), truth.y)
    assert abs(values[0] - float(at_point)) <= EXACT
    assert abs(values[-1] - float(truth.interval_loss(truth.lower, truth.upper))) <= EXACT
    assert values == sorted(values)
    assert values[-1] > values[0] + 0.01


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_small_box_lies_in_the_eps_box(share: float) -> None:
    batch = batch_of(tiny_net.tiny_net())
    whole = batch.box()
    corner = torch.where(batch.noise() > 0, whole.upper.squeeze(1), whole.lower.squeeze(1))
    box = small_box(batch, corner, share)
    assert bool((box.lower >= whole.lower - 1e-12).all()) and bool((box.upper <= whole.upper + 1e-12).all())
    assert bool((box.radius <= share * EPS + 1e-12).all())
    if share == 1.0:
        assert torch.allclose(box.lower, whole.lower) and torch.allclose(box.upper, whole.upper)
    if share == 0.0:
        assert torch.allclose(box.center.squeeze(1), corner)


def test_attacks_raise_the_loss() -> None:
    model = tiny_net.tiny_net()
    assert float(Pgd()(batch_of(model))) > float(Truth(model).clean()) + 0.01


DIGITS: dict[str, dict] = {"crown-ibp": {"final_beta": 0.5}, "mixtrain": {"images": 8}, "pgd": {"steps": 3}, "sabr": {"steps": 3}}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_trains_on_digits(name: str) -> None:
    data = verifier.load_dataset("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    config = FitConfig(3, 0.03, OBJECTIVES[name](**DIGITS.get(name, {})), batch=20, lr=0.01, seed=1)
    x, y = torch.from_numpy(data.x_train[:160]), torch.from_numpy(data.y_train[:160])
    losses = [epoch.loss for epoch in list(fit(Task(Net(model, (1, 8, 8)), Weights(model, {}), x, y, config)))[-1].epochs]
    assert losses[2] < losses[1] < losses[0]
    assert losses[2] < 0.8 * losses[0]


def test_crown_bounds_the_hardest_margins_and_leaves_the_others_as_they_are() -> None:
    batch = batch_of(tiny_net.tiny_net())
    every, one = batch.crown_ibp(99), batch.crown_ibp(1)
    margins = batch.clean.gather(1, batch.y[:, None]) - batch.clean
    hardest = margins.scatter(1, batch.y[:, None], torch.inf).argmin(1)
    rows = torch.arange(len(margins))
    torch.testing.assert_close(one[rows, hardest], every[rows, hardest], rtol=0, atol=EXACT)
    rest = torch.ones_like(margins, dtype=torch.bool).index_put((rows, hardest), torch.tensor(False))
    assert torch.equal(one[rest], margins[rest])
    assert bool((every <= margins + EXACT).all()) and not torch.allclose(every, margins, atol=1e-3)
