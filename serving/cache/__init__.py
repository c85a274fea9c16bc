"""Stores answers, finds them for equal requests, and deletes them."""
