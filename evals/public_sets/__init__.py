"""Public data sets by name, turned into suites."""
