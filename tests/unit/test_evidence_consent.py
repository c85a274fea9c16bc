"""Consent: whoever may keep an input from providers keeps it."""

from itertools import product

import pytest

from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.ledger import Caller, Tenant
from serving.contracts.routing import RequestOptions
from serving.evidence.consent import consent_of

REFERENCE = "openai/gpt-6-luna"


@pytest.mark.parametrize(
    ("route", "audit", "external", "tenant", "key"),
    list(product(("auto", "local_only", "frontier_only"), ("auto", "never"), (True, False),
            (None, True, False), (None, True, False))),
)  # fmt: skip
def test_one_no_is_enough(
    route: str, audit: str, external: bool, tenant: bool | None, key: bool | None
) -> None:
    found = consent_of(
        RequestOptions(route=route, audit=audit),  # type: ignore[arg-type]
        Caller("acme", "k", evidence_external=key),
        Tenant("acme", evidence_external=tenant),
        EvidenceSettings(external=external),
        REFERENCE,
    )
    refused = route == "local_only" or audit == "never" or False in (external, tenant, key)
    assert found.allows(REFERENCE) is not refused
    assert not found.allows("anthropic/claude-haiku-5-5")


@pytest.mark.parametrize(
    ("settings", "tenant", "allowed"),
    [
        (None, None, {"openai"}),
        (("anthropic",), None, {"anthropic"}),
        (("anthropic",), "openai,local-box", {"openai", "local-box"}),
        (None, "", set()),
    ],
)
def test_the_tenants_list_comes_first(
    settings: tuple[str, ...] | None, tenant: str | None, allowed: set[str]
) -> None:
    found = consent_of(
        RequestOptions(), Caller("acme"), Tenant("acme", evidence_providers=tenant),
        EvidenceSettings(providers=settings), REFERENCE,
    )  # fmt: skip
    assert found.providers == allowed


def test_without_a_reference_nothing_leaves() -> None:
    found = consent_of(RequestOptions(), Caller("a"), Tenant("a"), EvidenceSettings(), None)
    assert found.providers == frozenset()
