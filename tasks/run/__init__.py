"""Shared by the stages: the run of a condition, its rows, live models, locks, progress."""
