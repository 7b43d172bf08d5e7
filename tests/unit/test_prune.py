"""Every pruning method: exact sparsity, removed stays removed, nothing of the network moves, and scores against slow transcriptions."""
from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import verifier
from certprune.prune.adv_admm import AdvAdmm, Proximal
from certprune.prune.channels import norm_of_layer, select_channels, value_of_layer
from certprune.prune.hydra import Hydra
from certprune.prune.hydra_stability import HydraStability
from certprune.prune.magnitude import Magnitude
from certprune.prune.mask import Layers, Mask, Scope, apply, full, select, sparsity
from certprune.prune.nrs_channels import NrsChannels
from certprune.prune.refill import Refill
from certprune.prune.registry import SCORERS
from certprune.prune.schedule import evenly, prune_once, rewound, sparsities
from certprune.prune.scorer import Context, Scorer
from certprune.prune.slimming import Slimming
from certprune.prune.snip import Snip
from certprune.prune.taylor import Taylor
from certprune.prune.verification_guided import VerificationGuided
from certprune.train.net import Batch, Net
from tests.pruning import context_of, small_convnet, small_mlp, states_equal

QUICK = {
    "hydra": Hydra(epochs=1), "hydra-stability": HydraStability(epochs=1), "adv-admm": AdvAdmm(epochs=1), "snip": Snip(images=32),
    "taylor": Taylor(images=32), "nrs-channels": NrsChannels(images=32),
    "verification-guided": VerificationGuided(images=32, bounded=16, engine="ibp"),
}
METHODS = {name: QUICK.get(name) or method() for name, method in SCORERS.items()}
SPARSITIES = (0.5, 0.8, 0.9, 0.95)


@pytest.fixture(scope="module")
def trained() -> Context:
    """Of a convolutional network; its convolutions may be pruned."""
    return context_of(small_convnet(), Layers.CONV, count=96)


def fresh(context: Context) -> Context:
    """The same question with a network and a generator of its own."""
    net = Net(copy.deepcopy(context.net.model), context.net.input_shape)
    return replace(context, net=net, generator=torch.Generator().manual_seed(0))


def normed(context: Context) -> Context:
    """Only the convolutions that have a BatchNorm: what slimming can score."""
    return replace(context, mask={name: kept for name, kept in context.mask.items() if name != "6.weight"})


def weights(mask: Mask) -> Mask:
    return {name: kept for name, kept in mask.items() if kept.ndim > 1}


def asked(scorer: Scorer, context: Context) -> Context:
    return normed(fresh(context)) if scorer.name == "slimming" else fresh(context)


@pytest.mark.parametrize("name", METHODS)
def test_names_and_protocol(name: str) -> None:
    assert METHODS[name].name == name and METHODS[name].granularity in ("weight", "channel")


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("name", METHODS)
def test_sparsity_is_exact_and_removed_stays_removed(trained: Context, name: str, scope: Scope) -> None:
    """Rounds of one method: weights to one weight, channels to one channel below, each round within the one before."""
    scorer, context = METHODS[name], asked(METHODS[name], trained)
    for removed in SPARSITIES:
        mask = prune_once(scorer, context, scope, removed)
        assert all(bool((mask[n] <= kept).all()) for n, kept in context.mask.items()), removed
        assert weights(mask).keys() == weights(context.mask).keys()
        pools = [[kept] for kept in weights(mask).values()] if scope is Scope.LAYER else [list(weights(mask).values())]
        for pool in pools:
            total, gone = sum(kept.numel() for kept in pool), sum(int((~kept).sum()) for kept in pool)
            if scorer.granularity == "weight":
                assert gone == round(removed * total)
            else:
                last_ones = all(int(kept.flatten(1).any(1).sum()) == 1 for kept in pool)
                assert gone <= round(removed * total)
                assert last_ones or gone > removed * total - max(kept[0].numel() for kept in pool) - 1
        context = replace(context, mask=mask)
        apply(context.net.model, mask)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "adv-admm"])
def test_the_network_is_left_as_it_was(trained: Context, name: str) -> None:
    context = asked(METHODS[name], trained)
    before = copy.deepcopy(context.net.model.state_dict())
    METHODS[name](context)
    assert states_equal(before, context.net.model.state_dict())
    assert not context.net.model.training and all(p.requires_grad for p in context.net.model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_one_generator_state_gives_one_score(trained: Context, name: str) -> None:
    one, two = (METHODS[name](asked(METHODS[name], trained)) for _ in range(2))
    assert states_equal(one, two)
    assert all(score.isfinite().all() for score in one.values())


def mlp_loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of `small_mlp`, written out."""
    h = (x.flatten(1) @ parameters["1.weight"].T + parameters["1.bias"]).clamp(min=0)
    h = (h @ parameters["3.weight"].T + parameters["3.bias"]).clamp(min=0)
    return cross_entropy(h @ parameters["5.weight"].T + parameters["5.bias"], y)


def naive_gradients(context: Context, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    parameters = {n: p.detach().double().requires_grad_() for n, p in context.net.model.named_parameters()}
    found = torch.autograd.grad(mlp_loss(parameters, x.double(), y), [parameters[n] for n in context.mask])
    return dict(zip(context.mask, found))


def test_snip_and_taylor_against_float64() -> None:
    """With all images: |w g| of the mean gradient, and the mean over batches of (w g)^2 in the drawn order."""
    context = context_of(small_mlp(), count=96)
    w = {n: p.detach().double() for n, p in context.net.model.named_parameters()}
    scores = Snip(images=96)(fresh(context))
    naive = naive_gradients(context, context.x, context.y)
    for name, score in scores.items():
        assert torch.allclose(score.double(), (w[name] * naive[name]).abs(), atol=1e-7, rtol=1e-4)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0)).split(32)
    parts = [naive_gradients(context, context.x[i], context.y[i]) for i in order]
    for name, score in Taylor(images=96)(fresh(context)).items():
        expected = torch.stack([(w[name] * part[name]).square() for part in parts]).mean(0)
        assert torch.allclose(score.double(), expected, atol=1e-10, rtol=1e-3)
    with pytest.raises(verifier.VerifierError, match="two training images"):
        Snip()(replace(fresh(context), x=context.x[:1], y=context.y[:1]))


def test_magnitude_random_and_slimming(trained: Context) -> None:
    model = trained.net.model
    assert all(torch.equal(s, model.get_parameter(n).abs()) for n, s in Magnitude()(trained).items())
    one = METHODS["random"](replace(trained, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(one["0.weight"], METHODS["random"](fresh(trained))["0.weight"])
    scores = Slimming()(normed(trained))
    assert torch.equal(scores["3.weight"][:, 2, 1, 0], model[4].weight.detach().abs())
    with pytest.raises(verifier.VerifierError, match="no BatchNorm with a scale reads layer"):
        Slimming()(trained)


def test_refill_ranks_by_what_magnitude_leaves() -> None:
    """One channel with a single large weight beats one with many middling ones that magnitude pruning removes; kept channels are whole."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
    model[0].weight.data[0] = 0.3
    model[0].weight.data[1] = 0.01
    model[0].weight.data[1, 0, 0, 0] = 1.0
    context = replace(context_of(model, Layers.CONV, epochs=0), removed=17 / 18)
    assert [float(score[0, 0, 0]) for score in Refill()(context)["0.weight"]] == [0.0, 1.0]
    mask = prune_once(Refill(), context, Scope.LAYER, 0.5)["0.weight"]
    assert mask[0].all() and not mask[1].any()  # at 0.5 magnitude leaves the nine 0.3s but for one, more than 1.0 in all
    mask = select_channels(context.net, Refill()(context), 0.5, Scope.LAYER)["0.weight"]
    assert mask[1].all() and not mask[0].any()


def test_nrs_channels_against_float64_intervals() -> None:
    """The score of a hidden neuron is the mean of tanh(1 + l u), l and u by interval arithmetic written out."""
    context = context_of(small_mlp(), count=64)
    scores = NrsChannels(images=64)(fresh(context))
    model = context.net.model
    lower, upper = ((context.x.double() + s * context.fit.eps).clamp(0, 1).flatten(1) for s in (-1, 1))
    for layer in (1, 3):
        w, b = model[layer].weight.detach().double(), model[layer].bias.detach().double()
        centre, radius = (lower + upper) / 2 @ w.T + b, (upper - lower) / 2 @ w.abs().T
        expected = (1 + (centre - radius) * (centre + radius)).tanh().mean(0)
        assert torch.allclose(scores[f"{layer}.weight"][:, 0].double(), expected, atol=1e-5)
        lower, upper = (centre - radius).clamp(min=0), (centre + radius).clamp(min=0)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(1, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4)
        self.last = nn.Linear(144, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.last((self.norm(self.b(a.relu())) + a).relu().flatten(1))


def test_channels_take_their_companions_along(trained: Context) -> None:
    net = trained.net
    assert norm_of_layer(net) == {"0": "1", "3": "4"}
    mask = select_channels(net, Magnitude()(trained), 0.5, Scope.LAYER)
    assert set(mask) == {"0.weight", "1.weight", "1.bias", "3.weight", "4.weight", "4.bias", "6.weight", "6.bias"}
    assert [int(mask[n].flatten(1).any(1).sum()) for n in ("0.weight", "3.weight", "6.weight")] == [4, 6, 5]
    context = fresh(trained)
    apply(context.net.model, mask)
    value = trained.x[:8]
    for layer in context.net.model[:8]:
        value = layer(value)
        if isinstance(layer, nn.ReLU) and value.shape[1] == 12:
            assert value[:, ~mask["4.bias"]].abs().max() == 0 and value[:, mask["4.bias"]].abs().max() > 0
    assert sparsity(mask) == sparsity(weights(mask)) == 0.5
    residual = Net(Residual().eval(), (1, 6, 6))
    assert norm_of_layer(residual) == {"b": "norm"} and value_of_layer(residual) == {"a": "a", "b": "add"}


def test_a_layer_keeps_its_last_channel(trained: Context) -> None:
    mask = select_channels(trained.net, Magnitude()(trained), 0.99, Scope.GLOBAL)
    assert all(kept.flatten(1).any(1).sum() >= 1 for kept in weights(mask).values())
    with pytest.raises(verifier.VerifierError, match="keeps more channels than live"):
        select_channels(trained.net, Magnitude()(trained), 0.1, Scope.LAYER, mask)
    with pytest.raises(verifier.VerifierError, match="sparsity is 1"):
        select_channels(trained.net, Magnitude()(trained), 1.0, Scope.LAYER)


def test_admm_pulls_weights_towards_a_sparse_copy(trained: Context) -> None:
    """With a large rho what the mask removes has come nearer to zero than without; the target's gradient is rho (W - target)."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    target = torch.randn(2, 1, 3, 3)
    net = Net(model, (1, 6, 6))
    batch = Batch(net, torch.rand(2, 1, 6, 6), torch.zeros(2).long(), 0.1, 0.1, 1.0, torch.Generator())
    gradient, = torch.autograd.grad(Proximal({"0.weight": target}, 3.0)(batch), model[0].weight)
    assert torch.allclose(gradient, 3 * (model[0].weight - target))
    left = []
    for rho in (0.0, 3.0):
        context = replace(fresh(trained), removed=0.8)
        scores = AdvAdmm(epochs=3, rho=rho)(context)
        mask = select(scores, 0.8, Scope.LAYER)
        small = torch.cat([scores[n][~kept] for n, kept in mask.items()])
        left.append(float(small.square().sum()))
        assert all(torch.equal(scores[n], context.net.model.get_parameter(n).abs()) for n in scores)
    assert left[1] < 0.5 * left[0]


def test_schedules_and_rewinding(trained: Context) -> None:
    rounds = sparsities(1 - 0.8**16, 16)
    left = [1.0, *(1 - s for s in rounds)]
    assert all(abs(after / before - 0.8) < 1e-12 for before, after in pairwise(left))
    assert sparsities(0.9, 1) == [0.9] == evenly(0.9, 1)
    assert evenly(0.8, 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    for wrong in ((1.0, 2), (-0.1, 2), (0.5, 0)):
        with pytest.raises(verifier.VerifierError):
            sparsities(*wrong)
    early = {name: torch.full_like(value, 2) for name, value in trained.net.model.state_dict().items()}
    mask = select(Magnitude()(trained), 0.5, Scope.LAYER)
    back = rewound(trained.net.model.state_dict(), early, mask)
    assert torch.equal(back["0.weight"], 2.0 * mask["0.weight"]) and bool((back["1.bias"] == 2).all())
    with pytest.raises(verifier.VerifierError, match="another network"):
        rewound(trained.net.model.state_dict(), small_mlp().state_dict(), mask)


def test_a_weight_mask_keeps_what_channels_took_along(trained: Context) -> None:
    context = fresh(trained)
    first = prune_once(Refill(), context, Scope.LAYER, 0.5)
    apply(context.net.model, first)
    second = prune_once(Magnitude(), replace(context, mask=first), Scope.LAYER, 0.8)
    assert torch.equal(second["1.bias"], first["1.bias"]) and sparsity(second) == pytest.approx(0.8, abs=1e-3)
    assert full(context.net.model, Layers.CONV).keys() == weights(first).keys()
