"""Builds the report from sums that the database computes. All additions are exact."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Literal, TypeVar
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Row

from serving.contracts import report as document
from serving.contracts.report import Report
from serving.ledger.database import Database
from serving.ledger.reports import cached, contexts, query, tiers
from serving.ledger.reports.bounds import output_bounds
from serving.ledger.reports.query import (
    TOKEN_CLASSES,
    CallGroup,
    DayGroup,
    ExitDay,
    ExitGroup,
    Scope,
)
from serving.ledger.reports.reconcile import reconcile_in
from serving.ledger.reports.replica_time import provisioned
from serving.ledger.reports.snapshot import snapshot

DEFAULT_TIMEOUT_S = 60.0

_Group = TypeVar("_Group")
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _DatabaseSums:
    """Sums from the database."""

    requests: int
    exits: Sequence[ExitGroup]
    calls: Sequence[CallGroup]


def build_report(
    database: Database,
    scope: Scope,
    zone: ZoneInfo,
    *,
    reconciled: bool = True,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Report:
    """Return the report on the inputs in scope as of one moment; blocking.

    zone: time zone of the days. reconciled: whether to check the ledger, which reads all its rows.
    timeout_s: as in snapshot. Raises LedgerUnavailable, and NotFound for an unknown tenant.
    """
    with snapshot(database, timeout_s) as connection:
        if scope.tenant is not None:
            query.require_known_tenant(connection, scope.tenant)
        found = _DatabaseSums(
            query.count_requests(connection, scope),
            query.exit_groups(connection, scope),
            query.call_groups(connection, scope),
        )
        savings = _savings(found)
        return Report(
            since=scope.since,
            until=scope.until,
            time_zone=zone.key,
            tenant=scope.tenant,
            totals=_totals(found),
            savings=savings,
            idle=_idle(connection, scope, found, savings) if scope.tenant is None else None,
            prices=_prices(found.calls, query.price_versions(connection)),
            prefixes=tuple(query.cached_prefixes(connection, scope)),
            cache=cached.cache_uses(connection, scope),
            cache_claims=cached.cache_claims(connection, scope),
            context_claims=contexts.context_claims(connection, scope),
            refinements=cached.refinements(connection, scope),
            purposes=tiers.purposes(connection, scope),
            clusters=tiers.clusters(connection, scope),
            output_bounds=output_bounds(connection) if scope.tenant is None else None,
            days=_days(*query.day_groups(connection, scope, zone)),
            latency=tuple(query.latencies(connection, scope)),
            tenants=_parts(found, lambda group: group.tenant) if scope.tenant is None else (),
            reconciliation=reconcile_in(connection, scope.tenant) if reconciled else None,
            **_breakdowns(found),
        )


def _breakdowns(found: _DatabaseSums) -> dict[str, Any]:
    """Return the lists that follow from the groups."""
    escalated = [group for group in found.exits if group.escalated]
    failed = [group for group in found.exits if group.status == "failed"]
    return {
        "models": _spends(found.calls, lambda call: call.model),
        "service_tiers": _spends(
            (call for call in found.calls if call.kind == "frontier"),
            lambda call: call.service_tier,
        ),
        "outcomes": _outcomes(found.calls),
        "token_classes": _token_classes(found.calls),
        "endpoints": _parts(found, lambda group: group.endpoint),
        "lanes": _parts(found, lambda group: group.lane),
        "input_purposes": _parts(found, lambda group: group.purpose),
        "tasks": _parts(found, lambda group: group.task),
        "paths": _parts(found, lambda group: group.route),
        "routes": _shares(found.exits, lambda group: group.route, found.exits),
        "reasons": _shares(found.exits, lambda group: group.reason, found.exits),
        "escalations": _shares(escalated, lambda group: group.reason, found.exits),
        "errors": _shares(failed, lambda group: group.outcome, found.exits),
        "evidence": _evidence(found.exits),
    }


def _totals(found: _DatabaseSums) -> document.Totals:
    requested = [group for group in found.exits if group.endpoint != "audit"]
    statuses = _count(requested, lambda group: group.status)
    audit_calls = [call for call in found.calls if call.endpoint == "audit"]
    states = _count(found.calls, lambda call: call.state)
    ended = [call for call in found.calls if call.state != "open"]
    wasted = _paid(call for call in ended if _wasted(call))
    return document.Totals(
        requests=found.requests,
        exits=statuses.total(),
        answered=statuses["answered"],
        failed=statuses["failed"],
        deferred=statuses["deferred"],
        unknown=statuses["unknown"],
        open=statuses["open"],
        cached=sum(group.count for group in found.exits if group.cached),
        escalated=sum(group.count for group in found.exits if group.escalated),
        calls=states.total(),
        unknown_calls=states["unknown"],
        open_calls=states["open"],
        cost_usd=_cost(found.calls),
        held_usd=_held(found.calls, "unknown"),
        open_usd=_held(found.calls, "open"),
        answers_usd=_paid(ended) - wasted,
        wasted_usd=wasted,
        frontier_usd=_cost(call for call in found.calls if call.kind == "frontier"),
        local_usd=_cost(call for call in found.calls if call.kind == "local"),
        replica_us=sum(call.replica_us for call in found.calls),
        without_reference=sum(group.unpriced for group in _answered(requested)),
        unguaranteed=sum(group.unguaranteed for group in _answered(requested)),
        audits=sum(group.count for group in found.exits) - statuses.total(),
        audits_usd=_paid(audit_calls),
    )


def _evidence(exits: Sequence[ExitGroup]) -> tuple[document.EvidenceShare, ...]:
    """Return the evidence of the local answers that count as a saving, most expensive first."""
    local = [g for g in _answered(exits) if g.route == "local" and g.endpoint != "audit"]
    whole = sum((group.reference_usd for group in local), Decimal(0))
    found = []
    for name, groups in _grouped(local, lambda group: group.evidence or "suite").items():
        usd = sum((group.reference_usd for group in groups), Decimal(0))
        count = sum(group.count for group in groups)
        found.append(
            document.EvidenceShare(
                name=name, count=count, reference_usd=usd, share=_ratio(usd, whole)
            )
        )
    return tuple(sorted(found, key=lambda item: (-item.reference_usd, item.name)))


def _savings(found: _DatabaseSums) -> document.Savings:
    answered = _answered(found.exits)
    reference = sum((group.reference_usd for group in answered), Decimal(0))
    paid = _paid(found.calls)
    return document.Savings(
        reference_models=tuple(
            sorted({group.reference_model for group in answered if group.reference_model})
        ),
        reference_usd=reference,
        paid_usd=paid,
        saved_usd=reference - paid,
        share=_ratio(reference - paid, reference),
    )


def _idle(
    connection: Connection, scope: Scope, found: _DatabaseSums, savings: document.Savings
) -> document.Idle:
    lifetimes = query.lifetimes(connection, scope)
    replicas = provisioned(lifetimes, scope.since, scope.until)
    idle = replicas.cost_usd - _cost(call for call in found.calls if call.kind == "local")
    saved = savings.saved_usd - idle
    return document.Idle(
        alive_s=replicas.alive / timedelta(seconds=1),
        provisioned_usd=replicas.cost_usd,
        idle_usd=idle,
        saved_usd=saved,
        share=_ratio(saved, savings.reference_usd),
    )


def _wasted(call: CallGroup) -> bool:
    """Return whether no client got an answer from these calls."""
    return call.state != "open" and (call.outcome != "ok" or call.status == "failed")


def _outcomes(calls: Iterable[CallGroup]) -> tuple[document.OutcomeSpend, ...]:
    grouped = _grouped(calls, lambda call: (call.kind, call.outcome, _wasted(call)))
    return _most_expensive_first(
        document.OutcomeSpend(kind=kind, wasted=wasted, **_money(outcome, group))
        for (kind, outcome, wasted), group in grouped.items()
    )


def _token_classes(calls: Sequence[CallGroup]) -> tuple[document.TokenSpend, ...]:
    known = [call for call in calls if call.kind == "frontier" and call.state == "closed"]
    return tuple(
        document.TokenSpend(
            name=name,
            tokens=sum(call.tokens[index] for call in known),
            cost_usd=sum((call.token_usd[index] for call in known), Decimal(0)),
        )
        for index, name in enumerate(TOKEN_CLASSES)
    )


def _prices(
    calls: Iterable[CallGroup], versions: Mapping[str, Row[Any]]
) -> tuple[document.PriceSpend, ...]:
    found = []
    for price_id, group in _grouped(calls, lambda call: call.price_id).items():
        version = versions.get(price_id) if price_id is not None else None
        found.append(
            document.PriceSpend(
                model=version and version.model,
                source=version and version.source,
                service_tier=version and version.service_tier,
                over_input_tokens=version and version.over_input_tokens,
                **_money(price_id, group),
            )
        )
    return _most_expensive_first(found)


def _days(exits: Iterable[ExitDay], calls: Iterable[DayGroup]) -> tuple[document.Day, ...]:
    calls_of = _grouped(calls, lambda call: call.day)
    return tuple(
        document.Day(
            day=date.fromisoformat(day),
            models=_spends(calls_of.get(day, []), lambda call: call.model),
            **_inputs(of_day),
            **_money(day, calls_of.get(day, [])),
        )
        for day, of_day in sorted(_grouped(exits, lambda group: group.day).items())
    )


def _parts(
    found: _DatabaseSums, key: Callable[[ExitGroup | CallGroup], str | None]
) -> tuple[document.Part, ...]:
    calls = _grouped(found.calls, key)
    return _most_expensive_first(
        document.Part(**_inputs(group), **_money(name, calls.get(name, [])))
        for name, group in _grouped(found.exits, key).items()
    )


_Call = TypeVar("_Call", CallGroup, DayGroup)
_Line = TypeVar("_Line", bound=document.Spend)


def _spends(
    calls: Iterable[_Call], key: Callable[[_Call], str | None]
) -> tuple[document.Spend, ...]:
    return _most_expensive_first(
        document.Spend(**_money(name, group)) for name, group in _grouped(calls, key).items()
    )


def _most_expensive_first(lines: Iterable[_Line]) -> tuple[_Line, ...]:
    return tuple(sorted(lines, key=lambda line: (-line.paid_usd, line.name or "")))


def _money(name: str | None, calls: Sequence[CallGroup | DayGroup]) -> dict[str, Any]:
    """Return the fields of a Spend."""
    return {
        "name": name,
        "calls": sum(call.count for call in calls),
        "cost_usd": _cost(calls),
        "held_usd": _held(calls, "unknown"),
        "open_usd": _held(calls, "open"),
    }


def _inputs(exits: Sequence[ExitGroup | ExitDay]) -> dict[str, Any]:
    """Return the fields of a Part that a Spend does not have."""
    answered = [group for group in exits if group.status == "answered"]
    return {
        "exits": sum(group.count for group in exits),
        "answered": sum(group.count for group in answered),
        "reference_usd": sum((group.reference_usd for group in answered), Decimal(0)),
    }


def _cost(calls: Iterable[CallGroup | DayGroup]) -> Decimal:
    return sum((call.cost_usd for call in calls), Decimal(0))


def _held(calls: Iterable[CallGroup | DayGroup], state: Literal["unknown", "open"]) -> Decimal:
    return sum((call.held_usd for call in calls if call.state == state), Decimal(0))


def _paid(calls: Iterable[CallGroup]) -> Decimal:
    return sum((call.cost_usd + call.held_usd for call in calls), Decimal(0))


def _answered(exits: Iterable[ExitGroup]) -> list[ExitGroup]:
    return [group for group in exits if group.status == "answered"]


def _shares(
    exits: Iterable[ExitGroup], key: Callable[[ExitGroup], str | None], all_: Iterable[ExitGroup]
) -> tuple[document.Share, ...]:
    whole = sum(group.count for group in all_)
    counts = _count(exits, key)
    return tuple(
        document.Share(name=name, count=count, share=count / whole)
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0] or ""))
    )


def _count(groups: Iterable[Any], key: Callable[[Any], _Key]) -> Counter[_Key]:
    counts: Counter[_Key] = Counter()
    for group in groups:
        counts[key(group)] += group.count
    return counts


def _grouped(groups: Iterable[_Group], key: Callable[[_Group], _Key]) -> dict[_Key, list[_Group]]:
    found: defaultdict[_Key, list[_Group]] = defaultdict(list)
    for group in groups:
        found[key(group)].append(group)
    return found


def _ratio(part: Decimal, whole: Decimal) -> float | None:
    return float(part / whole) if whole else None
