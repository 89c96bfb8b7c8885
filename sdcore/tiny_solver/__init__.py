"""builtin:tiny-solver: how it is built, and its weights."""
