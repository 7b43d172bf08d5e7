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
from certprune.prune.gradients import batches, drawn, gradient, mean_gradients, split, with_batch
from certprune.prune.mask import Scope, Scores, weights_of
from certprune.prune.scorer import Context, Findings
from certprune.prune.stability import Range, ranges
from certprune.ranges import Count, Weight, Whole
from certprune.train.regularizers import Engine

# Images in a batch of bounds: as many as BatchNorm's statistics want, as few as memory does.
BOUNDED_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class VerificationGuided:
    """score(w) = |w| / mean |w| + taylor * |w dL/dw| / mean |w dL/dw| - stability * (w dR/dw) / mean |w dR/dw|.

    L is the objective's loss over `images` drawn images and, `hard` times more often each, those undecided or falsified. R is the mean over
    images i and neurons n of a_i s_n (-tanh(1 + l u / gamma^2))_in, a_i = 1 + hard for undecided images and 1 for drawn ones, s_n = 1 / neurons
    + n's share of all splits: half is what was found, half is for what will be hard once that is mended. To first order, removing w changes R
    by -w dR/dw, so the last term is what its removal gains in stability. The derivative is through the bounds' width u - l alone, their centre
    held: biases and BatchNorm move centres at will in the training that follows, and otherwise the weights of one sign would be removed, which
    makes a neuron stable by killing it. Means are over the living weights that compete with w, so `taylor` and `stability` have no unit.
    Without findings (before the first verification) all neurons and images weigh the same.

    Both gradients see BatchNorm over the batch, which undoes any scaling of a neuron: what counts is a weight's share of the bounds' width
    against its share of the neuron's spread over images. `bounded`: on how many images R is taken (the dear part). `engine`: whose bounds,
    `crown`, or `ibp`: cheap, but of deep layers often so wide that tanh is flat and its gradient nothing.
    """

    taylor: Weight = 1.0
    stability: Weight = 1.0
    hard: Whole = 2
    images: Count = 512
    bounded: Count = 32
    engine: Engine = "crown"
    name: ClassVar[str] = "verification-guided"
    granularity: ClassVar[Literal["weight"]] = "weight"

    def __call__(self, context: Context) -> Scores:
        weights = {name: w.detach() for name, w in weights_of(context.net.model, context.mask).items()}
        findings = checked(context)
        of_loss = mean_gradients(context, context.fit.objective, self.harmed(context, findings))
        of_instability = self.instability_gradients(context, findings)
        size = {name: w.abs() for name, w in weights.items()}
        harm = {name: (w * of_loss[name]).abs() for name, w in weights.items()}
        gain = {name: w * of_instability[name] for name, w in weights.items()}
        size, harm, gain = (in_units(term, context) for term in (size, harm, gain))
        return {name: size[name] + self.taylor * harm[name] - self.stability * gain[name] for name in weights}

    def harmed(self, context: Context, findings: Findings) -> Tensor:
        """Indices of the images of L, in random order: drawn ones, and the failed ones (of many, some) `hard` times."""
        failed = shuffled(torch.tensor(sorted({*findings.undecided, *findings.falsified}), dtype=torch.long), context)[:self.images]
        return shuffled(torch.cat([drawn(context, self.images), failed.repeat(self.hard)]), context)

    def instability_gradients(self, context: Context, findings: Findings) -> Scores:
        """dR/dw up to a factor."""
        undecided = shuffled(torch.tensor(findings.undecided, dtype=torch.long), context)[:self.bounded // 2]
        others = drawn(context, self.bounded - len(undecided))
        index, counts = torch.cat([undecided, others]), torch.ones(len(undecided) + len(others))
        counts[:len(undecided)] += self.hard
        order = shuffled(torch.arange(len(index)), context)
        found: Scores = {}
        for batch, of_images in zip(batches(with_batch(context, BOUNDED_AT_ONCE), index[order]), split(counts[order], BOUNDED_AT_ONCE)):
            total = split_instability(width_terms(ranges(batch, self.engine)), findings.splits, of_images.to(batch.x.device))
            found = {name: found.get(name, 0) + g for name, g in gradient(context, batch, total).items()}
        return found


def checked(context: Context) -> Findings:
    """The context's findings (none: empty ones).

    Raises:
        VerifierError: they speak of images that are not there.
    """
    findings = context.findings or Findings()
    wrong = [k for k in (*findings.undecided, *findings.falsified) if not 0 <= k < len(context.x)]
    if wrong:
        raise verifier.VerifierError(f"The findings speak of image {wrong[0]}, but there are {len(context.x)} training images: "
                                     "they are of another data set.")
    return findings


def shuffled(values: Tensor, context: Context) -> Tensor:
    return values[torch.randperm(len(values), generator=context.generator)]


def width_terms(found: Mapping[str, Range]) -> dict[str, Tensor]:
    """Each neuron's instability as a function of its radius alone: the centre is held constant."""
    return {name: replace(value, centre=value.centre.detach()).instability() for name, value in found.items()}


def split_instability(terms: Mapping[str, Tensor], splits: Mapping[str, Tensor], of_images: Tensor) -> Tensor:
    """The sum over images i and neurons n of a_i s_n terms_in, s_n = 1 / neurons + n's share of all splits.

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
    neurons = sum(term[0].numel() for term in terms.values())
    total = max(sum(float(count.sum()) for count in splits.values()), 1.0)
    result = of_images.new_zeros(())
    for name, term in terms.items():
        share = torch.full_like(term[0].flatten(), 1 / neurons)
        if name in splits:
            share = share + splits[name].flatten().to(share) / total
        result = result + of_images.to(share) @ term.flatten(1) @ share
    return result


def in_units(term: Scores, context: Context) -> Scores:
    """The term divided by the mean of its absolute value over the living weights that compete: of a layer, or all."""
    living = {name: term[name].abs()[context.mask[name]] for name in term}
    if context.scope is Scope.GLOBAL:
        living = dict.fromkeys(term, torch.cat(list(living.values())))
    return {name: value / living[name].mean().clamp(min=1e-30) if living[name].numel() else value for name, value in term.items()}
