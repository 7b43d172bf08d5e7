"""Exported files compute what the module does, hold the zeros of its mask, are written whole or not at all, and wrong ones are refused."""
from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import verifier
from certprune.export import Form, check_export, export_model
from certprune.export.check import RELATIVE_TOLERANCE, read_weights
from certprune.export.fold import fold
from certprune.export.graph_onnx import to_onnx
from certprune.export.sparse import to_sparse
from certprune.models import ModelSpec, build_model

SHAPE = (1, 8, 8)
SPECS = {
    "paper7": ModelSpec("paper7", 0.125),
    "mlp": ModelSpec("mlp", hidden=(30, 20)),
    "resnet": ModelSpec("resnet", 0.5, blocks=4),
    "vgg16": ModelSpec("vgg16", 1 / 32),
    "wrn": ModelSpec("wrn-28-4", 1 / 16),
}
Mask = dict[str, Tensor]


@pytest.fixture(scope="module")
def images(digits: Path) -> np.ndarray:
    """Forty real ones."""
    return verifier.load_images(digits / "images.npz")[0][:40].reshape(-1, *SHAPE).astype(np.float32)


def masked(name: str, images: np.ndarray, keep_ratio: float = 0.2) -> tuple[nn.Module, Mask]:
    """A network with batch norms that have seen the images, and random weights removed."""
    torch.manual_seed(0)
    model = build_model(SPECS[name], SHAPE, 10, [0.3], [0.35])
    mask = {}
    with torch.no_grad():
        model(torch.from_numpy(images))
        for prefix, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                mask[f"{prefix}.weight"] = torch.rand_like(module.weight) < keep_ratio
                module.weight *= mask[f"{prefix}.weight"]
            elif isinstance(module, nn.BatchNorm2d):
                module.bias.normal_()
                module.weight.uniform_(0.5, 2.0)
    return model.eval(), mask


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("name", ["paper7", "mlp", "resnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vgg16", "wrn"))])
def test_every_form_is_the_network_and_as_sparse_as_its_mask(name: str, form: Form, images: np.ndarray, tmp_path: Path) -> None:
    model, mask = masked(name, images)
    report = export_model(model, SHAPE, tmp_path / "net.onnx", form, images)
    onnx.checker.check_model(onnx.load(report.path), full_check=form is not Form.SPARSE)
    check = check_export(report.path, model, images, mask)
    assert report.max_difference == check.max_difference <= RELATIVE_TOLERANCE * float(model(torch.from_numpy(images)).detach().abs().max())
    assert report.bytes == report.path.stat().st_size
    assert {layer.name for layer in report.layers} == set(mask)
    kept = sum(int(m.sum()) for m in mask.values())
    total = sum(m.numel() for m in mask.values())
    assert check.mask_sparsity == 1 - kept / total
    if form is Form.COMPACT:
        assert check.sparsity >= check.mask_sparsity
    else:
        assert check.sparsity == check.mask_sparsity
        assert all(layer.nonzero == int(mask[layer.name].sum()) for layer in report.layers)
    assert sum(layer.nonzero for layer in report.layers) == round((1 - check.sparsity) * total)


@pytest.mark.parametrize("name", ["paper7", "resnet"])
def test_the_verifier_finds_the_masks_zeros_in_the_file(name: str, images: np.ndarray, tmp_path: Path) -> None:
    """Counted by its own reader, node by node: the layer's name is the node's."""
    model, mask = masked(name, images)
    for form in (Form.MASKED, Form.SPARSE):
        graph = verifier.load_onnx(export_model(model, SHAPE, tmp_path / "net.onnx", form).path)
        found = {f"{node.name}.weight": node.constants["weight"] for node in graph.nodes if "weight" in node.constants}
        assert {key: value.shape for key, value in found.items()} == {key: tuple(value.shape) for key, value in mask.items()}
        assert all(np.array_equal(found[key] != 0, mask[key].numpy()) for key in mask)


def test_a_single_rounding_separates_the_file_from_the_network_in_float64(images: np.ndarray) -> None:
    """Each number of the file is the float32 nearest to the one that batch norms, folded in float64, give."""
    model, _ = masked("paper7", images)
    conv, norm = model[4].double(), model[5].double()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    held = {t.name: onnx.numpy_helper.to_array(t) for t in to_onnx(fold(model, SHAPE).graph).graph.initializer}
    assert np.array_equal(held["4.weight"], (conv.weight * scale[:, None, None, None]).detach().numpy().astype(np.float32))


def test_forms_shrink(images: np.ndarray, tmp_path: Path) -> None:
    """At 3 % of the weights whole channels die, and coordinates are a fraction of the dense bytes."""
    model, _ = masked("paper7", images, keep_ratio=0.03)
    sizes = {form: export_model(model, SHAPE, tmp_path / form.value, form).bytes for form in Form}
    assert sizes[Form.SPARSE] < 0.4 * sizes[Form.MASKED]
    assert sizes[Form.COMPACT] < 0.8 * sizes[Form.MASKED]


@pytest.mark.parametrize(("keep_ratio", "stored"), [(0.0, True), (0.2, True), (0.5, False), (1.0, False)])
def test_only_what_takes_fewer_bytes_is_stored_as_coordinates(keep_ratio: float, stored: bool, images: np.ndarray, tmp_path: Path) -> None:
    """A third of nonzero numbers is where 12 bytes for each of them cost as much as 4 for all. An empty list of them is read too."""
    model, _ = masked("mlp", images, keep_ratio)
    made = to_sparse(to_onnx(fold(model, SHAPE).graph))
    names = {t.values.name for t in made.graph.sparse_initializer}
    assert ("2.weight" in names) == stored
    report = export_model(model, SHAPE, tmp_path / "net.onnx", "sparse", images)
    assert set(read_weights(report.path)) == {f"{layer}.{part}" for layer in (2, 4, 6) for part in ("weight", "bias")}


class Everything(nn.Module):
    """Calls that give every other operation of the graph vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.matrix, self.leaky = nn.ConvTranspose2d(2, 3, 2, 2), nn.Parameter(torch.randn(1, 4, 8)), nn.LeakyReLU(0.2)
        self.pool, self.mean = nn.MaxPool2d(2), nn.AvgPool2d(2)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        up = self.leaky(self.up(x))
        both = torch.cat([self.pool(up), self.mean(up).sigmoid()], 1)[:, ::2]
        rows = nn.functional.pad(both, (1, 0, 0, 1))[:, :, :8, :8].clamp(-0.5, 0.8)
        mixed = torch.matmul(self.matrix, rows).permute(0, 2, 1, 3) - 0.3
        return (self.last(mixed.tanh() * mixed.mean((1, 2), keepdim=True)).sum(2) - 2.0).reshape(-1, 4, 5)[:, 1:]


def test_every_operation_is_written_as_the_verifier_understands_it(tmp_path: Path) -> None:
    """By onnxruntime and by the verifier's loader, which compares itself with onnxruntime; on a batch and alone."""
    torch.manual_seed(0)
    model = Everything()
    graph = fold(model, (2, 8, 8)).graph
    (tmp_path / "net.onnx").write_bytes(to_onnx(graph).SerializeToString())
    x = torch.randn(6, 2, 8, 8)
    runner = verifier.OnnxRunner(tmp_path / "net.onnx")
    expected = model(x).detach().reshape(6, -1).numpy()
    np.testing.assert_allclose(runner(x[0].numpy()), expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(runner.many(x.reshape(6, -1).numpy()), expected, rtol=1e-4, atol=1e-5)
    assert verifier.load_onnx(tmp_path / "net.onnx").output_shape == (1, 3, 5)


def test_the_batch_is_open_only_where_no_operation_touches_it() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu().permute(1, 0)

    for model, size in ((nn.Sequential(nn.Linear(4, 2)), "batch"), (Turned(), "")):
        dimension = to_onnx(fold(model, (4,)).graph).graph.input[0].type.tensor_type.shape.dim[0]
        assert dimension.dim_param == size


def test_a_layer_used_twice_is_refused() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(verifier.UnsupportedError, match=r"'0\.weight' has no place of its own"):
        fold(nn.Sequential(layer, nn.ReLU(), layer), (4,))


def test_an_operation_that_nothing_writes_is_named() -> None:
    nodes = (verifier.Node("x", "Input", (), (1, 4)), verifier.Node("y", "Erf", ("x",), (1, 4)))
    with pytest.raises(verifier.UnsupportedError, match="Erf"):
        to_onnx(verifier.Graph(nodes, "y"))


def test_an_unknown_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(verifier.VerifierError, match="masked, compact, sparse"):
        export_model(nn.Linear(4, 2), (4,), tmp_path / "net.onnx", "zipped")


@pytest.mark.parametrize("form", Form)
def test_the_file_of_another_network_is_refused(form: Form, images: np.ndarray, tmp_path: Path) -> None:
    """One bias off by a hundredth of the largest output is seen."""
    model, mask = masked("paper7", images)
    path = export_model(model, SHAPE, tmp_path / "net.onnx", form).path
    with torch.no_grad():
        model[-1].bias[3] += 0.01 * float(model(torch.from_numpy(images)).abs().max())
    with pytest.raises(verifier.VerifierError, match="differ from the model's by"):
        check_export(path, model, images, mask)


@pytest.mark.parametrize("form", Form)
def test_a_weight_that_its_mask_removes_is_refused(form: Form, images: np.ndarray, tmp_path: Path) -> None:
    model, mask = masked("paper7", images, keep_ratio=0.6)
    path = export_model(model, SHAPE, tmp_path / "net.onnx", form).path
    mask["4.weight"] = mask["4.weight"].clone()
    mask["4.weight"].reshape(-1)[mask["4.weight"].reshape(-1).nonzero()[0]] = False
    with pytest.raises(verifier.VerifierError, match=r"'4\.weight' are not zero although the mask removes them"):
        check_export(path, model, images, mask)


def test_a_mask_of_another_network_is_refused(images: np.ndarray, tmp_path: Path) -> None:
    model, mask = masked("mlp", images)
    path = export_model(model, SHAPE, tmp_path / "net.onnx", "masked").path
    with pytest.raises(verifier.VerifierError, match=r"no weight '99\.weight'"):
        check_export(path, model, images, {**mask, "99.weight": mask["2.weight"]})


def test_a_full_disk_leaves_the_old_file(images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = masked("mlp", images)
    path = export_model(model, SHAPE, tmp_path / "net.onnx", "masked").path
    old = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(verifier.VerifierError, match=r"No space left on device\): the older file is kept"):
        export_model(model, SHAPE, path, "compact")
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_a_model_in_training_stays_as_it_is(images: np.ndarray, tmp_path: Path) -> None:
    model, mask = masked("paper7", images)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_model(model, SHAPE, tmp_path / "net.onnx", "compact", images)
    check_export(tmp_path / "net.onnx", model, images, mask)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
