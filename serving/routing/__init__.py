"""Routing: detects narrow tasks, scores complexity, and decides what escalates."""
