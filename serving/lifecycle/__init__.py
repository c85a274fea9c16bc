"""Starts the stack on this machine and stops everything it started."""
