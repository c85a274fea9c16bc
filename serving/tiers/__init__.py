"""Cheaper tiers earned per cluster of requests: clusters, claims, payback. Pure but for files."""
