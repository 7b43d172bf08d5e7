"""What the last verification could not do decides which weights go.

Branch and bound splits the neurons whose relaxation costs it the proof, on the images that it cannot prove. A weight is worth less the more its
removal would stabilise those neurons on those images, and worth more the more its removal would harm the loss, above all on those images.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

import verifier
from certprune.prune.gradients import batches, drawn, gradient
from certprune.prune.mask import Scope, Scores, weights_of
from certprune.prune.scorer import Context, Findings
from certprune.prune.stability import instabilities


@dataclass(frozen=True, slots=True)
class VerificationGuided:
    """score(w) = |w| / mean |w| + taylor * |w dL/dw| / mean |w dL/dw| - stability * (w dR/dw) / mean |w dR/dw|.

    L is the objective's loss over `images` drawn images and, `hard` times more often each, those undecided or falsified. R = the mean over
    undecided images and neurons n, weighted by how often n was split, of -tanh(1 + l_n u_n / gamma_n^2). To first order, removing w changes R
    by -w dR/dw, so the last term is what its removal gains in stability. Means are over the living weights that compete with w, so `taylor` and
    `stability` have no unit. Without findings (before the first verification) all neurons and images weigh the same.

    Both gradients see BatchNorm over the batch, which undoes any scaling of a neuron: what counts is a weight's share of the bounds' width
    against its share of the neuron's spread over images. `engine`: whose bounds, `crown` or `ibp` (whose bounds may be so wide that tanh is flat).
    """

    taylor: float = 1.0
    stability: float = 1.0
    hard: int = 2
    images: int = 256
    engine: str = "crown"
    name: ClassVar[str] = "verification-guided"
    granularity: ClassVar[Literal["weight"]] = "weight"

    def __call__(self, context: Context) -> Scores:
        weights = {name: w.detach() for name, w in weights_of(context.net.model, context.mask).items()}
        of_loss, of_instability = self.gradients(context)
        size = {name: w.abs() for name, w in weights.items()}
        harm = {name: (w * of_loss[name]).abs() for name, w in weights.items()}
        gain = {name: w * of_instability[name] for name, w in weights.items()}
        size, harm, gain = (in_units(term, context) for term in (size, harm, gain))
        return {name: size[name] + self.taylor * harm[name] - self.stability * gain[name] for name in weights}

    def gradients(self, context: Context) -> tuple[Scores, Scores]:
        """dL/dw and dR/dw, up to a factor each."""
        findings = context.findings or Findings()
        index = self.chosen(context, findings)
        undecided = torch.isin(index, torch.tensor(findings.undecided, dtype=index.dtype))
        weight_of_image = undecided.float() if undecided.any() else torch.ones(len(index))
        of_loss, of_instability, at = {}, {}, 0
        for batch in batches(replace(context, fit=replace(context.fit, batch=min(context.fit.batch, 64))), index):
            count = len(batch.x)
            loss = gradient(context, batch, context.fit.objective(batch))
            of_loss = {name: of_loss.get(name, 0) + count * g for name, g in loss.items()}
            of_images = weight_of_image[at:at + count].to(batch.x.device)
            instability = gradient(context, batch, split_instability(instabilities(batch, self.engine), findings.splits, of_images))
            of_instability = {name: of_instability.get(name, 0) + g for name, g in instability.items()}
            at += count
        return of_loss, of_instability

    def chosen(self, context: Context, findings: Findings) -> Tensor:
        """Indices of the images to look at, in random order: drawn ones, and the hard ones (of many, some) `hard` times."""
        failed = torch.tensor(sorted({*findings.undecided, *findings.falsified}), dtype=torch.long)
        if len(failed) and not 0 <= int(failed.min()) <= int(failed.max()) < len(context.x):
            raise verifier.VerifierError(f"The findings speak of image {int(failed.max())}, but there are {len(context.x)} training images: "
                                         "they are of another data set.")
        failed = failed[torch.randperm(len(failed), generator=context.generator)[:self.images]]
        together = torch.cat([drawn(context, self.images), failed.repeat(self.hard)])
        return together[torch.randperm(len(together), generator=context.generator)]


def split_instability(terms: Mapping[str, Tensor], splits: Mapping[str, Tensor], of_images: Tensor) -> Tensor:
    """The sum over images i and neurons n of a_i s_n terms_in, s the shares of splits (all one, if nothing was split).

    Args:
        terms: each neuron's instability, `(B, *shape)` by value.
        splits: how often each was split, `(*shape)` with or without leading ones; a value that is missing was never split.
        of_images: a, `(B,)`.

    Raises:
        VerifierError: a value of `splits` is not the network's.
    """
    wrong = [name for name, count in splits.items() if name not in terms or terms[name][0].numel() != count.numel()]
    if wrong:
        raise verifier.VerifierError(f"The findings count splits of {wrong[0]!r}, which is no activation's input here, or of another shape: "
                                     "they are of another network.")
    total = sum(float(count.sum()) for count in splits.values())
    result = of_images.new_zeros(())
    for name, term in terms.items():
        flat = term.flatten(1)
        if total > 0 and name not in splits:
            continue
        share = splits[name].flatten().to(flat) / total if total > 0 else torch.ones_like(flat[0])
        result = result + of_images.to(flat) @ flat @ share
    return result


def in_units(term: Scores, context: Context) -> Scores:
    """The term divided by the mean of its absolute value over the living weights that compete: of a layer, or all."""
    living = {name: term[name].abs()[context.mask[name]] for name in term}
    if context.scope is Scope.GLOBAL:
        living = dict.fromkeys(term, torch.cat(list(living.values())))
    return {name: value / living[name].mean().clamp(min=1e-30) if living[name].numel() else value for name, value in term.items()}
