"""Tenants and their API keys: at rest, and in memory for the gateway."""
