"""Pruning: a scorer a file, one way from scores to a mask, schedules that repeat it."""
