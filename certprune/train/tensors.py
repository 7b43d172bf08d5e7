"""Tensors in the place of a module's parameters and buffers, for the time of a `with` block.

One mechanism for three needs: weights under a mask that is being learned (HYDRA), statistics of a batch in the place of BatchNorm's running
ones (bounds in training), and both at once.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def substituted(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The module computes with these tensors, named as by `named_parameters` and `named_buffers`; gradients flow to them.

    Raises:
        KeyError: the module has no parameter or buffer of a name.
    """
    homes = [(_home(module, name), name.rpartition(".")[2], tensor) for name, tensor in tensors.items()]
    before = [(table, leaf, table[leaf]) for table, leaf, _ in homes]
    try:
        for table, leaf, tensor in homes:
            table[leaf] = tensor
        yield
    finally:
        for table, leaf, original in before:
            table[leaf] = original


def _home(module: nn.Module, name: str) -> dict[str, Tensor | None]:
    """The table of a module's parameters or buffers that holds `name`."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    for table in (owner._parameters, owner._buffers):
        if leaf in table:
            return table
    raise KeyError(name)
