"""Conditions and seeds on machines that share no file system: what travels, and how it is merged.

Below `cluster.root`, for as long as a condition and seed is trained:

    parts/EXPERIMENT/CONDITION/seed-S/ATTEMPT/    given.parquet, then a part per transaction
    checkpoints/EXPERIMENT/CONDITION/seed-S/round-0004-DIGEST/

An attempt is one node's work on a condition and seed. The run's own process opens it, and merges
the parts of the newest attempt only: a node that was given up for lost may still write to an older
one. Checkpoints are named by their weights, so that two nodes cannot overwrite each other's.
"""
