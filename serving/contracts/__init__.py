"""Frozen types that every package may import. Imports no other package of this project."""
