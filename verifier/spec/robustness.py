"""(image, label, eps, norm) -> Spec: the label must not change anywhere in a ball around the image."""
from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from verifier.errors import SpecError
from verifier.spec.spec import Ball, Case, Polytope, Spec

_NORMS = {"linf": None, "l2": 2, "l1": 1}


def robustness(
    x: np.ndarray,
    label: int,
    eps: float,
    n_out: int,
    norm: str = "linf",
    clip: tuple[float, float] | None = (0.0, 1.0),
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> Spec:
    """Unsafe iff y_j >= y_label for some j != label and some z = (v - mean) / std with ||v - x||_p <= eps and v in clip.

    Args:
        x: the raw image; flattened in C order it is the network's input before normalisation. With a mean or std by channel its shape is
            `(..., C, H, W)` or, where only the last axis has that many channels, `(..., C)`.
        label: the class that must win, 0 <= label < n_out.
        eps: the radius in units of the raw image.
        n_out: the number of classes.
        norm: linf, l2 or l1.
        clip: the range of raw pixels, None for no clipping.
        mean: a number, or one a channel; None is 0. The network's input is (image - mean) / std.
        std: a number, or one a channel; None is 1. An l2 or l1 ball stays a ball only under one std for all channels.

    Raises:
        SpecError: an argument is out of its range, or the image lies outside of clip by more than eps.
    """
    image = np.asarray(x, dtype=np.float64)
    _check(image, label, eps, n_out, norm)
    mean = _per_pixel(0.0 if mean is None else mean, image.shape, "mean")
    std = _per_pixel(1.0 if std is None else std, image.shape, "std")
    if not (std > 0).all():
        raise SpecError(f"std = {std.min():g} is not positive: check the normalisation.")
    image = image.reshape(-1)
    low, high = (-np.inf, np.inf) if clip is None else clip
    raw_lower, raw_upper = np.maximum(image - eps, low), np.minimum(image + eps, high)
    if not (raw_lower <= raw_upper).all():
        i = int(np.argmax(raw_lower > raw_upper))
        seen = f"Pixel {i} is {image[i]:g}, more than eps = {eps:g} outside of clip = ({low:g}, {high:g})"
        raise SpecError(f"{seen}: is the image scaled to that range?")
    ball = None
    if norm != "linf":
        if np.ptp(std) > 0:
            raise SpecError(f"std differs between channels, which makes an ellipsoid of the {norm} ball: use linf, or one std for all.")
        ball = _ball(image, eps, mean, std, _NORMS[norm])
    lower, upper = (_normalised(image, side * eps, (low, high), mean, std) for side in (-1, 1))
    case = Case(lower, upper, _label_changes(label, n_out), ball)
    return Spec((case,), image.size, n_out, f"{norm} ball of eps = {eps:g} around an image of class {label}")


def parse_eps(text: str) -> float:
    """The number that "0.1", "8/255" or "1e-3" stands for: finite and not negative."""
    try:
        parts = [float(part) for part in str(text).split("/")]
    except ValueError:
        raise SpecError(f"eps = '{str(text)[:40]}' is not a number: write for example 0.1 or 8/255.") from None
    if len(parts) > 2 or not np.isfinite(parts).all() or min(parts) < 0 or (len(parts) == 2 and parts[1] == 0):
        raise SpecError(f"eps = '{str(text)[:40]}' is not a radius: write a number >= 0 such as 0.1 or 8/255.")
    exact = Fraction(parts[0]) / Fraction(parts[1]) if len(parts) == 2 else Fraction(parts[0])
    if exact > Fraction(np.finfo(np.float64).max):
        raise SpecError(f"eps = '{str(text)[:40]}' is too large for a 64-bit float: write for example 0.1 or 8/255.")
    return float(exact)


def _check(image: np.ndarray, label: int, eps: float, n_out: int, norm: str) -> None:
    if norm not in _NORMS:
        raise SpecError(f"norm = '{norm}' is unknown: use one of {', '.join(_NORMS)}.")
    if n_out < 2:
        raise SpecError(f"A network with {n_out} output has no other class than the label: robustness needs at least two.")
    if not 0 <= label < n_out:
        raise SpecError(f"label = {label} is not a class of a network with {n_out} outputs: give 0 to {n_out - 1}.")
    if not (np.isfinite(eps) and eps >= 0):
        raise SpecError(f"eps = {eps} is not a radius: give a finite number >= 0.")
    if image.size == 0 or not np.isfinite(image).all():
        raise SpecError("The image is empty, or has a NaN or infinite pixel: give finite numbers.")


def _per_pixel(values: Sequence[float] | float, shape: tuple[int, ...], name: str) -> np.ndarray:
    """One number for each number of the image, `(n_in,)`, from one for all or one a channel."""
    channels = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(channels).all():
        raise SpecError(f"{name} has a NaN or infinite number: check the normalisation.")
    if channels.size == 1:
        return np.full(int(np.prod(shape)), channels[0])
    axis = next((a for a in (-3, -1) if len(shape) >= -a and shape[a] == channels.size), None)
    if axis is None:
        raise SpecError(f"{name} has {channels.size} channels but the image has shape {shape}: give one number a channel, or one for all.")
    column = channels.reshape(channels.size, *([1] * (-axis - 1)))
    return np.broadcast_to(column, shape).reshape(-1)


def _normalised(image: np.ndarray, shift: float, clip: tuple[float, float], mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """(image + shift, clipped, - mean) / std off by less than an ulp: large pixels lose nothing of a small shift.

    What a sum or a quotient of floats rounds is a float, or nearly so, and is added at the end (Knuth, Dekker).
    """
    low, high = clip
    if not mean.any() and (std == 1).all():
        return np.clip(image + shift, low, high)
    with np.errstate(all="ignore"):
        end, rest = _sum(image, np.full_like(image, shift))
        for side, outside in ((low, (end < low) | ((end == low) & (rest < 0))), (high, (end > high) | ((end == high) & (rest > 0)))):
            end, rest = np.where(outside, side, end), np.where(outside, 0.0, rest)
        end, more = _sum(end, -mean)
        end, rest = _sum(end, rest + more)
        quotient = end / std
        exact = quotient + (_remainder(end, quotient, std) + rest) / std
    return np.where(np.isfinite(exact), exact, quotient)


def _sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a + b, rounded, and what that takes off."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _remainder(dividend: np.ndarray, quotient: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    """dividend - quotient * divisor; the product of two floats is the sum of four of half their digits."""
    (q1, q2), (d1, d2) = ((top := part * (2**27 + 1) - (part * (2**27 + 1) - part), part - top) for part in (quotient, divisor))
    return (((dividend - q1 * d1) - q1 * d2) - q2 * d1) - q2 * d2


def _ball(image: np.ndarray, eps: float, mean: np.ndarray, std: np.ndarray, norm: int) -> Ball:
    center, radius = _normalised(image, 0.0, (-np.inf, np.inf), mean, std), float(eps / std[0])
    rounded = np.spacing(abs(center)) * (mean.any() or (std != 1).any())
    return Ball(center, radius, norm, float(np.linalg.norm(rounded, norm)) + float(np.spacing(radius)) * bool(std[0] != 1))


def _label_changes(label: int, n_out: int) -> tuple[Polytope, ...]:
    """y_label - y_j <= 0, one polytope for each j != label."""
    eye = np.eye(n_out)
    return tuple(Polytope(eye[None, label] - eye[None, j], np.zeros(1)) for j in range(n_out) if j != label)
