"""Every pruning method by name; its settings are the fields of its class."""
from __future__ import annotations

from certprune.prune.adv_admm import AdvAdmm
from certprune.prune.hydra import Hydra
from certprune.prune.hydra_stability import HydraStability
from certprune.prune.magnitude import Magnitude
from certprune.prune.nrs_channels import NrsChannels
from certprune.prune.random import Random
from certprune.prune.refill import Refill
from certprune.prune.scorer import Scorer
from certprune.prune.slimming import Slimming
from certprune.prune.snip import Snip
from certprune.prune.taylor import Taylor
from certprune.prune.verification_guided import VerificationGuided

_METHODS = (Random, Magnitude, Snip, Taylor, Hydra, HydraStability, Slimming, Refill, NrsChannels, AdvAdmm, VerificationGuided)
SCORERS: dict[str, type[Scorer]] = {method.name: method for method in _METHODS}
