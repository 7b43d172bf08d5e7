"""Counterexamples: search, and the one gate that confirms them."""
