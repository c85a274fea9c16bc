"""Prices and costs: the price table, the operator's own prices, and the cost of a row."""
