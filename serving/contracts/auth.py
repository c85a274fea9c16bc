"""Tenants and API keys, as the gateway uses them."""

from typing import Protocol

from serving.contracts.ledger import Caller, Tenant


class Directory(Protocol):
    """The tenants and their API keys; serving.ledger implements it.

    No method but `refresh` and `watch` waits, so a request costs the database nothing.
    """

    def find(self, presented: str) -> Caller:
        """Return the caller of a key. Raises Unauthenticated, and LedgerUnavailable as `tenant`.

        Takes as long for a key that does not exist as for one whose secret is wrong.
        """
        ...

    def tenant(self, name: str) -> Tenant:
        """Return a tenant with its limits. Raises NotFound for an unknown name.

        The default tenant always exists. Raises LedgerUnavailable where the copy of
        tenants and keys is older than auth.max_stale_s, or was never read.
        """
        ...

    async def refresh(self) -> None:
        """Read the database once; a failure is logged, not raised."""
        ...

    async def watch(self) -> None:
        """Read changes from the database until cancelled; a failed read is logged, not raised."""
        ...
