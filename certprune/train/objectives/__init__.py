"""Objectives of training, one a file; see objective.py."""
