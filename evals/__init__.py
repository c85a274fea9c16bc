"""Evaluation: suites, the gate that compares a model with its baseline on them, and attestations.

No calibration may use any example of a suite.
"""
