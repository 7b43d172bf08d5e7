"""Which axis of an image is its channel, for the network: images are brought into the order of axes that the network's input has, or refused.

    image (H, W, C), input (1, H, W, C)     as they are
    image (C, H, W), input (1, H, W, C)     the channel goes last; the other way round it goes first
    one of both without such axes           as they are, in the image's own order, which is said where it has several channels
    anything else                           refused: equal counts of numbers do not make an image fit
"""
from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from verifier.errors import ShapeError, VerifierError

if TYPE_CHECKING:
    from verifier.graph.ir import Graph
    from verifier.measure.certified import Perturbation

_TO_LAST, _TO_FIRST = (1, 2, 0), (2, 0, 1)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the axes of an image are put in order for the network, `axes` None where they stay; `sentence` says so where there is anything to say."""

    axes: tuple[int, ...] | None = None
    sentence: str = ""


def layout_of(image: tuple[int, ...], network: tuple[int, ...]) -> Layout:
    """The layout of images of this shape for a network of this input shape.

    Raises:
        ShapeError: no order of axes makes the image the network's input.
    """
    told = f"An image has the shape {image} but the network takes {network}"
    if prod(image) != prod(network):
        raise ShapeError(f"{told}: the counts of numbers must agree.")
    wanted = network[1:] if len(network) > len(image) and network[0] == 1 else network
    own, theirs = ([size for size in shape if size != 1] for shape in (image, network))
    if image == wanted or own == theirs:  # axes of one number have no place in the order of numbers
        return Layout()
    if len(own) < 2 or len(theirs) < 2:
        several = max(own, theirs, key=len)
        order = "the network's input has no such axes" if len(theirs) < 2 else "the images have no such axes"
        return Layout() if len(several) < 3 else Layout(sentence=f"{told}: {order}, so their numbers are taken in the order they stand in.")
    for axes, where in ((_TO_LAST, "last"), (_TO_FIRST, "first")):
        channel = 0 if where == "last" else 2
        if len(image) == 3 and tuple(image[axis] for axis in axes) == wanted and image[channel] < min(np.delete(image, channel)):
            return Layout(axes, f"{told}: their channel is put {where}.")
    raise ShapeError(f"{told}: no order of their axes, channel first or last, is the network's. Give images in the network's own layout.")


def fitted(graph: Graph, images: np.ndarray, around: Perturbation) -> np.ndarray:
    """The images `(N, *shape)` in the network's order of axes.

    Raises:
        VerifierError: they do not fit, or it cannot be told to which axis the mean and std of a channel belong.
    """
    if not len(images):
        return images
    axes = layout_of(images.shape[1:], graph.input_shape).axes
    placed = images if axes is None else images.transpose(0, *(axis + 1 for axis in axes))
    channels, shape = max(len(around.mean), len(around.std)), placed.shape[1:]
    if channels > 1 and len(shape) >= 3 and shape[-3] == shape[-1] == channels:
        raise VerifierError(f"mean and std have {channels} channels, and so have the first and the last axis of images {shape}: it cannot be told "
                            "which of them is meant. Normalise the images before.")
    return placed
