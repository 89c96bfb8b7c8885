"""The local page that browses a run's problems, rollouts, critiques and tokens."""
