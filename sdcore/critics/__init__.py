"""Critics: how one is asked and validated, and how good it is."""
