"""Every regulariser against its paper in float64, values and gradients; what each is blind to; the initialisation that belongs to them."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import verifier
from certprune.models import Normalize
from certprune.train.initialise import initialise_for_ibp
from certprune.train.net import Batch, Net
from certprune.train.objectives.registry import REGULARIZERS
from certprune.train.regularizers import L1, NormalizedReluStability, Regularizer, ReluStability, Slimming
from certprune.train.stability_distance import StabilityDistance
from certprune.train.warmup_regularizers import BoundTightness, ReluBalance
from tests.tiny_net import SHAPE, intervals, layers_of, tiny_images, tiny_net
from tests.tolerances import EXACT

EPS = 0.07


def batch_of(model: nn.Module, eps: float = EPS, final_eps: float = 2 * EPS) -> Batch:
    x, y = tiny_images()
    return Batch(Net(model, SHAPE), x, y, eps, final_eps, 0.5, torch.Generator().manual_seed(0))


def boxes(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    x, _ = tiny_images()
    return intervals(layers_of(model, x), (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1))


def relu_stability(model: nn.Module) -> Tensor:
    return torch.cat([-torch.tanh(1 + low * high).flatten() for low, high in boxes(model)]).mean()


def normalized(model: nn.Module) -> Tensor:
    terms = []
    for (low, high), norm in zip(boxes(model), (model[1], model[4])):
        gamma = norm.weight.detach().repeat_interleave(low.shape[1] // len(norm.weight))
        terms.append(-torch.tanh(1 + low * high / gamma**2).flatten())
    return torch.cat(terms).mean()


def distance(model: nn.Module) -> Tensor:
    layers = []
    for (low, high), norm in zip(boxes(model), (model[1], model[4])):
        gamma = norm.weight.detach().abs().repeat_interleave(low.shape[1] // len(norm.weight))
        layers.append((torch.relu(torch.minimum(high, -low)) / gamma).mean())
    return sum(layers) / len(layers)


def tightness(model: nn.Module) -> Tensor:
    x, _ = tiny_images()
    at_input = ((x + EPS).clamp(0, 1) - (x - EPS).clamp(0, 1)).mean() / 2
    terms = [torch.relu(1 - at_input / ((high - low) / 2).mean() / 0.5) for low, high in boxes(model)]
    return (1 - EPS / (2 * EPS)) * (terms[0] + terms[1]) / 2


def balance(model: nn.Module) -> Tensor:
    total = 0.0
    for low, high in boxes(model):
        center = (low + high) / 2
        active, inactive = center[low > 0], center[high < 0]
        for a, b in ((active.sum(), -inactive.sum()), (((active - center.mean()) ** 2).sum(), ((inactive - center.mean()) ** 2).sum())):
            total = total + torch.relu(1 - min(a / b, b / a) / 0.5)
    return (1 - EPS / (2 * EPS)) * total / 2


PAPERS: list[tuple[Regularizer, Callable[[nn.Module], Tensor]]] = [
    (ReluStability(0.3), lambda m: 0.3 * relu_stability(m)),
    (NormalizedReluStability(0.3), lambda m: 0.3 * normalized(m)),
    (StabilityDistance(0.3), lambda m: 0.3 * distance(m)),
    (L1(0.3), lambda m: 0.3 * (m[0].weight.abs().sum() + m[3].weight.abs().sum() + m[7].weight.abs().sum())),
    (Slimming(0.3), lambda m: 0.3 * (m[1].weight.abs().sum() + m[4].weight.abs().sum())),
    (BoundTightness(0.3), lambda m: 0.3 * tightness(m)),
    (ReluBalance(0.3), lambda m: 0.3 * balance(m)),
]


def test_the_table_names_every_regularizer() -> None:
    assert {regularizer.name for regularizer, _ in PAPERS} == set(REGULARIZERS)
    assert all(kind.name == name for name, kind in REGULARIZERS.items())


@pytest.mark.parametrize(("regularizer", "paper"), PAPERS, ids=lambda part: getattr(part, "name", ""))
def test_value_and_gradients_are_the_papers(regularizer: Regularizer, paper: Callable[[nn.Module], Tensor]) -> None:
    model = tiny_net()
    parameters = list(model.parameters())
    ours, theirs = regularizer(batch_of(model)), paper(model)
    assert abs(float((ours - theirs).detach())) <= EXACT
    assert abs(float(theirs.detach())) > 1e-3, "a term of zero: the test could not fail"
    mine = torch.autograd.grad(ours, parameters, allow_unused=True, materialize_grads=True)
    true = torch.autograd.grad(theirs, parameters, allow_unused=True, materialize_grads=True)
    assert sum(float(g.abs().sum()) for g in true) > 1e-3
    for one, other in zip(mine, true, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=EXACT)


def test_crown_bounds_make_another_stability() -> None:
    model = tiny_net()
    batch = batch_of(model)
    by_ibp, by_crown = (float(ReluStability(1.0, engine)(batch).detach()) for engine in ("ibp", "crown"))
    terms = [-torch.tanh(1 + box.lower * box.upper).flatten() for box in batch.crown().intermediate.values()]
    assert by_crown == pytest.approx(float(torch.cat(terms, 0).mean().detach()), abs=EXACT)
    assert abs(by_crown - by_ibp) > 1e-3


@torch.no_grad()
def shrink(model: nn.Module, factor: float) -> None:
    """The first BatchNorm's outputs times `factor` > 0, and the weights that read them divided by it: the same function."""
    model[1].weight *= factor
    model[1].bias *= factor
    model[3].weight /= factor


def test_only_the_normalized_term_is_blind_to_scales() -> None:
    model = tiny_net()
    model[4].eps = 1e-15  # else the second layer's statistics would not quite cancel the scale
    x, _ = tiny_images()
    before = [float(term(batch_of(model)).detach()) for term in (NormalizedReluStability(1.0), ReluStability(1.0))]
    function = model(x)
    shrink(model, 0.05)
    torch.testing.assert_close(model(x), function, rtol=0, atol=EXACT)
    after = [float(term(batch_of(model)).detach()) for term in (NormalizedReluStability(1.0), ReluStability(1.0))]
    assert after[0] == pytest.approx(before[0], abs=EXACT)
    assert abs(after[1] - before[1]) > 0.05, "the plain term takes the same function for another"


def test_no_gradient_flows_through_the_scale_in_the_denominator() -> None:
    """Where beta is 0, l u / gamma^2 would not depend on gamma at all; held constant, it grows with gamma^2."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).double()
    nn.init.constant_(model[1].weight, 0.7)
    NormalizedReluStability(1.0)(batch_of(model)).backward()
    assert float(model[1].weight.grad.abs().min()) > 1e-3


def test_terms_of_bounds_vanish_without_eps_and_warmup_terms_at_the_end() -> None:
    model = tiny_net()
    nn.init.constant_(model[1].bias, 1.0)
    for term in (ReluStability(1.0), NormalizedReluStability(1.0), BoundTightness(1.0)):
        assert float(term(batch_of(model, eps=0.0))) == 0
    assert float(ReluBalance(1.0)(batch_of(model, eps=0.0)).detach()) > 0
    for term in (BoundTightness(1.0), ReluBalance(1.0)):
        assert float(term(batch_of(model, eps=EPS, final_eps=EPS))) == 0


def test_a_layer_whose_neurons_are_all_active_is_out_of_balance_without_nan() -> None:
    model = tiny_net()
    nn.init.constant_(model[1].bias, 50.0)
    value = ReluBalance(1.0)(batch_of(model))
    value.backward()
    assert 0.5 <= float(value.detach()) <= 2
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_tightness_is_relative_to_the_normalised_image() -> None:
    model = nn.Sequential(Normalize([0.0], [0.25]).double(), *tiny_net())
    batch = batch_of(model)
    at_input = batch.box().radius.mean() / 0.25
    terms = [torch.relu(1 - at_input / box.radius.mean() / 0.5) for box in batch.ibp().intermediate.values()]
    value = float(BoundTightness(1.0)(batch).detach())
    assert value == pytest.approx(float(sum(terms).detach()) / 4, abs=EXACT)
    assert value < float(BoundTightness(1.0)(batch_of(nn.Sequential(*list(model)[1:]))).detach())


def mean_radii(model: nn.Module) -> list[float]:
    graph = verifier.load_torch(model.eval(), (400,))
    center = torch.rand(8, 1, 400, generator=torch.Generator().manual_seed(0)) - 0.5
    box = verifier.Box(center - 0.01, center + 0.01)
    return [float(value.radius.detach().mean()) for value in verifier.ibp(verifier.BoundRequest(graph, box)).intermediate.values()]


def test_the_initialisation_keeps_mean_radii() -> None:
    """An affine layer doubles the mean radius that a ReLU then halves; torch's own initialisation lets radii explode."""
    layers = [part for _ in range(5) for part in (nn.Linear(400, 400), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(400, 3))
    last, exploding = model[-1].weight.clone(), mean_radii(model)
    initialise_for_ibp(model, torch.Generator().manual_seed(1))
    radii = mean_radii(model)
    assert radii[0] == pytest.approx(0.02, rel=0.02)
    assert all(0.5 < later / radii[0] < 2 for later in radii)
    assert exploding[-1] / exploding[0] > 100
    assert torch.equal(model[-1].weight, last)
    assert float(model[2].weight.detach().std()) == pytest.approx((2 * torch.pi) ** 0.5 / 400, rel=0.02)


def test_the_initialisation_counts_a_kernels_inputs_and_depends_on_the_generator_alone() -> None:
    models = [nn.Sequential(nn.Conv2d(8, 200, 5), nn.ReLU(), nn.Flatten(), nn.Linear(200, 2)) for _ in range(2)]
    for model in models:
        initialise_for_ibp(model, torch.Generator().manual_seed(0))
    assert torch.equal(models[0][0].weight, models[1][0].weight)
    assert float(models[0][0].weight.detach().std()) == pytest.approx((2 * torch.pi) ** 0.5 / 200, rel=0.02)
