"""Query of the report on context pruning: what it saved under each claim, net of comparing."""

from collections import Counter, defaultdict
from decimal import Decimal

from sqlalchemy import Connection, func, select, type_coerce

from serving.contracts.evidence import Origin
from serving.contracts.report import ContextClaim
from serving.ledger.reports.cached import claim_bounds, compared_usd
from serving.ledger.reports.query import Scope
from serving.ledger.schema import Usd, exits

_COMPARED: tuple[Origin, ...] = ("shadow", "accepted")


def context_claims(connection: Connection, scope: Scope) -> tuple[ContextClaim, ...]:
    """Return the claims on pruned contexts with what was avoided under them and what they cost.

    scope: of one tenant leaves out claims of others and of pools.
    """
    answers, avoided = _avoided(connection, scope)
    found = []
    for bound in claim_bounds(connection, scope, "pruned_context"):
        name = bound["claim"]
        own = compared_usd(connection, scope, name, _COMPARED)
        found.append(
            ContextClaim(
                **bound, answers=answers[name], avoided_usd=avoided[name], own_usd=own,
                saved_usd=avoided[name] - own,
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda item: (item.tenants, item.subject, item.claim)))


def _avoided(
    connection: Connection, scope: Scope
) -> tuple[Counter[str], defaultdict[str, Decimal]]:
    """Return the answers from pruned contexts, and what they avoided, by claim."""
    query = (
        select(
            exits.c.claim,
            func.count(),
            type_coerce(func.coalesce(func.sum(exits.c.avoided_usd), 0), Usd),
        )
        # A cached answer avoids what it had cost, whatever its claims.
        .where(
            scope.covers(),
            exits.c.claim.is_not(None),
            exits.c.avoided_usd.is_not(None),
            exits.c.cached.is_(False),
            exits.c.outcome == "answered",
            exits.c.endpoint != "audit",
        )
        .group_by(exits.c.claim)
    )
    answers: Counter[str] = Counter()
    avoided: defaultdict[str, Decimal] = defaultdict(Decimal)
    for names, count, usd in connection.execute(query):
        for name in names.split(","):
            answers[name] += count
            avoided[name] += usd
    return answers, avoided
