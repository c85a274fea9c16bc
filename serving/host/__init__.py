"""Utilities of the machine: processor, terminal, safe file writes, signals."""
