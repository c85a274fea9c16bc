"""Evaluates the router: task detection, and complexity scores against cost."""
