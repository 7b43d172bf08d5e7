"""The stages of the loop, each a function of its inputs and the seed: train, prune, fine-tune. Export and measurement: see measured.py.

    images ---> train ---> prune ---> finetune ---> export ---> measure
                             ^                                     |
                             +------------- findings --------------+
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import verifier
from certprune.checkpoint import Architecture, Saved, read_tensors, write_tensors
from certprune.config import Arm, DataConfig, check, digest, plain
from certprune.models import ModelSpec
from certprune.prune.mask import apply, full, sparsity
from certprune.prune.schedule import prune_once, rewound
from certprune.prune.scorer import Context, Findings
from certprune.train.fit import Checkpoint, Epoch, FitConfig, Progress, Task, fit
from certprune.train.initialise import Initialise, initialise_for_ibp
from certprune.train.net import Net
from certprune.train.weights import Weights

Listener = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """What is trained on `(N, C, H, W)`, 8-bit or in [0, 1], and the splits to choose by and to test on."""

    x: Tensor
    y: Tensor
    selection: verifier.Split
    test: verifier.Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    def architecture(self, spec: ModelSpec) -> Architecture:
        return Architecture(spec, tuple(self.x.shape[1:]), len(self.classes), self.mean, self.std)


def read_images(config: DataConfig, seed: int) -> Images:
    """The splits of a data set; the selection is drawn from the training images by the seed."""
    data = verifier.load_dataset(config.name, config.data_dir)
    check(len(data.test) > 0, "data.name", config.name, "a data set with test images")
    train, selection = data.selection(config.selection, seed)
    if config.train_limit is not None:
        train = train.of(slice(config.train_limit))
    mean, std = data.moments()
    std = std.clip(min=1e-6)
    return Images(as_tensor(train.x), torch.from_numpy(train.y), selection, data.test, tuple(mean.tolist()), tuple(std.tolist()), data.classes)


def as_tensor(x: verifier.Images) -> Tensor:
    """Bytes stay bytes, which the training scales batch by batch; anything else becomes float32 in [0, 1]."""
    is_bytes = x.stored.dtype.name == "uint8" and x.scale == 255
    return torch.tensor(x.stored if is_bytes else x[:])


def initial(architecture: Architecture, seed: int, how: Initialise = Initialise.DEFAULT) -> Saved:
    """The untrained network of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture.build()
    if how is Initialise.IBP:
        initialise_for_ibp(model, torch.Generator().manual_seed(seed))
    return Saved(architecture, _state(model))


@dataclass(frozen=True, slots=True)
class Training:
    """A training that `partial` keeps after each epoch, and goes on from; `stop` ends it after so many epochs, None after all.

    A `partial` of another training (of other settings, weights or images) is passed over.
    """

    config: FitConfig
    partial: Path
    device: torch.device
    listener: Listener
    stop: int | None = None


def train(saved: Saved, x: Tensor, y: Tensor, training: Training, stage: str) -> Saved:
    """The network after its training, removed weights still at zero; with no epochs, as it was."""
    model = saved.model().to(training.device)
    mask = {name: kept.to(training.device) for name, kept in saved.mask.items()}
    apply(model, mask)
    task = Task(Net(model, saved.architecture.input_shape), Weights(model, mask), x, y, training.config)
    of = digest({"fit": training.config, "architecture": saved.architecture, "tensors": _hash([*saved.state.values(), *saved.mask.values(), x, y])})
    state = _resumed(training.partial, of)
    stop = training.config.epochs if training.stop is None else training.stop
    epochs = [] if state is None else state.epochs
    if state is not None and len(epochs) >= stop:
        model.load_state_dict(state.model)  # cut after its last epoch: one more would be another network
    elif stop > 0:
        for after in fit(task, state, training.listener):
            write_tensors(_plain(after) | {"of": of}, training.partial)
            epochs = after.epochs
            if len(epochs) >= stop:
                break
    record = {"stage": stage, "fit": plain(training.config), "epochs": [asdict(epoch) for epoch in epochs]}
    return replace(saved, state=_state(model), history=(*saved.history, record))


def _plain(state: Checkpoint) -> dict[str, Any]:
    epochs = [asdict(epoch) for epoch in state.epochs]
    return {"epochs": epochs, "model": state.model, "learned": state.learned, "optimizer": state.optimizer}


def _hash(tensors: Iterable[Tensor]) -> str:
    """Sixty-four hexadecimal letters that differ where a tensor's numbers do."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().flatten().numpy())
    return found.hexdigest()


def _resumed(partial: Path, of: str) -> Checkpoint | None:
    """The state that a training of this digest left, None where there is none."""
    if not partial.exists():
        return None
    content = read_tensors(partial)
    if content.get("of") != of:
        return None
    return Checkpoint([Epoch(**epoch) for epoch in content["epochs"]], content["model"], content["learned"], content["optimizer"])


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """One pruning: up to the sparsity `removed`, on these images; `early` are the weights to rewind to, `findings` what verification found.

    Images that findings name by index are among `x`.
    """

    arm: Arm
    removed: float
    x: Tensor
    y: Tensor
    early: Saved | None
    findings: Findings | None
    seed: int
    device: torch.device


def prune(saved: Saved, task: Round, listener: Listener = lambda _: None) -> Saved:
    """The network with more weights removed; rewound, its living weights are those of `early`."""
    model = saved.model().to(task.device)
    mask = saved.mask or full(model, task.arm.layers)
    context = Context(
        Net(model, saved.architecture.input_shape), {name: kept.to(task.device) for name, kept in mask.items()}, task.x, task.y,
        task.arm.finetune, task.removed, torch.Generator().manual_seed(task.seed), task.findings, listener,
    )
    kept = {name: m.cpu() for name, m in prune_once(task.arm.method, context, task.arm.scope, task.removed).items()}
    state = _state(model)  # a method that trains has moved the weights
    if task.early is not None:
        state = rewound(state, task.early.state, kept)
    after = Saved(saved.architecture, state).model()
    apply(after, kept)
    record = {"stage": "prune", "method": plain(task.arm.method), "sparsity": sparsity(kept), "rewound": task.early is not None}
    return replace(saved, state=_state(after), mask=kept, history=(*saved.history, record))


def with_repeats(images: Images, found: tuple[int, ...], repeats: int) -> tuple[Tensor, Tensor]:
    """The training images followed by the selection's images `found`, so often."""
    if not found:
        return images.x, images.y
    more = images.selection.of(list(found) * repeats)
    return torch.cat([images.x, as_tensor(more.x).to(images.x.dtype)]), torch.cat([images.y, torch.from_numpy(more.y)])


def findings_of(recorded: dict[str, Any], net: Net, first: int) -> Findings:
    """What a measurement recorded, by the names and shapes of the network in training; the image `found[k]` has the index `first + k`.

    An exported network of the same shapes has the same ReLUs in the same order.
    """
    values = {node.name: node for node in net.graph({}).nodes}
    read = [node.inputs[0] for node in values.values() if node.op == "Relu"]
    names = recorded["relus"]
    if len(read) != len(names):
        raise verifier.VerifierError(f"The measured network has {len(names)} ReLUs and the trained one {len(read)}: they are not the same network.")
    splits = {}
    for value, name in zip(read, names):
        counts = torch.zeros(values[value].shape)
        for neuron, times in recorded["splits"].get(name, ()):
            counts.view(-1)[neuron] += times
        splits[value] = counts
    at = {image: first + k for k, image in enumerate(found_images(recorded))}
    undecided, falsified = (tuple(at[image] for image in recorded[kind]) for kind in ("undecided", "falsified"))
    return Findings(splits, undecided, falsified)


def found_images(recorded: dict[str, Any]) -> tuple[int, ...]:
    """The images of the split that were not certified although they are classified rightly."""
    return tuple(sorted({*recorded["undecided"], *recorded["falsified"]}))
