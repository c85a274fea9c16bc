"""Reports on spending, waste and savings, and the reconciliation of the ledger."""
