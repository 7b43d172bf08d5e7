"""Measurements: certified accuracy of image sets, output bounds, stable and unstable neurons."""
