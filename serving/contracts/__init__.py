"""Frozen types that every package may import. Imports nothing of ours outside this package."""
