"""Objectives, losses and the trainer."""
