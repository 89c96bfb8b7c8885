"""Processes, ports and clocks."""
