"""Both cores for numpy, which lets go of the interpreter while it computes."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

Item, Result = TypeVar("Item"), TypeVar("Result")


def spread(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """[work(item) for item in items] on two threads, without warnings: what overflows becomes NaN or infinite, and proves nothing."""

    def quiet(item: Item) -> Result:
        with np.errstate(all="ignore"):
            return work(item)

    if len(items) < 2:
        return [quiet(item) for item in items]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(quiet, items))
