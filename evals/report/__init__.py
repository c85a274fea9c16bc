"""Renders a gate's findings as one HTML file and as a short Markdown summary."""
