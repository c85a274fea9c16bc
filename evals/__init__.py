"""Evaluation: the suites on which a gate tests. No calibration may use any of their examples."""
