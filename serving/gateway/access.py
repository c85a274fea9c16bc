"""Authentication and tenants' limits, together."""

from dataclasses import dataclass
from typing import Self

from starlette.middleware import Middleware

from serving.contracts.auth import Directory
from serving.contracts.ledger_settings import AuthSettings
from serving.gateway.auth import Authentication
from serving.gateway.limits import LimitTenants, TenantLimits


@dataclass(frozen=True, slots=True)
class Access:
    """The tenants, this replica's count of their requests, and whether keys are required."""

    directory: Directory
    limits: TenantLimits
    enforced: bool

    @classmethod
    def of(cls, directory: Directory, settings: AuthSettings, gateway_replicas: int) -> Self:
        """Return the access that the settings describe."""
        return cls(directory, TenantLimits(gateway_replicas), settings.mode == "keys")

    def middleware(self) -> list[Middleware]:
        """Return the middleware that runs before a body is read, outermost first."""
        return [
            Middleware(Authentication, directory=self.directory, enforced=self.enforced),
            Middleware(LimitTenants, directory=self.directory, limits=self.limits),
        ]
