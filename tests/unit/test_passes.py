"""Simplifying passes: the function stays, fewer nodes remain; and each rule refuses where it would be wrong."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from verifier.graph import passes
from verifier.graph.execute import execute, execute_all
from verifier.graph.ir import Graph, Node
from verifier.graph.passes import drop_dead, drop_identities, rewrite, simplify

R = np.random.default_rng(11)
TOLERANCE = 1e-12  # float64 sums of at most a hundred terms, reordered


def floats(*shape: int) -> np.ndarray:
    return R.standard_normal(shape)


def line(shape: tuple[int, ...], *nodes: Node) -> Graph:
    """A graph in which each node without inputs reads the one before."""
    made = [Node("x", "Input", (), shape)]
    for node in nodes:
        made.append(node if node.inputs else replace(node, inputs=(made[-1].name,)))
    return Graph(tuple(made), made[-1].name)


def linear(name: str, n_in: int, n_out: int, rows: tuple[int, ...] = (1,)) -> Node:
    return Node(name, "Linear", (), (*rows, n_out), {"weight": floats(n_out, n_in), "bias": floats(n_out)})


def scale(name: str, shape: tuple[int, ...], s: np.ndarray, o: np.ndarray | float) -> Node:
    return Node(name, "Scale", (), shape, {"scale": np.asarray(s), "offset": np.asarray(o, np.float64)})


def conv(name: str, shape: tuple[int, ...], weight: np.ndarray, pads: tuple[int, ...] = (0, 0, 0, 0), group: int = 1) -> Node:
    attributes = {"strides": (1, 1), "dilations": (1, 1), "pads": pads, "group": group}
    return Node(name, "Conv", (), shape, {"weight": weight, "bias": floats(weight.shape[0])}, attributes)


def transposed(name: str, shape: tuple[int, ...], weight: np.ndarray, group: int = 1) -> Node:
    attributes = {"strides": (2, 2), "dilations": (1, 1), "pads": (0,) * 4, "group": group, "output_padding": (0, 0)}
    return Node(name, "ConvTranspose", (), shape, {"weight": weight, "bias": floats(weight.shape[1] * group)}, attributes)


def relu(name: str, shape: tuple[int, ...], *inputs: str) -> Node:
    return Node(name, "Relu", inputs, shape)


def values(graph: Graph) -> dict[str, torch.Tensor]:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, *graph.input_shape)))
    return execute_all(graph, x)


def assert_same_function(given: Graph, simple: Graph) -> None:
    """Same output name, and every name that both graphs have means the same value."""
    before, after = values(given), values(simple)
    assert simple.output == given.output and simple.input == given.input
    for name in set(before) & set(after):
        torch.testing.assert_close(after[name], before[name], rtol=TOLERANCE, atol=TOLERANCE)


IMAGE, MAP = (1, 3, 6, 5), (1, 4, 4, 4)
W = floats(4, 3, 3, 2)
FIRES: dict[str, tuple[Graph, list[str]]] = {
    "scale after scale": (line((2, 3), scale("a", (2, 3), floats(3), floats(2, 1)), scale("b", (2, 3), floats(2, 3), 1.0)), ["Scale"]),
    "reshapes": (line((2, 6), Node("a", "Reshape", (), (3, 4)), Node("b", "Reshape", (), (12,))), ["Reshape"]),
    "transposes": (line((2, 3, 4), Node("a", "Transpose", (), (4, 2, 3), {}, {"perm": (2, 0, 1)}),
                        Node("b", "Transpose", (), (3, 4, 2), {}, {"perm": (2, 0, 1)})), ["Transpose"]),
    "scale after linear": (line((1, 4), linear("a", 4, 3), scale("b", (1, 3), floats(3), floats(1, 3))), ["Linear"]),
    "bias after linear with rows": (line((2, 4), linear("a", 4, 3, (2,)), scale("b", (2, 3), np.ones(()), floats(3))), ["Linear"]),
    "scale before linear": (line((2, 4), scale("a", (2, 4), floats(4), floats(1, 4)), linear("b", 4, 3, (2,))), ["Linear"]),
    "scale after conv": (line(IMAGE, conv("a", MAP, W), scale("b", MAP, floats(4, 1, 1), floats(1, 4, 1, 1))), ["Conv"]),
    "scale after grouped conv": (line((1, 4, 5, 5), conv("a", (1, 6, 3, 3), floats(6, 2, 3, 3), group=2),
                                      scale("b", (1, 6, 3, 3), floats(6, 1, 1), floats(6, 1, 1))), ["Conv"]),
    "scale after transposed conv": (line((1, 4, 3, 3), transposed("a", (1, 6, 6, 6), floats(4, 3, 2, 2), 2),
                                         scale("b", (1, 6, 6, 6), floats(6, 1, 1), floats(6, 1, 1))), ["ConvTranspose"]),
    "scale before conv": (line(IMAGE, scale("a", IMAGE, floats(3, 1, 1), floats(3, 1, 1)), conv("b", MAP, W)), ["Conv"]),
    "scale before grouped conv": (line((1, 4, 5, 5), scale("a", (1, 4, 5, 5), floats(4, 1, 1), floats(4, 1, 1)),
                                       conv("b", (1, 6, 3, 3), floats(6, 2, 3, 3), group=2)), ["Conv"]),
    "factor before padded conv": (line(IMAGE, scale("a", IMAGE, floats(3, 1, 1), 0.0), conv("b", (1, 4, 6, 6), W, (1, 1, 1, 1))), ["Conv"]),
    "pad before conv": (line(IMAGE, Node("a", "Pad", (), (1, 3, 7, 8), {}, {"pads": (0, 0, 1, 1, 0, 0, 0, 2), "value": 0.0}),
                             conv("b", (1, 4, 5, 7), W)), ["Conv"]),
    "linear after linear": (line((1, 8), linear("a", 8, 6), linear("b", 6, 2)), ["Linear"]),
    "normalisation, flatten, linear": (line(IMAGE, scale("a", IMAGE, floats(3, 1, 1), floats(3, 6, 5)), Node("f", "Reshape", (), (1, 90)),
                                            linear("b", 90, 2)), ["Reshape", "Linear"]),
    "conv, flatten, scale by channel": (line(IMAGE, conv("a", MAP, W), Node("f", "Reshape", (), (1, 64)),
                                             scale("b", (1, 64), np.repeat(floats(4), 16), np.repeat(floats(4), 16))), ["Conv", "Reshape"]),
    "conv, transpose, scale": (line(IMAGE, conv("a", MAP, W), Node("t", "Transpose", (), (1, 4, 4, 4), {}, {"perm": (0, 2, 3, 1)}),
                                    scale("b", MAP, floats(4), floats(4))), ["Conv", "Transpose"]),
    "scale, transpose, conv": (line((1, 6, 5, 3), scale("s", (1, 6, 5, 3), floats(3), floats(3)),
                                    Node("t", "Transpose", (), IMAGE, {}, {"perm": (0, 3, 1, 2)}), conv("a", MAP, W)),
                                        ["Transpose", "Conv"]),
    "a whole chain": (line((1, 5), scale("m", (1, 5), np.ones(()), floats(5)), Node("f", "Reshape", (), (5,)), linear("a", 5, 4, ()),
                           scale("b", (4,), np.ones(()), floats(4)), relu("r", (4,)), linear("c", 4, 2, ()), linear("d", 2, 2, ())),
                      ["Reshape", "Linear", "Relu", "Linear"]),
}


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str) -> None:
    given, ops = FIRES[name]
    simple = simplify(given)
    assert [node.op for node in simple.nodes[1:]] == ops
    assert_same_function(given, simple)


@pytest.mark.parametrize("name", FIRES)
def test_a_pass_changes_nothing_that_it_is_given(name: str) -> None:
    given, _ = FIRES[name]
    copies = [{key: array.copy() for key, array in node.constants.items()} for node in given.nodes]
    nodes = given.nodes
    simplify(given)
    assert given.nodes is nodes
    assert all(np.array_equal(node.constants[key], array) for node, copy in zip(nodes, copies) for key, array in copy.items())
    once = simplify(given)
    assert simplify(once) is once


REFUSES: dict[str, tuple[Callable, list[Node], str]] = {
    "scale of rows after linear": (passes.scale_after_linear, [linear("a", 4, 3, (2,)), scale("b", (2, 3), floats(2, 1), 0.0)],
        "'b' scales rows"),
    "offset of rows after linear": (passes.scale_after_linear, [linear("a", 4, 3, (2,)), scale("b", (2, 3), np.ones(()), floats(2, 3))],
                                    "'b' scales rows"),
    "scale of positions after conv": (passes.scale_after_conv, [conv("a", MAP, W), scale("b", MAP, floats(4, 1), 0.0)],
        "'b' scales the positions"),
    "offset of positions after conv": (passes.scale_after_conv, [conv("a", MAP, W), scale("b", MAP, np.ones(()), floats(*MAP))],
        "positions"),
    "scale of rows before linear": (passes.linear_after_scale, [scale("a", (2, 4), floats(2, 1), 0.0), linear("b", 4, 3, (2,))],
        "'a' scales"),
    "shift before padded conv": (passes.conv_after_scale, [scale("a", IMAGE, np.ones(()), 0.5), conv("b", (1, 4, 6, 6), W, (1, 1, 1, 1))],
                                 "'b' pads with zeros"),
    "shift before conv padded at one end": (passes.conv_after_scale, [scale("a", IMAGE, np.ones(()), 0.5), conv("b", MAP, W, (0, 0, 0, 1))],
                                            "'b' pads with zeros"),
    "scale of positions before conv": (passes.conv_after_scale, [scale("a", IMAGE, floats(5), 0.0), conv("b", MAP, W)],
        "'a' scales the positions"),
    "scale before transposed conv": (passes.conv_after_scale, [scale("a", (1, 4, 3, 3), floats(4, 1, 1), 1.0),
                                                               transposed("b", (1, 6, 6, 6), floats(4, 3, 2, 2), 2)], "not a Conv"),
    "linears that would grow": (passes.linear_after_linear, [linear("a", 10, 2), linear("b", 2, 10)], "100 weights instead of 40"),
    "pad of another value": (passes.conv_after_pad, [Node("a", "Pad", (), (1, 3, 8, 7), {}, {"pads": (0, 0, 1, 1, 0, 0, 1, 1),
        "value": 1.0}),
                                                     conv("b", MAP, W)], "with 1.0"),
    "pad of channels": (passes.conv_after_pad, [Node("a", "Pad", (), IMAGE, {}, {"pads": (0, 1, 0, 0, 0, 0, 0, 0), "value": 0.0}),
                                                conv("b", MAP, W)], "not with zeros on spatial"),
    "scale of features through a reshape": (passes.scale_back_through, [conv("a", MAP, W), Node("f", "Reshape", (), (1, 64)),
                                                                        scale("b", (1, 64), floats(64), 0.0)], "cannot take up 'b'"),
    "shift through a reshape into a padded conv": (passes.scale_forth_through, [scale("s", (1, 90), np.ones(()), 0.5),
                                                                                Node("f", "Reshape", (), IMAGE),
                                                                                conv("a", (1, 4, 6, 6), W, (1, 1, 1, 1))],
                                                                                    "cannot take up 's'"),
    "scale back through a relu": (passes.scale_back_through, [linear("a", 4, 4), relu("r", (1, 4)), scale("b", (1, 4), floats(4),
        0.0)], "not a"),
}


@pytest.mark.parametrize("name", REFUSES)
def test_refuses_with_a_reason(name: str) -> None:
    rule, chain, reason = REFUSES[name]
    outcome = rule(*chain)
    assert isinstance(outcome, str) and reason in outcome


@pytest.mark.parametrize("length", [2, 3])
def test_every_rule_refuses_a_chain_of_relus(length: int) -> None:
    chain = [relu(f"r{i}", (1, 4)) for i in range(length)]
    rules = [rule for size, rule in passes.RULES if size == length]
    assert rules and all(isinstance(rule(*chain), str) for rule in rules)


def test_a_value_with_two_readers_is_not_merged() -> None:
    nodes = [linear("a", 4, 3), scale("b", (1, 3), floats(3), 0.0), Node("sum", "Add", ("a", "b"), (1, 3))]
    given = line((1, 4), *nodes)
    assert simplify(given) is given


def test_the_output_is_not_merged_away() -> None:
    """The output is read by the caller, though one node more reads it."""
    given = replace(line((1, 4), linear("a", 4, 3), scale("b", (1, 3), floats(3), 0.0)), output="a")
    simple = simplify(given)
    assert [node.name for node in simple.nodes] == ["x", "a"]
    assert_same_function(given, simple)


def test_dead_nodes_go_and_live_ones_stay() -> None:
    nodes = [linear("a", 4, 3), relu("dead", (1, 3), "a"), relu("deader", (1, 3), "dead"), Node("b", "Tanh", ("a",), (1, 3))]
    given = line((1, 4), *nodes)
    assert [node.name for node in drop_dead(given).nodes] == ["x", "a", "b"]
    assert drop_dead(drop_dead(given)) is not given
    alive = drop_dead(given)
    assert drop_dead(alive) is alive


IDENTITIES = {
    "Scale": Node("i", "Scale", (), (2, 3), {"scale": np.ones(3), "offset": np.zeros(())}),
    "Reshape": Node("i", "Reshape", (), (2, 3)),
    "Transpose": Node("i", "Transpose", (), (2, 3), {}, {"perm": (0, 1)}),
    "Expand": Node("i", "Expand", (), (2, 3)),
    "Slice": Node("i", "Slice", (), (2, 3), {}, {"axes": (0,), "starts": (0,), "ends": (2,), "steps": (1,)}),
    "Pad": Node("i", "Pad", (), (2, 3), {}, {"pads": (0,) * 4, "value": 0.0}),
    "Clip": Node("i", "Clip", (), (2, 3), {}, {"lower": -np.inf, "upper": np.inf}),
    "Concat": Node("i", "Concat", (), (2, 3), {}, {"axis": 0}),
}
NO_IDENTITIES = {
    "Scale by more": Node("i", "Scale", (), (2, 3), {"scale": np.array([1, 1, 1.5]), "offset": np.zeros(())}),
    "Scale with a shift": Node("i", "Scale", (), (2, 3), {"scale": np.ones(()), "offset": np.array([0, 0, 1e-9])}),
    "Transpose of a square": Node("i", "Transpose", (), (3, 3), {}, {"perm": (1, 0)}),
    "Slice backwards": Node("i", "Slice", (), (2, 3), {}, {"axes": (0,), "starts": (1,), "ends": (-3,), "steps": (-1,)}),
    "Clip above": Node("i", "Clip", (), (2, 3), {}, {"lower": -np.inf, "upper": 9.0}),
    "Gather": Node("i", "Gather", (), (2, 3), {"indices": np.array([1, 0])}, {"axis": 0}),
    "Relu": relu("i", (2, 3)),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identities_go(name: str) -> None:
    given = line((2, 3), IDENTITIES[name], Node("y", "Tanh", (), (2, 3)))
    assert [node.op for node in drop_identities(given).nodes] == ["Input", "Tanh"]
    last = line((2, 3), IDENTITIES[name])
    assert drop_identities(last) is last, "the output keeps its name"


@pytest.mark.parametrize("name", NO_IDENTITIES)
def test_what_is_no_identity_stays(name: str) -> None:
    node = NO_IDENTITIES[name]
    given = line(node.shape, node, Node("y", "Tanh", (), node.shape))
    assert drop_identities(given) is given


def test_tensors_keep_their_gradient_and_are_never_looked_at() -> None:
    """A Scale by ones that are parameters stays, for they may move; folded, the gradient flows."""
    weight, bias, ones = (torch.ones(3, 4, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    for tensor in (weight, bias, ones):
        tensor.requires_grad_()
    nodes = [Node("s", "Scale", (), (2, 4), {"scale": ones, "offset": torch.zeros((), dtype=torch.float64)}),
             Node("y", "Linear", (), (2, 3), {"weight": weight, "bias": bias})]
    simple = simplify(line((2, 4), *nodes))
    assert [node.op for node in simple.nodes] == ["Input", "Linear"]
    execute(simple, torch.ones(1, 2, 4, dtype=torch.float64)).sum().backward()
    assert ones.grad is not None and torch.equal(ones.grad, torch.full((4,), 6.0, dtype=torch.float64))
    by_row = replace(nodes[0], constants={"scale": torch.ones(2, 1, dtype=torch.float64), "offset": torch.zeros((), dtype=torch.float64)})
    assert len(simplify(line((2, 4), by_row, nodes[1])).nodes) == 3


def wrong_conv_after_scale(first: Node, second: Node) -> passes.Outcome:
    """The sabotage: forgets that pads are zeros of the shifted image."""
    return passes.conv_after_scale(first, replace(second, attributes={**second.attributes, "pads": (0,) * 4}))


def wrong_bias(first: Node, second: Node) -> passes.Outcome:
    """The sabotage: drops the first bias."""
    merged = passes.linear_after_linear(first, second)
    return (replace(merged[0], constants={**merged[0].constants, "bias": second.constants["bias"]}),)


@pytest.mark.parametrize(
    ("rule", "given"),
    [
        (wrong_bias, FIRES["linear after linear"][0]),
        (wrong_conv_after_scale, line(IMAGE, scale("a", IMAGE, floats(3, 1, 1), floats(3, 1, 1)), conv("b", (1, 4, 6, 6), W, (1,
            1, 1, 1)))),
    ],
)
def test_a_wrong_rule_is_seen(rule: Callable, given: Graph) -> None:
    broken = rewrite(given, 2, rule)
    broken = replace(broken, nodes=tuple(replace(n, attributes={**n.attributes,
        "pads": (1,) * 4}) if n.op == "Conv" else n for n in broken.nodes))
    assert len(broken.nodes) == 2
    with pytest.raises(AssertionError):
        assert_same_function(given, broken)
