"""Ranges of settings, as types: a field `alpha: Share` is a float to whoever computes with it, and a range to whoever reads a configuration."""
from __future__ import annotations

import math
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

Share = Annotated[float, Ge(0), Le(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
Weight = Annotated[float, Ge(0), Lt(math.inf)]
"""Of a term in a loss or a score."""
Whole = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
