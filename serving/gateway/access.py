"""Who may ask, and how much: what the gateway needs for both."""

from dataclasses import dataclass
from typing import Self

from starlette.middleware import Middleware

from serving.contracts.auth import Directory
from serving.contracts.ledger_settings import AuthSettings
from serving.gateway.auth import Authentication
from serving.gateway.limits import LimitTenants, TenantLimits


@dataclass(frozen=True, slots=True)
class Access:
    """The tenants, this replica's count of their requests, and whether keys are asked for."""

    directory: Directory
    limits: TenantLimits
    enforced: bool

    @classmethod
    def of(cls, directory: Directory, settings: AuthSettings, gateway_replicas: int) -> Self:
        """Return what the settings ask for."""
        return cls(directory, TenantLimits(gateway_replicas), settings.mode == "keys")

    def middleware(self) -> list[Middleware]:
        """Return what every request passes before its body is read, outermost first."""
        return [
            Middleware(Authentication, directory=self.directory, enforced=self.enforced),
            Middleware(LimitTenants, directory=self.directory, limits=self.limits),
        ]
