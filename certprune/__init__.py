"""CertPrune: networks pruned so that they can be proved robust; the prover itself is the package `verifier`."""
__version__ = "0.1.0"
