"""Evaluates models on suites against their 16-bit baseline and signs the verdicts.

Examples of a suite are never used for calibration.
"""
