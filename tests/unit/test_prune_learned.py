"""Scores that are learned or follow a verification: HYDRA, HYDRA under a stability term, and verification-guided scores."""
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import verifier
from certprune.prune.gradients import batches
from certprune.prune.hydra import Hydra, ScoredWeights, frozen_copy, scaled_scores
from certprune.prune.hydra_stability import HydraStability
from certprune.prune.mask import Layers, Mask, Scope, apply, full, select, sparsity, weights_of
from certprune.prune.schedule import prune_once
from certprune.prune.scorer import Context, Findings
from certprune.prune.stability import ranges
from certprune.prune.verification_guided import VerificationGuided, split_instability, width_terms
from certprune.train.net import Batch, Net
from certprune.train.objectives.ibp import Ibp
from certprune.train.regularizers import NormalizedReluStability
from certprune.train.tensors import substituted
from tests.pruning import context_of, small_convnet, small_mlp, states_equal


@pytest.fixture(scope="module")
def trained() -> Context:
    return context_of(small_mlp(), count=192)


def again(context: Context, **changes: object) -> Context:
    return replace(context, generator=torch.Generator().manual_seed(0), **changes)


def scored(context: Context, removed: float) -> tuple[Net, ScoredWeights]:
    net = Net(frozen_copy(context.net.model), context.net.input_shape)
    weights = weights_of(net.model, context.mask)
    scores = {name: scaled_scores(w).requires_grad_() for name, w in weights.items()}
    return net, ScoredWeights(weights, scores, context.mask, removed, Scope.LAYER)


def naive_topk(score: Tensor, removed: float) -> Tensor:
    """By a loop over sorted positions."""
    flat = [abs(float(s)) for s in score.flatten()]
    order = sorted(range(len(flat)), key=lambda i: -flat[i])
    keep = torch.zeros(len(flat))
    for i in order[:len(flat) - round(removed * len(flat))]:
        keep[i] = 1
    return keep.reshape(score.shape)


def test_scores_start_scaled(trained: Context) -> None:
    """sqrt(6 / fan_in) w / max |w|: the order of magnitudes, and the spread of a Kaiming-uniform start."""
    w = trained.net.model[1].weight.detach()
    assert torch.allclose(scaled_scores(w), math.sqrt(6 / 36) * w / w.abs().max())
    assert scaled_scores(torch.zeros(2, 3)).abs().max() == 0
    conv = torch.randn(4, 3, 5, 5)
    assert float(scaled_scores(conv).abs().max()) == pytest.approx(math.sqrt(6 / 75))


@pytest.mark.parametrize("removed", [0.0, 0.5, 0.9])
def test_the_straight_through_gradient_is_that_of_dense_weights(trained: Context, removed: float) -> None:
    """d loss / d s = sign(s) w dL/dW at W = w * topk(|s|), L the loss of a dense network with the weights W; float64, written out."""
    net, learned = scored(trained, removed)
    x, y = trained.x[:16], trained.y[:16]
    with substituted(net.model, learned.tensors()):
        loss = cross_entropy(net.model(x), y)
    loss.backward()
    weights = {n: p.detach().double() for n, p in net.model.named_parameters()}
    dense = {n: (weights[n] * naive_topk(learned.scores[n].detach(), removed)).requires_grad_() for n in learned.scores}
    full_set = weights | dense
    h = (x.double().flatten(1) @ full_set["1.weight"].T + full_set["1.bias"]).clamp(min=0)
    h = (h @ full_set["3.weight"].T + full_set["3.bias"]).clamp(min=0)
    cross_entropy(h @ full_set["5.weight"].T + full_set["5.bias"], y).backward()
    for name, score in learned.scores.items():
        expected = score.detach().double().sign() * weights[name] * dense[name].grad
        assert torch.allclose(score.grad.double(), expected, atol=1e-7, rtol=1e-4)
        assert removed == 0 or score.grad[dense[name] == 0].abs().max() > 0  # removed weights may come back
    assert all(p.grad is None for p in net.model.parameters())


def test_bounds_see_the_effective_weights(trained: Context) -> None:
    """Interval bounds of the substituted network are those of a network whose weights are w * m, and reach the scores."""
    net, learned = scored(trained, 0.7)
    with substituted(net.model, learned.tensors()):
        bounds = Batch(net, trained.x[:4], trained.y[:4], 0.05, 0.05, 1.0, torch.Generator()).ibp().lower
    other = frozen_copy(net.model)
    apply(other, learned.mask())
    pruned = Batch(Net(other, net.input_shape), trained.x[:4], trained.y[:4], 0.05, 0.05, 1.0, torch.Generator()).ibp().lower
    assert torch.equal(bounds, pruned)
    bounds.sum().backward()
    assert all(score.grad.abs().max() > 0 for score in learned.scores.values())


def test_hydra_leaves_weights_and_statistics_and_learns() -> None:
    """Weights are bit-equal afterwards; the order of scores is no longer that of magnitudes; nothing removed keeps all."""
    context = context_of(small_convnet(), Layers.CONV, count=96)
    before = {name: value.clone() for name, value in context.net.model.state_dict().items()}
    mask = prune_once(Hydra(epochs=2), again(context), Scope.LAYER, 0.8)
    assert states_equal(before, context.net.model.state_dict())
    magnitude = select({n: w.abs() for n, w in weights_of(context.net.model, context.mask).items()}, 0.8, Scope.LAYER)
    assert not states_equal(mask, magnitude)
    assert states_equal(prune_once(Hydra(epochs=1), again(context), Scope.LAYER, 0.0), full(context.net.model, Layers.CONV))
    untouched = prune_once(Hydra(epochs=0), again(context), Scope.LAYER, 0.8)
    assert states_equal(untouched, magnitude)


def test_masks_follow_the_objective(trained: Context) -> None:
    natural = prune_once(Hydra(epochs=2), again(trained), Scope.GLOBAL, 0.8)
    bounded = prune_once(Hydra(epochs=2), again(trained, fit=replace(trained.fit, objective=Ibp())), Scope.GLOBAL, 0.8)
    assert not states_equal(natural, bounded)
    assert sparsity(natural) == pytest.approx(sparsity(bounded))


def loss_and_instability(context: Context, mask: Mask) -> tuple[float, float]:
    """Of the network under the mask: cross entropy, and the mean of -tanh(1 + l u) over all images."""
    net = Net(frozen_copy(context.net.model), context.net.input_shape)
    apply(net.model, mask)
    batch = Batch(net, context.x, context.y, context.fit.eps, context.fit.eps, 1.0, torch.Generator())
    with torch.no_grad():
        return float(cross_entropy(batch.clean, batch.y)), float(NormalizedReluStability(1.0)(batch))


def test_hydra_under_stability_is_stabler(trained: Context) -> None:
    """With a heavy term the mask it learns is stabler than HYDRA's of as many steps (not a theorem: one seed, a wide margin)."""
    context = replace(trained, fit=replace(trained.fit, eps=0.2))
    settings = {"epochs": 5, "lr": 0.01, "optimizer": "adam"}
    hydra = prune_once(Hydra(**settings), again(context), Scope.LAYER, 0.8)
    heavy = prune_once(HydraStability(**settings, weight=5.0), again(context), Scope.LAYER, 0.8)
    assert loss_and_instability(context, heavy)[1] < loss_and_instability(context, hydra)[1] - 0.02
    none = prune_once(HydraStability(**settings, weight=0.0), again(context), Scope.LAYER, 0.8)
    assert states_equal(none, hydra)


def findings_about(context: Context, neurons: slice) -> Findings:
    """Branch and bound split some neurons of the first hidden layer; ten images are undecided."""
    splits = {"_1": torch.zeros(1, 24), "_3": torch.zeros(1, 20)}
    splits["_1"][0, neurons] = 5
    return Findings(splits, undecided=tuple(range(10)), falsified=(10, 11))


@pytest.mark.parametrize("neurons", [slice(0, 8), slice(8, 16), slice(16, 24)])
def test_weights_of_split_neurons_go_first(trained: Context, neurons: slice) -> None:
    """More of their weights are removed than by the same score without the stability term, and more than of other neurons."""
    context = again(trained, findings=findings_about(trained, neurons))
    mask = prune_once(VerificationGuided(stability=3.0, bounded=32), context, Scope.LAYER, 0.6)["1.weight"]
    without = prune_once(VerificationGuided(stability=0.0, bounded=32), again(context), Scope.LAYER, 0.6)["1.weight"]
    others = torch.ones(24, dtype=torch.bool)
    others[neurons] = False
    assert mask[neurons].float().mean() < without[neurons].float().mean() - 0.1
    assert mask[neurons].float().mean() < mask[others].float().mean() - 0.1


def test_the_gradient_of_instability_against_float64(trained: Context) -> None:
    """R of the first layer's neurons: the ten undecided images three times, other drawn ones once; the rest of R does not reach this weight."""
    context = again(trained, findings=findings_about(trained, slice(0, 8)))
    scorer = VerificationGuided(engine="ibp", bounded=202)
    found = scorer.instability_gradients(context, context.findings)["3.weight"].double()
    first, second = ({k: p.detach().double() for k, p in context.net.model[i].named_parameters()} for i in (1, 3))
    w = second["weight"].requires_grad_()
    lower, upper = ((context.x.double() + s * context.fit.eps).clamp(0, 1).flatten(1) for s in (-1, 1))
    centre, radius = (lower + upper) / 2 @ first["weight"].T + first["bias"], (upper - lower) / 2 @ first["weight"].abs().T
    lower, upper = (centre - radius).clamp(min=0), (centre + radius).clamp(min=0)
    centre, radius = (lower + upper) / 2 @ w.T + second["bias"], (upper - lower) / 2 @ w.abs().T
    terms = -(1 + centre.detach().square() - radius.square()).tanh()
    counts = torch.ones(192, dtype=torch.float64)
    counts[:10] += 3  # drawn like every image, and undecided
    expected, = torch.autograd.grad((counts[:, None] * terms).sum() / 44, w)
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-3)
    assert found.abs().max() > 0.01


def test_split_instability_weighs_images_and_neurons(trained: Context) -> None:
    context = again(trained)
    batch = next(batches(context, torch.arange(8)))
    terms = {name: term.detach() for name, term in width_terms(ranges(batch, "ibp")).items()}
    splits = {"_3": torch.arange(20.0)}
    images = torch.tensor([1.0, 0, 0, 0, 0, 0, 2.0, 0])
    expected = 0.0
    for i, a in enumerate(images):
        expected += float(a) * sum(float(terms["_3"][i, n]) * (1 / 44 + float(s) / 190) for n, s in enumerate(splits["_3"]))
        expected += float(a) * sum(float(terms["_1"][i, n]) / 44 for n in range(24))
    assert float(split_instability(terms, splits, images)) == pytest.approx(expected, rel=1e-4)
    uniform = float(split_instability(terms, {}, torch.ones(8)))
    assert uniform == pytest.approx(sum(float(t.sum()) for t in terms.values()) / 44, rel=1e-5)


def test_the_regulariser_is_the_mean_of_these_terms() -> None:
    context = context_of(small_convnet(), Layers.CONV, count=64)
    batch = next(batches(context, torch.arange(16)))
    terms = torch.cat([value.instability().flatten() for value in ranges(batch, "ibp").values()])
    assert float(NormalizedReluStability(1.0)(batch).detach()) == pytest.approx(float(terms.detach().mean()), rel=1e-5)


def test_findings_of_something_else_are_refused(trained: Context) -> None:
    scorer = VerificationGuided(images=16, bounded=8, engine="ibp")
    for findings, message in (
        (Findings(undecided=(192,)), "image 192, but there are 192"),
        (Findings(splits={"_9": torch.ones(24)}), "'_9', which is no activation"),
        (Findings(splits={"_1": torch.ones(23)}), "another network"),
    ):
        with pytest.raises(verifier.VerifierError, match=message):
            scorer(again(trained, findings=findings))
    assert isinstance(trained.net.model[1], nn.Linear) and len(scorer(again(trained))) == 2
