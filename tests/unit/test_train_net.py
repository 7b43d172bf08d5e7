"""A batch's four views of a module with BatchNorm, the bounds that belong to them, and tensors put in the place of a module's own."""
from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import verifier
from certprune.train.attack import adversarial, input_gradient, inside
from certprune.train.net import Batch, Net, statistics_of
from certprune.train.tensors import substituted
from tests.tiny_net import SHAPE, forward, layers_of, tiny_images, tiny_net
from tests.tolerances import EXACT

EPS = 0.07


def batch_of(model: nn.Module, seed: int = 0) -> Batch:
    x, y = tiny_images(seed)
    return Batch(Net(model, SHAPE), x, y, EPS, EPS, 1.0, torch.Generator().manual_seed(0))


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_bounds_are_of_the_network_with_the_clean_statistics_folded_in() -> None:
    model = tiny_net()
    batch = batch_of(model)
    ours = batch.ibp()
    folded = deepcopy(model).eval()
    seen = batch.x
    with torch.no_grad():
        for k, layer in enumerate(model):
            if isinstance(layer, nn.BatchNorm2d):
                folded[k].running_mean.copy_(seen.mean((0, 2, 3)))
                folded[k].running_var.copy_(((seen - seen.mean((0, 2, 3), keepdim=True)) ** 2).mean((0, 2, 3)))
                seen = folded[k](seen)
            else:
                seen = layer(seen)
    graph = verifier.load_torch(folded, SHAPE)
    theirs = verifier.ibp(verifier.BoundRequest(graph, batch.box(), rows=batch.rows(), upper_too=False))
    torch.testing.assert_close(ours.lower, theirs.lower, rtol=0, atol=EXACT)
    for name, box in theirs.intermediate.items():
        torch.testing.assert_close(ours.intermediate[name].lower, box.lower, rtol=0, atol=EXACT)
    other = verifier.ibp(verifier.BoundRequest(verifier.load_torch(deepcopy(model).eval(), SHAPE), batch.box(), rows=batch.rows(), upper_too=False))
    assert float((ours.lower - other.lower).detach().abs().max()) > 0.01, "running statistics give other bounds: the test can fail"


def test_the_four_views_of_a_module_in_training() -> None:
    model = tiny_net()
    batch = batch_of(model)
    point = (batch.x + EPS * batch.noise()).clamp(0, 1)
    _ = batch.clean
    moved = buffers(model)
    clean_statistics, own_statistics = forward(layers_of(model, batch.x), point), forward(layers_of(model, point), point)
    for view in (batch.at, batch.frozen):
        torch.testing.assert_close(view(point), clean_statistics, rtol=0, atol=EXACT)
    torch.testing.assert_close(batch.search(point), own_statistics, rtol=0, atol=EXACT)
    assert same(moved, buffers(model)) and model.training
    torch.testing.assert_close(batch.logits(point), own_statistics, rtol=0, atol=EXACT)
    assert not same(moved, buffers(model))
    torch.testing.assert_close(batch.at(batch.x), forward(layers_of(model, point), batch.x), rtol=0, atol=EXACT)


def test_in_eval_mode_all_views_are_the_module() -> None:
    model = tiny_net().eval()
    batch = batch_of(model)
    before, expected = buffers(model), model(batch.x)
    for view in (batch.logits, batch.search, batch.at, batch.frozen):
        torch.testing.assert_close(view(batch.x), expected, rtol=0, atol=EXACT)
    assert same(before, buffers(model)) and not model.training
    graph = verifier.load_torch(model, SHAPE)
    theirs = verifier.ibp(verifier.BoundRequest(graph, batch.box(), rows=batch.rows(), upper_too=False))
    torch.testing.assert_close(batch.ibp().lower, theirs.lower, rtol=0, atol=EXACT)


def test_a_part_has_the_statistics_of_the_whole() -> None:
    batch = batch_of(tiny_net())
    chosen = torch.tensor([4, 1])
    torch.testing.assert_close(batch.part(chosen).ibp().lower, batch.ibp().lower[chosen], rtol=0, atol=EXACT)


def test_a_recorded_pass_forgets_bounds_over_older_statistics() -> None:
    batch = batch_of(tiny_net())
    before = batch.ibp().lower
    assert batch.ibp().lower is before
    batch.logits(batch.x * 0.5)
    assert float((batch.ibp().lower - before).detach().abs().max()) > 1e-3


def test_statistics_are_those_that_batch_norm_uses() -> None:
    given = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = nn.BatchNorm2d(2).double()
    found = statistics_of({"": given})
    shape = (1, 2, 1, 1)
    expected = (given - found[".running_mean"].reshape(shape)) / (found[".running_var"].reshape(shape) + norm.eps).sqrt()
    torch.testing.assert_close(norm(given), expected, rtol=0, atol=EXACT)


def test_adversarial_points_stay_in_the_box_and_carry_no_gradient() -> None:
    batch = batch_of(tiny_net())
    box = batch.box()
    for steps in (0, 1, 5):
        point = adversarial(batch, batch.search, box, steps, 3.0)
        assert bool((point >= box.lower.squeeze(1)).all()) and bool((point <= box.upper.squeeze(1)).all())
        assert not point.requires_grad
    assert torch.equal(inside(box, point), point)
    with torch.no_grad():
        assert float(input_gradient(batch.search, batch.x, batch.y).abs().max()) > 0


def test_substituted_tensors_are_used_and_receive_gradients() -> None:
    model = tiny_net().eval()
    x, _ = tiny_images()
    weight, mean = torch.zeros(3, 12, dtype=torch.float64, requires_grad=True), torch.ones(2, dtype=torch.float64)
    before = model(x)
    with substituted(model, {"7.weight": weight, "1.running_mean": mean}):
        assert torch.equal(model[1].running_mean, mean)
        inner = model(x)
    torch.testing.assert_close(inner, model[7].bias.expand_as(inner))
    (gradient,) = torch.autograd.grad(inner.sum(), weight)
    assert float(gradient.abs().max()) > 0
    assert torch.equal(model(x), before)


def test_substituted_restores_after_an_exception_and_when_nested() -> None:
    model = tiny_net()
    own = dict(model.named_parameters())
    with pytest.raises(ZeroDivisionError), substituted(model, {"7.bias": torch.zeros(3)}):
        with substituted(model, {"7.bias": torch.ones(3), "0.weight": own["0.weight"] * 2}):
            assert float(model[7].bias.sum()) == 3
        assert float(model[7].bias.sum()) == 0
        raise ZeroDivisionError
    assert all(own[name] is parameter for name, parameter in model.named_parameters())
    with pytest.raises(KeyError, match=r"7\.wieght"), substituted(model, {"7.bias": torch.zeros(3), "7.wieght": torch.zeros(3)}):
        pass
    assert all(own[name] is parameter for name, parameter in model.named_parameters())
