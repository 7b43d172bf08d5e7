"""ONNX file -> Graph. This file and `onnx_file.py` alone know protobuf; differences of opsets end in the lowerings called from here.

The file is read as the meaning of the network on one sample, over the reals: a dynamic dimension counts as 1, everything that does not
depend on the input is computed here once, float16 and bfloat16 constants become float32. What cannot be lowered exactly is refused, all
refusals in one error.
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto

from verifier.errors import ModelError, ShapeError, UnsupportedError, VerifierError
from verifier.graph.ir import Graph, Node
from verifier.graph.onnx_constants import Constants
from verifier.graph.onnx_elementwise import ELEMENTWISE
from verifier.graph.onnx_file import (
    KINDS,
    array_of,
    attributes_of,
    constant_names,
    first_line,
    float_array,
    inferred_shapes,
    input_of,
    input_type,
    is_floating,
    live_nodes,
    opset_of,
    output_of,
    read_model,
    read_model_bytes,
    shape_of,
    stored_values,
)
from verifier.graph.onnx_linear import LINEAR
from verifier.graph.onnx_lowering import Lower, Lowering, OnnxNode, Value, Variable
from verifier.graph.onnx_resize import RESIZES
from verifier.graph.onnx_rounding import is_rounded
from verifier.graph.onnx_shapes import SHAPES
from verifier.graph.onnx_types import Types
from verifier.graph.onnx_windows import WINDOWS

__all__ = ["graph_of", "load_onnx", "read_model_bytes", "supported_operations"]

_RANDOM = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"})
# Below a refused node: a value that depends on the input, of a shape that nobody knows.
_OPAQUE = Variable("", ())
# What a lowering runs into where an attribute is missing, or of a type or size that ONNX does not allow there.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_MAY_BE_INFINITE = frozenset({"Clip", "Max", "Min"})


def supported_operations() -> tuple[str, ...]:
    """Names of the ONNX operations that are lowered (any other is fine where it does not depend on the input)."""
    return tuple(sorted(_lowerings()))


def _lowerings() -> dict[str, Lower]:
    return {**ELEMENTWISE, **LINEAR, **RESIZES, **SHAPES, **WINDOWS}


def load_onnx(path: str | Path) -> Graph:
    """The network of an `.onnx` or `.onnx.gz` file, in the vocabulary of `graph/ir.py`.

    Args:
        path: the file; external data is looked for beside it.

    Returns:
        A graph with numpy constants. A node that bears the name of an ONNX value has that value.

    Raises:
        UnsupportedError: operations without an exact lowering; the message lists all.
        ModelError, ShapeError: the file is unreadable or damaged, or is not one function of one input.
    """
    model, digest = read_model(path)
    return graph_of(model, path, digest)


def graph_of(model: ModelProto, path: str | Path = "the model", digest: str = "") -> Graph:
    """The network of a model that was read from `path`; result and errors as for `load_onnx`."""
    try:
        return replace(_Loader(model, str(path)).graph(), digest=digest)
    except UnsupportedError as error:
        raise UnsupportedError(f"{path} {error}") from None
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except ShapeError as error:
        raise ShapeError(f"{path}: {error}") from None


class _Loader:
    """One load: what is known of each ONNX value so far (None: a constant that was refused), and what was refused."""

    def __init__(self, model: ModelProto, source: str) -> None:
        self.model = model
        self.source = source
        self.opset = opset_of(model)
        self.output = output_of(model)
        self.live = live_nodes(model, self.output)
        self.wanted = {name for node in self.live for name in node.input} | {self.output}
        self.lowerings = _lowerings()
        self.values: dict[str, Value | None] = {}
        self.refused: list[str] = []
        self.computed: list[str] = []
        constant_names(model)
        info = input_of(model)
        self.types = Types(info.name, KINDS.get(info.type.tensor_type.elem_type, "another type"))
        self.constants = Constants(self.opset, stored_values(model))
        self.inferred: dict[str, tuple[int, ...]] | None = None
        taken = frozenset(name for node in model.graph.node for name in (*node.input, *node.output))
        self.build = Lowering(taken, input_type(model))

    def graph(self) -> Graph:
        """Read the constants, lower every live node, then report or return."""
        self.read_constants()
        info = input_of(self.model)
        self.build.nodes[info.name] = Node(info.name, "Input", (), shape_of(info))
        self.values[info.name] = Variable(info.name, shape_of(info))
        for node in self.live:
            self.step(node)
        if self.refused:
            raise UnsupportedError(f"uses {len(self.refused)} operation(s) that are not supported: {'; '.join(self.refused)}.")
        result = self.values.get(self.output)
        if not isinstance(result, Variable):
            raise ModelError(f"output {self.output!r} does not depend on the input, so there is nothing to verify.")
        arithmetic, mixed = self.types.arithmetic()
        made = Graph(tuple(self.build.nodes.values()), result.name, self.source, tuple(self.computed))
        return replace(made, arithmetic=arithmetic, mixed=mixed, input_type=self.types.source)

    def read_constants(self) -> None:
        """The initializers that are read, as arrays."""
        for tensor in self.model.graph.initializer:
            if tensor.name in self.wanted:
                self.values[tensor.name] = array_of(tensor)
        for sparse in self.model.graph.sparse_initializer:
            if sparse.values.name in self.wanted:
                self.values[sparse.values.name] = array_of(sparse)

    def step(self, proto: NodeProto) -> None:
        """Lower or compute one node, or note why not. What follows a refusal is judged on, by stand-ins of the inferred shapes."""
        name = proto.name or next(output for output in proto.output if output)
        self.check_inputs(proto, name)
        results = None
        try:
            results = self.results(proto, name)
        except UnsupportedError as refusal:
            self.refused.append(f"{proto.op_type} {name!r} ({refusal})")
        except VerifierError:
            if not self.refused:
                raise
        if results is None:
            self.assume(proto)
        else:
            self.store(proto, results if isinstance(results, tuple) else (results,))

    def results(self, proto: NodeProto, name: str) -> Value | tuple[Value, ...] | None:
        """The outputs of one node; None where an input is unknown.

        Raises:
            UnsupportedError: with the reason alone.
        """
        inputs = tuple(self.values[given] if given else None for given in proto.input)
        unknown = any(value is _OPAQUE or (given and value is None) for given, value in zip(proto.input, inputs))
        variable = any(isinstance(value, Variable) for value in inputs)
        self.check_operation(proto, variable)
        if unknown:
            return None
        wanted = tuple(output if output in self.wanted else "" for output in proto.output)
        try:
            if not variable:
                found = self.constants.compute(proto, inputs)
                if is_rounded(proto.op_type, inputs, found):
                    self.computed.append(name)
                return found
            self.check_finite(proto, name, inputs)
            self.build.begin(next(output for output in wanted if output))
            attributes = attributes_of(proto)
            self.follow_types(proto, name, inputs, attributes.get("to", ""))
            inputs = tuple(float_array(value) if isinstance(value, np.ndarray) else value for value in inputs)
            node = OnnxNode(name, proto.op_type, self.opset, inputs, wanted, attributes)
            return self.lowerings[proto.op_type](node, self.build)
        except _DAMAGE as error:
            said = first_line(error)
            raise ModelError(f"{proto.op_type} {name!r} has attributes or inputs that do not fit ({said}): is the file damaged?") from None

    def follow_types(self, proto: NodeProto, name: str, inputs: tuple[Value | None, ...], to: str) -> None:
        """Notes in which type a node on the input computes; errors as for `Types.step`."""
        constants = tuple(value for value in inputs if isinstance(value, np.ndarray))
        variables = tuple(given for given, value in zip(proto.input, inputs) if isinstance(value, Variable))
        self.types.step(proto.op_type, name, variables, constants, tuple(proto.output), to)

    def check_inputs(self, proto: NodeProto, name: str) -> None:
        """Every input is known by now, and no output is."""
        for given in proto.input:
            if given and given not in self.values:
                raise ModelError(f"{proto.op_type} {name!r} reads {given!r}, which nothing before it produces: is the file cut?")
        for made in proto.output:
            if made and made in self.values:
                raise ModelError(f"{proto.op_type} {name!r} produces {made!r}, which is there already: is the file damaged?")

    def check_operation(self, proto: NodeProto, variable: bool) -> None:
        """Refuse foreign domains, random values, and operations on the input that no lowering covers."""
        if proto.domain not in ("", "ai.onnx"):
            raise UnsupportedError(f"of the domain {proto.domain!r}")
        if proto.op_type in _RANDOM:
            raise UnsupportedError("its values are random")
        if variable and proto.op_type not in self.lowerings:
            raise UnsupportedError("nothing lowers it")

    def check_finite(self, proto: NodeProto, name: str, inputs: tuple[Value | None, ...]) -> None:
        """Weights that meet the input are finite, but for the single bounds of a Clip."""
        for given, value in zip(proto.input, inputs):
            if not isinstance(value, np.ndarray) or not is_floating(value) or np.isfinite(float_array(value)).all():
                continue
            if proto.op_type not in _MAY_BE_INFINITE or value.size != 1:
                raise ModelError(f"initializer {given!r}, which {proto.op_type} {name!r} reads, holds NaN or infinity.")

    def store(self, proto: NodeProto, results: tuple[Value, ...]) -> None:
        """The results under their ONNX names; a node made for one takes its name."""
        for name, value in zip(proto.output, results):
            if name in self.wanted:
                self.values[name] = self.build.publish(value, name) if isinstance(value, Variable) else value

    def assume(self, proto: NodeProto) -> None:
        """Stand-ins for the outputs of a refused node: the shape that onnx infers, or nothing known."""
        if self.inferred is None:
            self.inferred = inferred_shapes(self.model)
        variable = any(isinstance(self.values[given], Variable) for given in proto.input if given)
        for name in proto.output:
            shape = self.inferred.get(name)
            known = _OPAQUE if shape is None else Variable(name, shape)
            self.values[name] = known if variable else None
