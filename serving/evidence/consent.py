"""To which providers an input may go for evidence. Pure."""

from dataclasses import dataclass

from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.ledger import Caller, Tenant
from serving.contracts.routing import RequestOptions


@dataclass(frozen=True, slots=True)
class Consent:
    """The providers that may receive an input for an audit, in shadow, or to explore.

    What a request escalates to for its own answer is no evidence and not decided here.
    """

    providers: frozenset[str] = frozenset()

    def allows(self, reference: str) -> bool:
        """Return whether an input may go to this `provider/model`."""
        return reference.partition("/")[0] in self.providers


NO_PROVIDER = Consent()


def consent_of(
    options: RequestOptions,
    caller: Caller,
    tenant: Tenant,
    settings: EvidenceSettings,
    reference: str | None,
) -> Consent:
    """Return the consent of a request.

    Every party can say no: the client by route or header, the key, the tenant, the settings. The
    tenant's list of providers replaces that of the settings, which replaces the reference's own.
    """
    flags = (settings.external, tenant.evidence_external, caller.evidence_external)
    if options.route == "local_only" or options.audit == "never" or False in flags:
        return NO_PROVIDER
    if tenant.evidence_providers is not None:
        return Consent(frozenset(filter(None, tenant.evidence_providers.split(","))))
    if settings.providers is not None:
        return Consent(frozenset(settings.providers))
    return NO_PROVIDER if reference is None else Consent(frozenset({reference.partition("/")[0]}))
