"""Who may ask, as the gateway sees it."""

from typing import Protocol

from serving.contracts.ledger import Caller, Tenant


class Directory(Protocol):
    """The tenants and their API keys; serving.ledger implements it.

    No method but `watch` waits, so a request costs the database nothing.
    """

    def find(self, presented: str) -> Caller:
        """Return whose key it is. Raises Unauthenticated, and LedgerUnavailable as `tenant`.

        Takes as long for a key that does not exist as for one whose secret is wrong.
        """
        ...

    def tenant(self, name: str) -> Tenant:
        """Return a tenant with its limits. Raises NotFound for a name that is none.

        The default tenant always exists. Raises LedgerUnavailable where what is known of tenants
        and keys is too old to be relied on, or nothing is known yet.
        """
        ...

    async def watch(self) -> None:
        """Keep up with the database until cancelled; its absence is logged and not raised."""
        ...
