"""Reads model artifacts: locations, digests, attestations, and whether a model may be loaded."""
