"""Measurements: how stable neurons are, how many images are certified, how tight bounds are."""
