"""CertPrune: networks pruned so that they can be proved robust; the prover itself is the package `verifier`."""
from verifier import __version__

__all__ = ["__version__"]
