"""The ledger: the cost of every request, by token class."""
