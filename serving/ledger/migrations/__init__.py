"""How the ledger's tables came to be: revisions are added, and never changed."""
