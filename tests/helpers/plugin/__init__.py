"""A package from outside that adds one entry of each kind, each in a file of its own."""
