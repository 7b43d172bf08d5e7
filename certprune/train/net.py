"""A model in training, and one batch of it: forward passes, and bounds of the very same function by `verifier`.

Bounds see BatchNorm as the affine map that it was on the latest recorded forward pass: its batch mean and variance, with their gradients.
What an objective or a regulariser may ask for twice (bounds over the same box) is computed once a batch.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

import verifier
from certprune.train.folded import folded
from certprune.train.tensors import substituted

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, eq=False)
class Net:
    """A module and its trace. `input_shape`: of one sample, without the batch."""

    model: nn.Module
    input_shape: tuple[int, ...]

    @cached_property
    def trace(self) -> verifier.TorchTrace:
        with _mode(self.model, training=False):
            return verifier.trace_torch(self.model, self.input_shape)

    @cached_property
    def classes(self) -> int:
        """How many outputs the module has."""
        return self.graph({}).output_shape[-1]

    @cached_property
    def norms(self) -> dict[str, nn.Module]:
        """BatchNorm layers by module name."""
        return {name: module for name, module in self.model.named_modules() if isinstance(module, BATCH_NORMS)}

    @cached_property
    def norm_of_value(self) -> dict[str, str]:
        """For each value of the graph that a BatchNorm layer gives: that layer's name."""
        calls = self.trace.traced.graph.nodes
        return {node.name: node.target for node in calls if node.op == "call_module" and node.target in self.norms}

    def recorded(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits `(B, classes)`, and what each BatchNorm layer in training mode was given (the others know their statistics)."""
        seen: dict[str, Tensor] = {}
        live = {name: module for name, module in self.norms.items() if module.training}
        hooks = [m.register_forward_pre_hook(lambda _, given, name=name: seen.__setitem__(name, given[0])) for name, m in live.items()]
        try:
            return self.model(x), seen
        finally:
            for hook in hooks:
                hook.remove()

    def graph(self, statistics: dict[str, Tensor]) -> verifier.Graph:
        """The network as `verifier` sees it, in eval mode with these statistics of BatchNorm by buffer name (running ones where none is given)."""
        with _mode(self.model, training=False), substituted(self.model, statistics):
            return folded(self.trace.graph())


def statistics_of(seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean and variance (over the batch, unbiased=False) of what each BatchNorm layer was given, by the names of its running ones."""
    found = {}
    for name, value in seen.items():
        axes = [0, *range(2, value.ndim)]
        found[f"{name}.running_mean"] = value.mean(axes)
        found[f"{name}.running_var"] = value.var(axes, unbiased=False)
    return found


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


@contextmanager
def _running_left_alone(norms: Iterable[nn.Module]) -> Iterator[None]:
    """BatchNorm layers compute as before, but a forward pass moves no running statistics."""
    before = [(module, module.track_running_stats) for module in norms]
    for module, _ in before:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module, tracked in before:
            module.track_running_stats = tracked


@dataclass(eq=False)
class Batch:
    """One batch at one moment: `x (B, *input_shape)` in [0, 1], labels `y (B,)`, `eps` the radius of now and `final_eps` that of the end.

    `progress`: the share of the eps ramp that is behind, 0 to 1. All randomness comes from `generator`. `latest`: the logits of the latest
    recorded pass.

    In training mode BatchNorm makes one module several functions of a point:

    | method | BatchNorm's statistics | running ones | for |
    |---|---|---|---|
    | `logits` (`clean`) | of its own inputs, recorded | move | the pass that a step learns the statistics from |
    | `search` | of its own inputs | stay | finding points for `logits` |
    | `at` | those of the latest recorded pass, with gradients | stay | losses at points beside losses of bounds |
    | `frozen` | the same as constants: cheaper | stay | finding points for `at` |

    Bounds bound `at`. In eval mode all four are one function.
    """

    net: Net
    x: Tensor
    y: Tensor
    eps: float
    final_eps: float
    progress: float
    generator: torch.Generator
    latest: Tensor | None = field(default=None, init=False)
    _seen: dict[str, Tensor] = field(default_factory=dict, init=False)
    _statistics: dict[str, Tensor] | None = field(default=None, init=False)
    _graph: verifier.Graph | None = field(default=None, init=False)
    _bounds: dict[str, verifier.BoundResult] = field(default_factory=dict, init=False)

    def logits(self, x: Tensor) -> Tensor:
        """The model at `x (B, *input_shape)`: `(B, classes)`. Its BatchNorm statistics are those of bounds asked from now on."""
        self.latest, self._seen = self.net.recorded(x)
        self._statistics, self._graph = None, None
        self._bounds.clear()
        return self.latest

    def search(self, x: Tensor) -> Tensor:
        """The model at `x (K, *input_shape)`: `(K, classes)`; nothing is recorded, and running statistics stay."""
        with _running_left_alone(self.net.norms.values()):
            return self.net.model(x)

    def at(self, x: Tensor) -> Tensor:
        """The function that bounds speak of at `x (K, *input_shape)`: `(K, classes)`, differentiable in the statistics too."""
        return verifier.execute(self.graph(), x.unsqueeze(1)).flatten(1)

    def frozen(self, x: Tensor) -> Tensor:
        """As `at`, its statistics constants."""
        constant = {name: value.detach() for name, value in self.statistics().items()}
        with _mode(self.net.model, training=False), substituted(self.net.model, constant):
            return self.net.model(x)

    def statistics(self) -> dict[str, Tensor]:
        """BatchNorm's statistics of the latest recorded pass (of one over the batch itself, if there was none) by buffer name."""
        if self._statistics is None:
            if not self._seen and any(module.training for module in self.net.norms.values()):
                _ = self.clean
            self._statistics = statistics_of(self._seen)
        return self._statistics

    def graph(self) -> verifier.Graph:
        """The network that bounds speak of."""
        if self._graph is None:
            self._graph = self.net.graph(self.statistics())
        return self._graph

    def part(self, index: Tensor) -> Batch:
        """Some images `index (K,)` of the batch, under the statistics of the whole; what it records is its own."""
        part = replace(self, x=self.x[index], y=self.y[index])
        part._statistics, part._graph = self.statistics(), self.graph()
        return part

    @cached_property
    def clean(self) -> Tensor:
        """The logits at the batch itself."""
        return self.logits(self.x)

    def noise(self) -> Tensor:
        """Uniform in [-1, 1], `(B, *input_shape)`."""
        return 2 * torch.rand(self.x.shape, generator=self.generator, dtype=self.x.dtype).to(self.x.device) - 1

    def box(self, center: Tensor | None = None, radius: float | None = None) -> verifier.Box:
        """The pixels within `radius` (eps) of `center` (x), cut at [0, 1]; `(B, 1, *input_shape)` as the graph wants it."""
        center, radius = (self.x if center is None else center).unsqueeze(1), self.eps if radius is None else radius
        return verifier.Box((center - radius).clamp(0, 1), (center + radius).clamp(0, 1))

    def rows(self) -> Tensor:
        """Margins y_label - y_j as rows over the outputs, `(B, classes, classes)`; the label's own row is zero."""
        eye = torch.eye(self.net.classes, dtype=self.x.dtype, device=self.x.device)
        return eye[self.y].unsqueeze(1) - eye.unsqueeze(0)

    def request(self, box: verifier.Box | None = None, **known: object) -> verifier.BoundRequest:
        """The question for the lower bounds of all margins over a box (the eps box)."""
        return verifier.BoundRequest(self.graph(), box or self.box(), rows=self.rows(), upper_too=False, **known)

    def ibp(self) -> verifier.BoundResult:
        """Interval bounds of the margins `(B, classes)` over the eps box, and of every neuron."""
        if "ibp" not in self._bounds:
            self._bounds["ibp"] = verifier.ibp(self.request())
        return self._bounds["ibp"]

    def crown_ibp(self, hardest: int) -> Tensor:
        """Margins `(B, classes)`: for the `hardest` ones of each image at the image itself, CROWN's lower bounds over interval bounds of neurons;

        the others as they are at the image, which bounds them from above. With `hardest` at least classes - 1 all are lower bounds.
        """
        margins = self.clean.gather(1, self.y.unsqueeze(1)) - self.clean
        others = margins.detach().scatter(1, self.y.unsqueeze(1), torch.inf)
        chosen = others.topk(min(hardest, self.net.classes - 1), largest=False).indices
        rows = self.rows().gather(1, chosen.unsqueeze(2).expand(-1, -1, self.net.classes))
        known = self.ibp().intermediate
        request = verifier.BoundRequest(self.graph(), self.box(), rows=rows, upper_too=False, intermediate=known)
        return margins.scatter(1, chosen, verifier.crown(request, verifier.IbpOnly()).lower)

    def crown(self) -> verifier.BoundResult:
        """CROWN bounds of the margins and of every neuron that intervals leave unstable: tight, and dear."""
        if "crown" not in self._bounds:
            self._bounds["crown"] = verifier.crown(self.request())
        return self._bounds["crown"]
