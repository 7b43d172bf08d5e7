"""Rules: what each operation is to the engines (import this package to register all)."""
from verifier.ops import affine, bilinear, conv, pool, relu, shape, smooth
from verifier.ops.rule import AffineOp, ElementwiseOp, NonlinearOp, Rule, register, registered_ops, rule_for

__all__ = [
    "AffineOp", "ElementwiseOp", "NonlinearOp", "Rule", "affine", "bilinear", "conv", "pool", "register", "registered_ops", "relu",
    "rule_for", "shape", "smooth",
]
