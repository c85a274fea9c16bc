"""What a gate found, for people: one HTML file, and a short Markdown summary."""
