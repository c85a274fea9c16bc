"""Texts that the router is trained on, written for this project."""
