"""Objectives and regularisers by the names that a configuration gives them: `objective = {name = "sabr", small_box = 0.4}`."""
from __future__ import annotations

from certprune.train import regularizers as terms
from certprune.train import warmup_regularizers as warmup
from certprune.train.objectives.cc_ibp import CcIbp
from certprune.train.objectives.crown_ibp import CrownIbp
from certprune.train.objectives.exp_ibp import ExpIbp
from certprune.train.objectives.fgsm import FgsmGradAlign
from certprune.train.objectives.gaussian import Gaussian
from certprune.train.objectives.ibp import Ibp
from certprune.train.objectives.mixtrain import MixTrain
from certprune.train.objectives.mtl_ibp import MtlIbp
from certprune.train.objectives.natural import Natural
from certprune.train.objectives.objective import Objective
from certprune.train.objectives.pgd import Pgd
from certprune.train.objectives.sabr import Sabr
from certprune.train.stability_distance import StabilityDistance

OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind for kind in (Natural, Pgd, FgsmGradAlign, Gaussian, Ibp, CrownIbp, Sabr, MtlIbp, CcIbp, ExpIbp, MixTrain)
}
REGULARIZERS: dict[str, type[terms.Regularizer]] = {
    kind.name: kind
    for kind in (
        terms.ReluStability, terms.NormalizedReluStability, StabilityDistance, terms.L1, terms.Slimming, warmup.BoundTightness, warmup.ReluBalance,
    )
}
