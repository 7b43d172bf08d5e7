"""Every tolerance of the bound tests, named, with its reason."""
from __future__ import annotations

# Tests of theorems run in float64 on networks of a few dozen neurons: sums of some hundred products, each with an error of 1e-16 of its size.
EXACT = 1e-9

# Planes of piecewise linear functions in float32: one product and one sum, each within 6e-8 of its size, taken four times.
PLANE_FLOAT32 = 3e-7

# LP and MILP optima by HiGHS: its primal and dual feasibility tolerances are 1e-7, amplified by the sizes of duals (about 10 here).
SOLVER = 2e-6

# Bounds of real networks in float32 against another tool's: both sum the same numbers in different orders, over up to nine layers.
REFERENCE_RELATIVE = 1e-4
