"""The HTTP side: task endpoints, OpenAI-compatible endpoints, errors, limits, health, metrics."""
