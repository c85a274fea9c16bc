"""The HTTP server: task endpoints, OpenAI-compatible endpoints, errors, health, metrics."""
