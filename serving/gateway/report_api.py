"""GET /v1/usage for a tenant and GET /v1/admin/report for operators."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from serving.contracts.ledger import Caller
from serving.contracts.report import Report
from serving.contracts.report_window import parse_window
from serving.gateway.context import Context, GatewayContext
from serving.gateway.control import WHOLE_QUERY

router = APIRouter(tags=["reports"], dependencies=[WHOLE_QUERY])


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


_WHEN = "2026-11-01, 2026-11-01T09:30, 7d or 24h"
Since = Annotated[str | None, Query(description=f"{_WHEN}; the first of this month if absent")]
Until = Annotated[str | None, Query(description=f"{_WHEN}, exclusive; now if absent")]


@router.get("/v1/usage")
async def tenant_usage(
    context: Context,
    caller: Annotated[Caller, Depends(_caller)],
    since: Since = None,
    until: Until = None,
) -> Report:
    """Return the report on the caller's own tenant."""
    return await _report(context, since, until, caller.tenant)


# Authentication admits only admin keys to paths under /v1/admin.
@router.get("/v1/admin/report")
async def full_report(
    context: Context,
    since: Since = None,
    until: Until = None,
    tenant: Annotated[str | None, Query(description="one tenant; all if absent")] = None,
) -> Report:
    """Return the report on all tenants, with the ledger's consistency check, or on one tenant."""
    return await _report(context, since, until, tenant)


async def _report(
    context: GatewayContext, since: str | None, until: str | None, tenant: str | None
) -> Report:
    window = parse_window(since, until, context.reports.zone, datetime.now(UTC))
    return await context.reports.report(window.since, window.until, tenant)
