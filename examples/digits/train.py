"""How digits.onnx and images.npz were made: a small network trained against perturbed digits, written by hand as ONNX.

Needs scikit-learn (its copy of the 8 x 8 digits) and torch: `pip install scikit-learn`, then `python -m examples.digits.train`.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

HERE = Path(__file__).parent
EPS = 0.08  # of a pixel's range; a little more than the demo certifies
EPOCHS = 60
TEST_IMAGES = 20


def network() -> nn.Sequential:
    """1 x 8 x 8 pixels in [0, 1] to ten scores: two convolutions, two dense layers, 4,480 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(192, 14), nn.ReLU(), nn.Linear(14, 10),
    )  # fmt: skip


def attacked(model: nn.Module, x: Tensor, y: Tensor, steps: int = 7) -> Tensor:
    """x' in the box of radius EPS around x with a high loss: projected sign steps from a random start."""
    moved = (x + EPS * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        moved.requires_grad_(True)
        (slope,) = torch.autograd.grad(cross_entropy(model(moved), y), moved)
        moved = torch.minimum(torch.maximum(moved.detach() + EPS / 3 * slope.sign(), x - EPS), x + EPS).clamp(0, 1)
    return moved.detach()


def train(x: Tensor, y: Tensor) -> nn.Sequential:
    """Adversarial training, with weight decay so that few neurons are unstable."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(64):
            loss = cross_entropy(model(attacked(model, x[batch], y[batch])), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return model


def as_onnx(model: nn.Sequential) -> onnx.ModelProto:
    """The same network as an ONNX model of opset 13, batch 1."""
    nodes, weights, value = [], [], "input"
    for i, layer in enumerate(model):
        inputs, after = [value], f"{type(layer).__name__.lower()}_{i}"
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            for name in ("weight", "bias"):
                weights.append(numpy_helper.from_array(getattr(layer, name).detach().numpy(), f"{after}.{name}"))
                inputs.append(weights[-1].name)
        if isinstance(layer, nn.Conv2d):
            shape = {"kernel_shape": layer.kernel_size, "strides": layer.stride, "pads": layer.padding * 2}
            nodes.append(helper.make_node("Conv", inputs, [after], **shape))
        elif isinstance(layer, nn.Linear):
            nodes.append(helper.make_node("Gemm", inputs, [after], transB=1))
        else:
            nodes.append(helper.make_node({"ReLU": "Relu", "Flatten": "Flatten"}[type(layer).__name__], inputs, [after]))
        value = after
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("input", (1, 1, 8, 8)), (value, (1, 10)))]
    graph = helper.make_graph(nodes, "digits", ends[:1], ends[1:], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(digits.target)
    order = torch.randperm(len(x))
    learn, test = order[:1400], order[1400:]
    model = train(x[learn], y[learn])
    clean = (model(x[test]).argmax(1) == y[test]).float().mean().item()
    robust = (model(attacked(model, x[test], y[test], steps=40)).argmax(1) == y[test]).float().mean().item()
    print(f"test images: {clean:.1%} right, {robust:.1%} under attack at {EPS}")
    onnx.save(as_onnx(model), HERE / "digits.onnx")
    shown = test[:TEST_IMAGES]
    np.savez_compressed(HERE / "images.npz", x=(x[shown] * 16).round().numpy().astype(np.float32) / 16, y=y[shown].numpy())


if __name__ == "__main__":
    main()
