"""Starts the stack on this machine and stops all its processes."""
