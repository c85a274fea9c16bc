"""Calibration texts for the built-in tasks, written for this project; no suite has them."""
