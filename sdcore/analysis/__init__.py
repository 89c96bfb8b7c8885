"""Metrics, intervals, comparisons, token signals, and the preflight's verdicts."""
