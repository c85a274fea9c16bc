"""Frontier APIs behind one door: bounds, prompt caching, retries, fallback, circuit breakers."""
