"""What the stages share: the run of a condition, its rows, live models, locks, progress."""
