"""nn.Module -> Graph that shares the module's parameters, so that bounds are differentiable in them.

Two steps. *Tracing* (torch.fx, once) finds the calls and the shape of each value. *Lowering* (`TorchTrace.graph`, about a millisecond, as
often as wanted) turns the calls into nodes whose constants are the parameters and buffers themselves, or differentiable functions of them
as they are at that moment: after an optimiser's step the parameters have moved along, but what was computed from them (a BatchNorm's scale)
has not, so training asks for a new graph each step.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from verifier.errors import ModelError, ShapeError, UnsupportedError, VerifierError
from verifier.graph.execute import execute
from verifier.graph.ir import Graph, Node
from verifier.graph.onnx_lowering import Variable
from verifier.graph.torch_calls import FUNCTIONS, METHODS, TorchLowering
from verifier.graph.torch_modules import module_call

# Share of the output by which a correct graph may differ from the module, both run in the module's own type: room for reordered sums.
RELATIVE_TOLERANCE = 1e-3
TYPES = {torch.float16: "float16", torch.float32: "float32", torch.float64: "float64"}
# What a person's forward, run or traced with arguments that it was not written for, raises.
FOREIGN_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def load_torch(module: nn.Module, input_shape: tuple[int, ...]) -> Graph:
    """The graph of a module in eval mode, checked against the module on a random input.

    Args:
        module: traceable by torch.fx; one tensor in, one tensor out.
        input_shape: the shape of one sample without the batch; the graph's input has a 1 in front.

    Returns:
        A graph whose constants are the module's parameters and buffers or differentiable functions of them.

    Raises:
        UnsupportedError: calls without a lowering; the message lists all.
        ModelError: the module cannot be traced or run, or is in training mode where that changes its function.
    """
    trace = trace_torch(module, input_shape)
    if trace.type not in TYPES:
        raise UnsupportedError(f"{trace.source} computes in {_plain(trace.type)}: call float() first.")
    graph = trace.graph()
    _check(trace, graph)
    return graph


@dataclass(frozen=True, slots=True)
class TorchTrace:
    """A traced module: its calls, and the shape and type of each call's value where that is one tensor.

    `overwritten`: of each call that writes into an older value, the calls whose value that is, and those whose value is another view of its memory.
    """

    traced: fx.GraphModule
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, torch.dtype]
    overwritten: Mapping[str, tuple[frozenset[str], frozenset[str]]]
    input_shape: tuple[int, ...]
    source: str

    @property
    def type(self) -> torch.dtype:
        """That of the module's input."""
        return _like(self.traced).dtype

    @property
    def alone(self) -> bool:
        """Whether every floating value is of that type."""
        return all(kind == self.type for kind in self.types.values() if kind.is_floating_point)

    def graph(self) -> Graph:
        """The calls lowered, over the parameters as they are now; errors as for `load_torch`."""
        return _TorchLoader(self).graph()


def trace_torch(module: nn.Module, input_shape: tuple[int, ...]) -> TorchTrace:
    """The module traced and run once on zeros to learn all shapes; arguments and errors as for `load_torch`."""
    source = type(module).__name__
    _check_eval(module, source)
    try:
        traced = fx.symbolic_trace(_inside(module))
    except FOREIGN_ERRORS as error:
        raise ModelError(f"{source} cannot be traced by torch.fx ({_first_line(error)}): its forward must not branch on values.") from None
    shape = (1, *(int(size) for size in input_shape))
    recorder = _ShapeRecorder(traced)
    try:
        with torch.no_grad():
            recorder.run(torch.zeros(shape).to(_like(module)))
    except FOREIGN_ERRORS as error:
        raise ModelError(f"{source} cannot be run on an input of shape {shape}: {_first_line(error)}") from None
    return TorchTrace(traced, recorder.shapes, recorder.types, recorder.overwritten, shape, source)


class _ShapeRecorder(fx.Interpreter):
    """Runs the calls and notes the shape and type of each value, and which values a call overwrites."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced, garbage_collect_values=False)  # so that no two values share their memory by chance
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, torch.dtype] = {}
        self.overwritten: dict[str, tuple[frozenset[str], frozenset[str]]] = {}

    def run_node(self, n: fx.Node) -> Any:
        given = [self.env[node] for node in n.all_input_nodes if isinstance(self.env[node], Tensor)]
        before = [value._version for value in given]
        value = super().run_node(n)
        for written, version in zip(given, before):
            if written._version != version:
                self.overwritten[n.name] = self._sharing(written)
        if isinstance(value, Tensor):
            self.shapes[n.name], self.types[n.name] = tuple(value.shape), value.dtype
        return value

    def _sharing(self, written: Tensor) -> tuple[frozenset[str], frozenset[str]]:
        """The calls so far whose value is this one, and those whose value shares its memory otherwise."""
        memory, same, other = written.untyped_storage().data_ptr(), set(), set()
        for node, value in self.env.items():
            parts = [part for part in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(part, Tensor)]
            if any(part.untyped_storage().data_ptr() == memory and _overlap(part, written) for part in parts):
                (same if isinstance(value, Tensor) and _view(value) == _view(written) else other).add(node.name)
        return frozenset(same), frozenset(other)


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two views of one memory have a number in common, as the halves of a value have none."""
    places = torch.arange(one.untyped_storage().nbytes() // one.element_size())
    own, theirs = (places.as_strided(view.shape, view.stride(), view.storage_offset()) for view in (one, other))
    return one.dtype != other.dtype or bool(torch.isin(own, theirs).any())


def _view(value: Tensor) -> tuple:
    return tuple(value.shape), value.stride(), value.storage_offset(), value.dtype


def _check_eval(module: nn.Module, source: str) -> None:
    """Layers that do something else in training are in eval mode."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    training = [name or source for name, part in module.named_modules() if isinstance(part, kinds) and part.training]
    if training:
        raise ModelError(f"{source} is in training mode ({', '.join(training)}): call eval() first.")


def _inside(module: nn.Module) -> nn.Module:
    """A layer of torch.nn in a Sequential, for torch.fx takes the outermost module apart, whatever it is."""
    is_layer = type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
    return nn.Sequential(module).train(module.training) if is_layer else module


def _like(module: nn.Module) -> Tensor:
    """A tensor of the module's device and floating type."""
    return next((p for p in (*module.parameters(), *module.buffers()) if p.is_floating_point()), torch.zeros(()))


def _plain(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0] if lines else type(error).__name__


class _TorchLoader:
    """One lowering: the value of each traced call so far, and what was refused."""

    def __init__(self, trace: TorchTrace) -> None:
        self.trace = trace
        self.values: dict[fx.Node, Any] = {}
        self.refused: list[str] = []
        self.modules = dict(trace.traced.named_modules())
        taken = frozenset(node.name for node in trace.traced.graph.nodes)
        self.build = TorchLowering(taken, _like(trace.traced).detach())

    def graph(self) -> Graph:
        """Lower every call, then report or return."""
        source = self.trace.source
        inputs = [node for node in self.trace.traced.graph.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise ModelError(f"{source}.forward takes {len(inputs)} arguments; exactly one is needed.")
        for node in self.trace.traced.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = Variable(node.name, self.trace.input_shape)
                self.build.nodes[node.name] = Node(node.name, "Input", (), self.trace.input_shape)
            elif node.op != "output":
                self.step(node)
        if self.refused:
            raise UnsupportedError(f"{source} uses {len(self.refused)} call(s) that are not supported: {'; '.join(self.refused)}.")
        result = fx.map_arg(self.output().args[0], self.values.__getitem__)
        if not isinstance(result, Variable):
            raise ModelError(f"{source} returns no single tensor that depends on its input.")
        kind = TYPES.get(self.trace.type, "float32")
        own = kind if self.trace.alone and kind != "float16" else None  # torch keeps half-precision sums in float32
        return Graph(tuple(self.build.nodes.values()), result.name, arithmetic=own, input_type=kind)

    def output(self) -> fx.Node:
        return next(node for node in self.trace.traced.graph.nodes if node.op == "output")

    def step(self, node: fx.Node) -> None:
        """The value of one call, or a note why there is none; what follows is judged on, by a stand-in of the recorded shape."""
        stand_in = Variable(node.name, self.trace.shapes[node.name]) if node.name in self.trace.shapes else None
        try:
            self.values[node] = self.value(node)
        except UnsupportedError as refusal:
            self.refused.append(f"{self.called(node)} {node.name!r} ({refusal})")
            self.values[node] = stand_in
        except VerifierError as error:
            if not self.refused:
                raise type(error)(f"{self.trace.source}: {error}") from None
            self.values[node] = stand_in

    def called(self, node: fx.Node) -> str:
        """What a person calls it: the layer's type, the function's or the method's name."""
        if node.op == "call_module":
            return type(self.modules[node.target]).__name__
        return str(getattr(node.target, "__name__", node.target))

    def value(self, node: fx.Node) -> Any:
        """The value of one call: a Variable, or what torch computes where nothing depends on the input."""
        if node.op == "get_attr":
            return _attribute(self.trace.traced, node.target)
        if any(self.values[given] is None for given in node.all_input_nodes):
            self.lowering_of(node)
            return None
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        if not any(isinstance(self.values[given], (Variable, tuple, list)) for given in node.all_input_nodes):
            return self.constant(node, args, kwargs)
        self.build.begin(node.name)
        value = self.lowered(node, args, kwargs)
        if isinstance(value, Variable):
            self.check_shape(node, value)
            value = self.build.publish(value, node.name)
            self.replace_in_place(node, value)
        return value

    def lowered(self, node: fx.Node, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The call's value by its lowering.

        Raises:
            UnsupportedError: there is none, or it does not know these arguments.
        """
        call = self.lowering_of(node)
        self.check_type(node)
        try:
            return call(self.build, *args, **kwargs)
        except VerifierError:
            raise
        except FOREIGN_ERRORS as error:
            raise UnsupportedError(f"its arguments are not understood: {_first_line(error)}") from None

    def lowering_of(self, node: fx.Node) -> Callable[..., Any]:
        """The function that lowers a call, or a refusal where there is none."""
        if node.op == "call_module":
            return partial(_layer, self.modules[node.target])
        call = (FUNCTIONS if node.op == "call_function" else METHODS).get(node.target)
        if call is None:
            raise UnsupportedError("nothing lowers it")
        return call

    def constant(self, node: fx.Node, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What torch computes: differentiable in the parameters."""
        if node.op == "call_module":
            return self.modules[node.target](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)

    def check_shape(self, node: fx.Node, value: Variable) -> None:
        """The lowered shape is the recorded one."""
        recorded = self.trace.shapes.get(node.name)
        if recorded is not None and recorded != value.shape:
            raise ShapeError(f"{self.called(node)} {node.name!r} gives {recorded} in torch but {value.shape} here: please report it.")

    def check_type(self, node: fx.Node) -> None:
        """The call does not round its inputs to a smaller type, nor to integers."""
        to = self.trace.types.get(node.name)
        given = [kind for kind in (self.trace.types.get(source.name) for source in node.all_input_nodes) if kind is not None]
        wider = [kind for kind in given if kind.is_floating_point and (to is not None and torch.promote_types(kind, to) != to)]
        if wider:
            raise UnsupportedError(f"it rounds {_plain(wider[0])} to {_plain(to)}")

    def replace_in_place(self, node: fx.Node, value: Variable) -> None:
        """Where a call overwrites an older value, later readers of that see the result.

        Raises:
            UnsupportedError: there are later readers of what overlaps with it.
        """
        same, other = self.trace.overwritten.get(node.name, (frozenset(), frozenset()))
        if not same and not other:
            return
        calls = list(self.trace.traced.graph.nodes)
        if any(source.name in other for later in calls[calls.index(node) + 1 :] for source in later.all_input_nodes):
            raise UnsupportedError("it overwrites a value of which another view is read later")
        self.values.update({call: value for call in calls if call.name in same})


def _layer(module: nn.Module, build: TorchLowering, *args: Any) -> Any:
    return module_call(build, module, *args)


def _attribute(module: nn.Module, path: str) -> Any:
    """The parameter, buffer or other attribute at a dotted path."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _check(trace: TorchTrace, graph: Graph) -> None:
    """The graph gives what the module gives, on one random input.

    Raises:
        ModelError: it does not, as where a call overwrites a value through a view of it.
    """
    with torch.no_grad():
        x = torch.randn(trace.input_shape, generator=torch.Generator().manual_seed(0)).to(_like(trace.traced))
        ours = execute(graph, x.unsqueeze(0)).reshape(-1)
        theirs = trace.traced(x).reshape(-1)
    worst = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else math.inf
    if not worst <= RELATIVE_TOLERANCE * max(float(theirs.abs().max()), 1e-6):
        raise ModelError(f"{trace.source}: the graph's output differs from the module's by {worst:.3g}: does a call overwrite its input?")
