"""Revisions of the ledger's tables. Revisions are added and never changed."""
