"""Calls of frontier APIs: bounds, prompt caching, retries, fallback, circuit breakers."""
