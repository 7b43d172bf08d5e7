"""Exact solvers for leaves: LPs through HiGHS."""
