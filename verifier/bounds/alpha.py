"""alpha-CROWN: the free planes of every row optimised by projected gradient ascent.

The parts: rows of a chunk share their start (adaptive planes); each row owns one alpha for each unstable neuron (or each window
coordinate) that it passes; Adam steps ascend the sum of the rows' bounds, alphas are clamped to [0, 1], and the best bound seen is kept
for every row.

Intermediate layers are optimised forwards, each row for its own bound. That loses nothing against optimising them for the output's sake:
the planes of later layers only improve when a box shrinks, and no two rows share an alpha, so the best box of a layer is the one whose
rows are each the best. Rows of neurons that are no longer unstable are left out, and what is optimised is thrown away with its chunk:
memory never holds more than one chunk's alphas.

Ref: Xu et al., arXiv:2011.13824.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from verifier.bounds.backward import FixedPlanes, Planes, Steps, elementwise_step, joint_step, lower_bounds
from verifier.bounds.chunks import Chunk, unit_rows
from verifier.bounds.crown import (
    DEFAULT_MEMORY_BYTES,
    IbpThenCrown,
    Intermediate,
    State,
    bound_neurons,
    bound_output,
    propagate,
    tighter,
)
from verifier.bounds.engine import BoundRequest, BoundResult
from verifier.bounds.ibp import output_bounds, signed_rows, split_sides
from verifier.bounds.network import Network, prepare
from verifier.bounds.rows import Frame, Rows, densify, dot, mask_outside
from verifier.box import Box, flat
from verifier.errors import VerifierError
from verifier.form import Relaxation
from verifier.graph.ir import Graph, Node
from verifier.ops import ElementwiseOp, NonlinearOp
from verifier.ops.affine import align
from verifier.ops.rule import Alpha

# A pass keeps every node's coefficients for its gradient, and Adam three values for each alpha: about this many times CROWN's memory.
_MEMORY_SHARE = 12
# Gathered columns pay while they are this much fewer than all.
_SPARSE_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class AlphaConfig:
    """`iterations` Adam steps of `learning_rate`, multiplied by `decay` after each, for the rows of the output; `intermediate_iterations`
    for those of hidden layers (None: the same number; 0: hidden layers keep their CROWN bounds)."""

    iterations: int = 20
    learning_rate: float = 0.1
    decay: float = 0.98
    intermediate_iterations: int | None = None

    def __post_init__(self) -> None:
        if self.iterations < 0 or (self.intermediate_iterations or 0) < 0:
            raise VerifierError(f"alpha-CROWN got {self.iterations} and {self.intermediate_iterations} iterations: give numbers from 0.")
        if not self.learning_rate > 0:
            raise VerifierError(f"alpha-CROWN's learning rate is {self.learning_rate}: give a positive number.")


def alpha_crown(request: BoundRequest, config: AlphaConfig | None = None, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> BoundResult:
    """CROWN bounds with optimised planes, in the output's rows and in the hidden layers. Not differentiable: training uses `crown`.

    Raises:
        OutOfMemory: not even a single row fits into memory.

    Sound: in real arithmetic, for every alpha in [0, 1]; what the optimiser does cannot harm.
    """
    config = AlphaConfig() if config is None else config
    with torch.no_grad():
        network = prepare(_detached(request.graph), request.box.lower)
        strategy = IbpThenCrown()
        hidden = config.iterations if config.intermediate_iterations is None else config.intermediate_iterations

        def refine(state: State, name: str, mask: Tensor, box: Box) -> Box:
            return _optimise_neurons(network, state, name, (mask, box), _Schedule(hidden, config, memory_bytes, strategy))

        state = propagate(network, request, strategy, memory_bytes, refine if hidden else None)

        def bound(rows: Rows) -> Tensor:
            return optimise(network, state, (network.output.name, rows), (config.iterations, config), stop_at=torch.inf)

        bounds = bound_output(network, signed_rows(request), max(1, memory_bytes // _MEMORY_SHARE), bound)
        lower, upper = tighter(split_sides(bounds, request), output_bounds(network, request, state.boxes))
    return BoundResult(lower, upper, state.intermediate)


def _detached(graph: Graph) -> Graph:
    """The graph without gradient links: only alphas are to be differentiated in."""

    def cut(value: Any) -> Any:
        return value.detach() if isinstance(value, Tensor) else value

    return replace(graph, nodes=tuple(replace(n, constants={k: cut(v) for k, v in n.constants.items()}) for n in graph.nodes))


@dataclass(frozen=True, slots=True)
class _Schedule:
    iterations: int
    config: AlphaConfig
    memory_bytes: int
    strategy: Intermediate


def _optimise_neurons(network: Network, state: State, name: str, task: tuple[Tensor, Box], schedule: _Schedule) -> Box:
    """The box of a node after its unstable neurons' rows were optimised; `task` is who might be unstable, and the box so far."""
    mask, box = task
    readers = [(node, network.rules[node.name]) for node in network.nodes[1:] if name in node.inputs]
    readers = [(node, rule) for node, rule in readers if isinstance(rule, NonlinearOp)]
    if all(isinstance(rule, ElementwiseOp) for _, rule in readers):
        mask = mask & torch.stack([rule.unstable(node, box)[0] for node, rule in readers]).any(0)
    by_sign = network.decided_by_sign(name)

    def by_rows(target: str, chunk: Chunk, signs: Tensor) -> Tensor:
        start, rows, bias = unit_rows(network, target, chunk, signs)
        stop_at = -bias if by_sign else torch.inf
        return bias + optimise(network, state, (start, rows), (schedule.iterations, schedule.config), stop_at)

    state.boxes[name] = box
    memory_bytes = max(1, schedule.memory_bytes // _MEMORY_SHARE)
    return bound_neurons(network, (name, mask), state, memory_bytes, (schedule.strategy, by_rows))


def optimise(
    network: Network, state: State, rows: tuple[str, Rows], effort: tuple[int, AlphaConfig], stop_at: Tensor | float = torch.inf
) -> Tensor:
    """The best bound of each row over the iterations, `(G, S)`; a row that exceeds `stop_at` rests, and when all do, the work ends.

    So a row's bound does not depend on which rows share its chunk.

    `rows`: the node to start at and its rows; `effort`: the number of iterations and the settings of the optimiser.
    """
    (target, start), (iterations, config) = rows, effort
    fixed = FixedPlanes(network, state.relaxations)
    best = lower_bounds(network, target, start, fixed, state.region)
    if not iterations or not best.numel():
        return best
    planes = OptimisedPlanes(network, state, fixed)
    adam = Adam(config.learning_rate, config.decay)
    for step in range(iterations + 1):
        with torch.enable_grad():
            bounds = lower_bounds(network, target, start, planes, state.region)
            total = bounds.sum()
        best = torch.where(best > stop_at, best, torch.maximum(best, bounds.detach()))
        if step == iterations or not planes.alphas or bool((best > stop_at).all()):
            break
        gradients = torch.autograd.grad(total, list(planes.alphas.values()), allow_unused=True)
        adam.ascend(planes.alphas, gradients)
    return best


@dataclass(slots=True)
class Adam:
    """Projected Adam: ascends, then clamps to [0, 1]. (torch.optim is not used: its first use imports a compiler for a second.)

    Ref: Kingma and Ba, arXiv:1412.6980, algorithm 1.
    """

    learning_rate: float
    decay: float
    step: int = 0
    moments: dict[tuple[str, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def ascend(self, alphas: dict[tuple[str, int], Tensor], gradients: tuple[Tensor | None, ...]) -> None:
        """One step on every alpha that has a gradient, in place."""
        self.step += 1
        first_scale, second_scale = 1 - 0.9**self.step, 1 - 0.999**self.step
        for (key, alpha), gradient in zip(alphas.items(), gradients, strict=True):
            if gradient is None:
                continue
            if key not in self.moments:
                self.moments[key] = torch.zeros_like(alpha), torch.zeros_like(alpha)
            mean, square = self.moments[key]
            mean.mul_(0.9).add_(gradient, alpha=0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            root = (square / second_scale).sqrt_().add_(1e-8)
            alpha.detach().addcdiv_(mean, root, value=self.learning_rate / first_scale).clamp_(0, 1)
        self.learning_rate *= self.decay


@dataclass(slots=True)
class Site:
    """What a chunk's rows meet at one nonlinear node: its gathered boxes, and the columns that are free.

    `columns`: the flattened coordinates that are unstable in some problem of the chunk; None: all of them are treated as free.
    `kept`: planes of the other columns, where the function is affine, zero in the free ones. `family`: an elementwise function's planes by
    alpha.
    """

    boxes: tuple[Box, ...]
    family: Callable[[Alpha], Relaxation] | None = None
    columns: Tensor | None = None
    kept: Relaxation | None = None


@dataclass(slots=True)
class OptimisedPlanes:
    """Planes moved by alphas that belong to single rows; nodes without free planes take the fixed ones.

    `alphas` and `sites` fill at the first pass: keys are the node's name, for alphas with the plane's number.
    """

    network: Network
    state: State
    fixed: Planes
    alphas: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)

    def step(self, node: Node, rows: Rows) -> tuple[tuple[Rows, ...], Tensor]:
        rule = self.network.rules[node.name]
        if node.name not in self.sites:
            self.sites[node.name] = self._site(node, rows.frame)
        site = self.sites[node.name]
        count = rows.coeff.shape[:2]
        if not isinstance(rule, ElementwiseOp):
            return self._joint(node, rows, site) if site.boxes else self.fixed.step(node, rows)
        if site.columns is None:
            alphas = self._alphas(node, site.boxes, count)
            if not alphas:
                return self.fixed.step(node, rows)
            return elementwise_step(mask_outside(rows, node.shape), Steps.of(site.family(alphas)))
        return self._sparse(node, rows, site)

    def _site(self, node: Node, frame: Frame) -> Site:
        rule = self.network.rules[node.name]
        assert isinstance(rule, NonlinearOp)
        boxes = self.network.boxes_of(node, self.state.boxes)
        if not isinstance(rule, ElementwiseOp):
            rank = len(node.shape)
            if not rule.start(node, *boxes):
                return Site(())
            return Site(tuple(
                Box(*(frame.gather(align(bound, rank)) for bound in (box.lower, box.upper))) for box in boxes
            ))
        box = Box(frame.gather(boxes[0].lower), frame.gather(boxes[0].upper))
        if frame.window is not None:
            return Site((box,), rule.family(node, box))
        free = flat(rule.unstable(node, box)[0], 2)
        columns = free.any(0).any(0).nonzero().flatten()
        if columns.numel() > _SPARSE_SHARE * free.shape[-1]:
            return Site((box,), rule.family(node, box))
        some = Box(flat(box.lower, 2)[..., columns], flat(box.upper, 2)[..., columns])
        planes = rule.relax(node, box)
        kept = Relaxation(*(
            flat(getattr(planes, name), 2).index_fill(-1, columns, 0.0)
            for name in ("lower_slope", "lower_offset", "upper_slope", "upper_offset")
        ))
        return Site((some,), rule.family(node, some), columns, kept)

    def _alphas(self, node: Node, boxes: tuple[Box, ...], count: torch.Size) -> tuple[Tensor, ...]:
        """The node's alphas, each `(G, S, ...)`; made from the adaptive start when first met."""
        rule = self.network.rules[node.name]
        assert isinstance(rule, NonlinearOp)
        if (node.name, 0) not in self.alphas:
            for number, start in enumerate(rule.start(node, *boxes)):
                self.alphas[node.name, number] = start.expand(*count, *start.shape[2:]).clone().requires_grad_()
        return tuple(alpha for (name, _), alpha in self.alphas.items() if name == node.name)

    def _sparse(self, node: Node, rows: Rows, site: Site) -> tuple[tuple[Rows, ...], Tensor]:
        """Planes with alphas on the free columns, the fixed affine ones on the rest."""
        rule, coeff = self.network.rules[node.name], flat(rows.coeff, 2)
        assert isinstance(rule, ElementwiseOp) and site.columns is not None and site.kept is not None
        result = coeff * site.kept.lower_slope
        bias = dot(coeff, site.kept.lower_offset)
        if site.columns.numel():
            some = Rows(coeff.index_select(-1, site.columns), rows.frame)
            planes = site.family(self._alphas(node, site.boxes, coeff.shape[:2]))
            (moved,), added = elementwise_step(some, Steps.of(planes))
            result, bias = result.index_add(-1, site.columns, moved.coeff), bias + added
        return (Rows(result.reshape(rows.coeff.shape), rows.frame),), bias

    def _joint(self, node: Node, rows: Rows, site: Site) -> tuple[tuple[Rows, ...], Tensor]:
        rule = self.network.rules[node.name]
        assert isinstance(rule, NonlinearOp)
        planes = rule.relax(node, *site.boxes, alpha=self._alphas(node, site.boxes, rows.coeff.shape[:2]))
        return joint_step(densify(rows, node.shape), planes, self.network.input_shapes(node))
