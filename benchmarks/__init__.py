"""Measures the stack beside its parts; not part of the product's wheel."""
