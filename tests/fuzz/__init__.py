"""Fuzzers: `make fuzz` runs them for minutes, the unit tests run a small fixed share of each."""
