"""Redo a stage, or grade stored rollouts again."""
