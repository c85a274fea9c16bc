"""Answers that were paid for already: kept, found again, and deleted."""
