"""Output channels: what belongs to one, and masks that remove whole ones.

A removed channel is zero behind its layer: the rows of the weight, the layer's bias, and the scale and offset of a BatchNorm that reads this
layer alone. So its ReLU has nothing to decide, and an export can cut it out. A kept channel is whole.
"""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

import verifier
from certprune.prune.mask import Mask, Scope, Scores
from certprune.train.net import Net


def norm_of_layer(net: Net) -> dict[str, str]:
    """For each convolution or linear layer whose value only a BatchNorm reads: that BatchNorm, both by module name."""
    found = {}
    for node in net.trace.traced.graph.nodes:
        readers = list(node.users)
        if _is_layer(net, node) and len(readers) == 1 and readers[0].op == "call_module" and readers[0].target in net.norms:
            found[node.target] = readers[0].target
    return found


def value_of_layer(net: Net) -> dict[str, str]:
    """For each layer the value, named as in the graph, that a ReLU reads of its channels: behind BatchNorm and residual sums, the first met."""
    nonlinear = {node.args[0] for node in net.trace.traced.graph.nodes if _is_relu(net, node)}
    found = {}
    for node in net.trace.traced.graph.nodes:
        if not _is_layer(net, node):
            continue
        behind = [node]
        while behind:
            value = behind.pop(0)
            if value in nonlinear:
                found[node.target] = value.name
                break
            behind += [user for user in value.users if _keeps_channels(net, user)]
    return found


def _is_layer(net: Net, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(net.model.get_submodule(node.target), (nn.Conv2d, nn.Linear))


def _is_relu(net: Net, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(net.model.get_submodule(node.target), nn.ReLU)
    return node.op in ("call_function", "call_method") and getattr(node.target, "__name__", node.target) in ("relu", "relu_")


def _keeps_channels(net: Net, node: fx.Node) -> bool:
    if node.op == "call_module":
        return node.target in net.norms or isinstance(net.model.get_submodule(node.target), nn.Identity)
    return node.op == "call_function" and getattr(node.target, "__name__", "") in ("add", "iadd")


def channel_score(score: Tensor) -> Tensor:
    """The mean of a weight's scores over each output channel, `(channels,)`."""
    return score.detach().double().flatten(1).mean(1)


def over_channels(score: Tensor, weight: Tensor) -> Tensor:
    """A score of each channel, `(channels,)`, given to all its weights."""
    return score.reshape(-1, *[1] * (weight.ndim - 1)).expand_as(weight)


def select_channels(net: Net, scores: Scores, removed: float, scope: Scope, within: Mapping[str, Tensor] | None = None) -> Mask:
    """The mask that removes channels of lowest mean score, as many as remove at most the fraction `removed` of the weights.

    Channels of which `within` keeps no weight stay removed and count. The last channel of a layer stays, so a high sparsity may not be reached.

    Raises:
        VerifierError: the fraction is not in [0, 1), or more channels than that are gone already.
    """
    if not 0 <= removed < 1:
        raise verifier.VerifierError(f"sparsity is {removed:g}: give the fraction of weights to remove, from 0 up to but not including 1.")
    alive = {name: torch.ones(len(s), dtype=torch.bool, device=s.device) if within is None else within[name].flatten(1).any(1)
             for name, s in scores.items()}
    pools = [[name] for name in scores] if scope is Scope.LAYER else [list(scores)]
    kept = {name: keep for pool in pools for name, keep in _kept(pool, scores, alive, removed).items()}
    return _with_companions(net, scores, kept)


def _kept(pool: list[str], scores: Scores, alive: Mapping[str, Tensor], removed: float) -> dict[str, Tensor]:
    """Which channels of the layers in `pool` stay, `(channels,)` each."""
    size = {name: scores[name][0].numel() for name in pool}
    kept = {name: alive[name].clone() for name in pool}
    total = sum(scores[name].numel() for name in pool)
    left = round(removed * total) - sum(int((~alive[name]).sum()) * size[name] for name in pool)
    if left < 0:
        raise verifier.VerifierError(f"sparsity {removed:g} keeps more channels than live in {', '.join(pool)}: give a higher sparsity.")
    order = sorted((float(value), k, i) for k, name in enumerate(pool) for i, value in enumerate(channel_score(scores[name])) if alive[name][i])
    for _, k, channel in order:
        name = pool[k]
        if int(kept[name].sum()) == 1:
            continue
        if size[name] > left:
            break
        kept[name][channel] = False
        left -= size[name]
    return kept


def _with_companions(net: Net, scores: Scores, kept: Mapping[str, Tensor]) -> Mask:
    """Whole channels, and what goes with them: the layer's bias, the BatchNorm's scale and offset."""
    parameters, norms = dict(net.model.named_parameters()), norm_of_layer(net)
    mask = {name: over_channels(keep, scores[name]).clone() for name, keep in kept.items()}
    for name, keep in kept.items():
        layer = name.removesuffix(".weight")
        companions = [f"{layer}.bias", *([f"{norms[layer]}.weight", f"{norms[layer]}.bias"] if layer in norms else [])]
        mask.update({companion: keep.clone() for companion in companions if companion in parameters})
    return mask
