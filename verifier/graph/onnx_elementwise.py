"""Arithmetic and activations of ONNX, lowered: coordinate by coordinate, with numpy's broadcasting."""
from __future__ import annotations

import numpy as np

from verifier.errors import ModelError, UnsupportedError
from verifier.graph.onnx_lowering import Lower, Lowering, OnnxNode, Value, Variable

# (1 - s) max(x, 0) + s x cancels to x for a positive x, which costs log2 |s| bits.
_STEEPEST = 1000.0
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def add_values(x: Value, y: Value, build: Lowering) -> Value:
    """x + y."""
    if isinstance(x, Variable) and isinstance(y, Variable):
        return build.sum_of("Add", x, y)
    if isinstance(x, Variable):
        return build.scale(x, 1.0, y)
    if isinstance(y, Variable):
        return build.scale(y, 1.0, x)
    return x + y


def add(node: OnnxNode, build: Lowering) -> Value:
    """x + y."""
    return add_values(node.value(0), node.value(1), build)


def subtract(node: OnnxNode, build: Lowering) -> Value:
    """x - y; a constant minus y is y * (-1) + constant."""
    x, y = node.value(0), node.value(1)
    if isinstance(x, Variable) and isinstance(y, Variable):
        return build.sum_of("Sub", x, y)
    if isinstance(x, Variable):
        return build.scale(x, 1.0, -build.floats(y))
    return build.scale(node.variable(1), -1.0, x)


def multiply(node: OnnxNode, build: Lowering) -> Value:
    """x * y."""
    x, y = node.value(0), node.value(1)
    if isinstance(x, Variable) and isinstance(y, Variable):
        return build.product(x, y)
    if isinstance(x, Variable):
        return build.scale(x, y, 0.0)
    return build.scale(node.variable(1), x, 0.0)


def divide(node: OnnxNode, build: Lowering) -> Value:
    """x / c = x * (1 / c), the reciprocal in float64."""
    divisor = node.constant(1, "divisors")
    if divisor is None or not np.all(divisor):
        raise ModelError(f"Div {node.name!r} divides by zero.")
    return build.scale(node.variable(0), 1.0 / divisor.astype(np.float64), 0.0)


def negate(node: OnnxNode, build: Lowering) -> Value:
    """-x."""
    return build.scale(node.variable(0), -1.0, 0.0)


def power(node: OnnxNode, build: Lowering) -> Value:
    """x ** 2 = x * x."""
    x, exponent = node.variable(0), node.constant(1, "exponents")
    if exponent is None or not np.all(exponent == 2):
        raise UnsupportedError("an exponent other than 2")
    x = build.expand(x, build.broadcast(x.shape, exponent.shape))
    return build.product(x, x)


def total(node: OnnxNode, build: Lowering) -> Value:
    """x_1 + ... + x_n."""
    result = node.value(0)
    for index in range(1, len(node.inputs)):
        result = add_values(result, node.value(index), build)
    return result


def mean(node: OnnxNode, build: Lowering) -> Value:
    """(x_1 + ... + x_n) / n."""
    count = len(node.inputs)
    result = total(node, build)
    return result if count == 1 or not isinstance(result, Variable) else build.scale(result, np.float64(1 / count), 0.0)


def relu(node: OnnxNode, build: Lowering) -> Value:
    """max(x, 0)."""
    return build.relu(node.variable(0))


def smooth(node: OnnxNode, build: Lowering) -> Value:
    """Sigmoid or Tanh."""
    x = node.variable(0)
    return build.add(node.op, (x,), x.shape)


def absolute(node: OnnxNode, build: Lowering) -> Value:
    """|x| = max(x, 0) + max(-x, 0)."""
    x = node.variable(0)
    minus = build.scale(x, -1.0, 0.0)
    return build.sum_of("Add", build.relu(x), build.relu(minus))


def sloped(x: Variable, slope: np.ndarray, build: Lowering) -> Variable:
    """max(x, 0) + s min(x, 0): a LeakyRelu where s is one number of [0, 1], else (1 - s) max(x, 0) + s x."""
    if slope.size == 1 and 0 <= float(slope.reshape(())) <= 1 and slope.ndim <= len(x.shape):
        return build.add("LeakyRelu", (x,), x.shape, {}, {"slope": float(slope.reshape(()))})
    slope = slope.astype(np.float64)
    if np.abs(slope).max() > _STEEPEST:
        raise UnsupportedError(f"a slope beyond {_STEEPEST}")
    bent = build.scale(build.relu(x), 1.0 - slope, 0.0)
    straight = build.scale(x, slope, 0.0)
    return build.sum_of("Add", bent, straight)


def leaky_relu(node: OnnxNode, build: Lowering) -> Value:
    """max(x, 0) + alpha min(x, 0)."""
    return sloped(node.variable(0), np.float64(node.attributes.get("alpha", np.float32(0.01))).reshape(()), build)


def prelu(node: OnnxNode, build: Lowering) -> Value:
    """max(x, 0) + slope min(x, 0), the slope broadcast."""
    slope = node.constant(1, "slopes")
    if slope is None:
        raise ModelError(f"PRelu {node.name!r} has no slope.")
    return sloped(node.variable(0), slope, build)


def hard_sigmoid(node: OnnxNode, build: Lowering) -> Value:
    """min(max(alpha x + beta, 0), 1)."""
    alpha, beta = node.attributes.get("alpha", np.float32(0.2)), node.attributes.get("beta", 0.5)
    return clamp(build.scale(node.variable(0), np.float64(alpha), np.float64(beta)), 0.0, 1.0, build)


def hard_swish(node: OnnxNode, build: Lowering) -> Value:
    """x min(max(x / 6 + 1/2, 0), 1)."""
    x = node.variable(0)
    return build.product(x, clamp(build.scale(x, np.float64(1 / 6), np.float64(0.5)), 0.0, 1.0, build))


def clamp(x: Variable, lower: float, upper: float, build: Lowering) -> Variable:
    """min(max(x, lower), upper), as a Relu where it is one. A bound at the end of float32 is none."""
    if build.dtype == np.float32:
        lower = -np.inf if lower <= -_FLOAT32_MAX else lower
        upper = np.inf if upper >= _FLOAT32_MAX else upper
    if np.isnan(lower) or np.isnan(upper) or lower > upper:
        raise UnsupportedError(f"the bounds {lower} and {upper}")
    if (lower, upper) == (0.0, np.inf):
        return build.relu(x)
    return build.add("Clip", (x,), x.shape, {}, {"lower": float(lower), "upper": float(upper)})


def clip(node: OnnxNode, build: Lowering) -> Value:
    """min(max(x, lower), upper): the bounds are attributes up to opset 10, then inputs."""

    def bound(index: int, attribute: str, absent: float) -> float:
        array = node.constant(index, "bounds")
        if array is None:
            return float(node.attributes.get(attribute, absent))
        if array.size != 1:
            raise UnsupportedError(f"a bound of shape {array.shape}")
        return float(array.reshape(()))

    return clamp(node.variable(0), bound(1, "min", -np.inf), bound(2, "max", np.inf), build)


def larger(x: Variable, y: Value, build: Lowering) -> Variable:
    """max(x, y): a Clip for one number, y + max(x - y, 0) for the rest."""
    if isinstance(y, Variable):
        above = build.relu(build.sum_of("Sub", x, y))
        return build.sum_of("Add", build.raise_rank(y, len(above.shape)), above)
    if y.size == 1 and y.ndim <= len(x.shape):
        return clamp(x, float(y.reshape(())), np.inf, build)
    return build.scale(build.relu(build.scale(x, 1.0, -build.floats(y))), 1.0, y)


def smaller(x: Variable, y: Value, build: Lowering) -> Variable:
    """min(x, y): a Clip for one number, y - max(y - x, 0) for the rest."""
    if isinstance(y, Variable):
        below = build.relu(build.sum_of("Sub", y, x))
        return build.sum_of("Sub", build.raise_rank(y, len(below.shape)), below)
    if y.size == 1 and y.ndim <= len(x.shape):
        return clamp(x, -np.inf, float(y.reshape(())), build)
    return build.scale(build.relu(build.scale(x, -1.0, y)), -1.0, y)


def extremum(node: OnnxNode, build: Lowering) -> Value:
    """max or min of all inputs, one after the other, the first variable one first."""
    values = sorted((node.value(i) for i in range(len(node.inputs))), key=lambda v: not isinstance(v, Variable))
    pick = larger if node.op == "Max" else smaller
    result = values[0]
    for value in values[1:]:
        result = pick(result, value, build)
    return result


def same(node: OnnxNode, build: Lowering) -> Value:
    """x."""
    return node.value(0)


def dropout(node: OnnxNode, build: Lowering) -> Value:
    """x, at inference."""
    training = node.constant(2, "training modes")
    if training is not None and bool(np.any(training)):
        raise UnsupportedError("training mode")
    if any(node.outputs[1:]):
        raise UnsupportedError("the mask as a second output")
    return node.value(0)


def cast(node: OnnxNode, build: Lowering) -> Value:
    """x: between floating types a cast only rounds, which the reals do not see."""
    if node.attributes.get("to") not in ("float32", "float64", "float16", "bfloat16"):
        raise UnsupportedError(f"a cast of a value that depends on the input to {node.attributes.get('to')}")
    return node.value(0)


ELEMENTWISE: dict[str, Lower] = {
    "Abs": absolute,
    "Add": add,
    "Cast": cast,
    "Clip": clip,
    "Div": divide,
    "Dropout": dropout,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Identity": same,
    "LeakyRelu": leaky_relu,
    "Max": extremum,
    "Mean": mean,
    "Min": extremum,
    "Mul": multiply,
    "Neg": negate,
    "PRelu": prelu,
    "Pow": power,
    "Relu": relu,
    "Sigmoid": smooth,
    "Sub": subtract,
    "Sum": total,
    "Tanh": smooth,
}
