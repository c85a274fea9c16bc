"""Compares the stack with its parts; not part of the wheel."""
