"""Bound engines on the graph: IBP, CROWN, alpha-CROWN."""
