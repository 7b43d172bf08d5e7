"""The networks by name: sizes as published, readable by the verifier at every input size, normalisation inside."""
from __future__ import annotations

import pytest
import torch
from torch import nn

import verifier
from certprune.models import MODEL_NAMES, ModelSpec, Normalize, build_model

SHAPES = ((1, 8, 8), (1, 28, 28), (3, 32, 32))
TINY = {"vgg16": 1 / 32, "wrn-28-4": 1 / 16}


def built(name: str, shape: tuple[int, int, int], **more: object) -> nn.Module:
    spec = ModelSpec(name, **{"width": TINY.get(name, 0.25), **more})
    return build_model(spec, shape, 10, [0.4] * shape[0], [0.25] * shape[0]).eval()


def weight_shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in model.parameters() if p.ndim > 1]


@pytest.mark.parametrize(
    ("name", "shape"),
    [pytest.param(name, shape, marks=[pytest.mark.slow] if name in TINY and shape != SHAPES[0] else []) for name in MODEL_NAMES for shape in SHAPES],
)
def test_the_verifier_reads_every_network_at_every_size(name: str, shape: tuple[int, int, int]) -> None:
    graph = verifier.load_torch(built(name, shape), shape)
    assert graph.output_shape == (1, 10)


@pytest.mark.parametrize("blocks", [2, 4])
def test_a_resnet_has_the_asked_number_of_blocks(blocks: int) -> None:
    """The competition's resnet_2b and resnet_4b have five and nine convolutions, two of the four blocks with a 1x1 shortcut."""
    convolutions = [s for s in weight_shapes(built("resnet", (3, 32, 32), width=1.0, blocks=blocks)) if len(s) == 4]
    assert sum(s[2:] == (3, 3) for s in convolutions) == 1 + 2 * blocks
    assert sum(s[2:] == (1, 1) for s in convolutions) == blocks // 2


PUBLISHED = {
    "paper7": [(32, 3, 3, 3), (64, 32, 4, 4), (64, 64, 3, 3), (128, 64, 4, 4), (128, 128, 4, 4), (100, 2048), (10, 100)],
    "oval-base": [(8, 3, 4, 4), (16, 8, 4, 4), (100, 1024), (10, 100)],
    "oval-wide": [(16, 3, 4, 4), (32, 16, 4, 4), (100, 2048), (10, 100)],
    "oval-deep": [(8, 3, 4, 4), (8, 8, 3, 3), (8, 8, 3, 3), (8, 8, 4, 4), (100, 512), (10, 100)],
    "cnn7": [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (128, 128, 3, 3), (512, 32768), (10, 512)],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_width_one_is_the_published_network(name: str) -> None:
    assert weight_shapes(built(name, (3, 32, 32), width=1.0)) == PUBLISHED[name]


def test_the_deep_networks_have_the_published_numbers_of_parameters() -> None:
    """WRN-28-4 has 5.85 million; HYDRA's VGG16 sees 512 * 2 * 2 values after the last convolution."""
    assert sum(p.numel() for p in built("wrn-28-4", (3, 32, 32), width=1.0).parameters()) == pytest.approx(5.85e6, rel=1e-2)
    vgg = weight_shapes(built("vgg16", (3, 32, 32), width=1.0))
    assert [s[0] for s in vgg[:13]] == [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert vgg[13:] == [(256, 2048), (256, 256), (10, 256)]


def test_the_normalisation_comes_first() -> None:
    model = build_model(ModelSpec("paper7", 0.125), (3, 8, 8), 10, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)).eval()
    x = torch.rand(4, 3, 8, 8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    assert isinstance(model[0], Normalize)
    torch.testing.assert_close(model(x), model[1:]((x - mean[:, None, None]) / std[:, None, None]))


def test_the_seed_decides_the_weights_and_a_new_network_is_in_training_mode() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build_model(ModelSpec("resnet"), (1, 8, 8), 10, [0.0], [1.0]))
    assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), models[1].parameters()))
    assert all(module.training for module in models[0].modules())


@pytest.mark.parametrize(
    ("spec", "shape", "classes", "std", "said"),
    [
        (ModelSpec("paper8"), (1, 8, 8), 10, [1.0], "paper7, oval-base"),
        (ModelSpec("paper7", 0.0), (1, 8, 8), 10, [1.0], "width"),
        (ModelSpec("paper7"), (1, 4, 8), 10, [1.0], "8x8"),
        (ModelSpec("paper7"), (1, 8, 8), 1, [1.0], "two"),
        (ModelSpec("paper7"), (1, 8, 8), 10, [0.0], "positive"),
        (ModelSpec("paper7"), (3, 8, 8), 10, [1.0], "3 number"),
        (ModelSpec("resnet", blocks=3), (1, 8, 8), 10, [1.0], "2 or 4"),
    ],
)
def test_what_no_network_has_is_refused(spec: ModelSpec, shape: tuple[int, int, int], classes: int, std: list[float], said: str) -> None:
    with pytest.raises(verifier.VerifierError, match=said):
        build_model(spec, shape, classes, [0.0], std)
