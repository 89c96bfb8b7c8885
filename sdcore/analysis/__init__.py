"""What came out: metrics, intervals, comparisons, token signals, and the preflight's verdicts."""
