"""The stages of a request's way; pipeline.py puts them in order."""
