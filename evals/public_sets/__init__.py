"""Makes suites from public data sets."""
