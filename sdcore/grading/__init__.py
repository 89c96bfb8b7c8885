"""Is an answer right? Numbers, algebra in bounded workers, and sums in text."""
