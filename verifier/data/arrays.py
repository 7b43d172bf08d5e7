"""What every reader of a format returns: the numbers as they were stored, images by channel first."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """`x, x_test: (N, C, H, W)`, `y, y_test: (N,)` integers; x / scale lies in [0, 1]."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    scale: float = 255.0
