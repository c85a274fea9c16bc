"""Batches, as OpenAI's API has them."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from serving.contracts.batch import (
    BatchOrder,
    BatchRecord,
    LineProblem,
    PageRequest,
    PlannedRoute,
    TenantBatches,
)
from serving.contracts.errors import InvalidRequest
from serving.gateway.client_gone import CLIENT_GONE, while_connected
from serving.gateway.control import LIST_QUERY, WHOLE_QUERY, QueryInteger, body_of, body_schema
from serving.gateway.files_api import Lane, Sender, expires_after_s, listed

router = APIRouter(prefix="/v1", tags=["batches"])

_TIMES = (
    "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at", "expired_at",
    "cancelling_at", "cancelled_at",
)  # fmt: skip


class ExpiresAfter(BaseModel):
    """When the result files are deleted. anchor: `created_at`."""

    model_config = ConfigDict(extra="forbid")

    anchor: str
    seconds: int


class NewBatch(BaseModel):
    """A batch. metadata: 16 pairs; `deadline`, `max_cost_usd` and `on_error` are read."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str = Field(min_length=1, max_length=128)
    endpoint: str = Field(min_length=1, max_length=256)
    completion_window: str = Field(min_length=1, max_length=16)
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


Body = Annotated[NewBatch, Depends(body_of(NewBatch))]


@router.post("/batches", openapi_extra=body_schema(NewBatch))
async def create_batch(body: Body, lane: Lane, caller: Sender) -> dict[str, Any]:
    """Run the requests of a file. The answer has the plan by route once the file is checked."""
    return batch_object(await lane.create(caller, _order(body)))


@router.post("/batches/check", response_model=dict[str, Any], openapi_extra=body_schema(NewBatch))
async def check_batch(request: Request, body: Body, lane: Lane, caller: Sender) -> Any:
    """Check a file as its batch would, name every bad line, and run nothing."""
    found = await while_connected(request, lane.check(caller, _order(body)))
    if found is None:
        return Response(status_code=CLIENT_GONE)
    return {
        "object": "batch.check", "lines": found.lines, "errors": _problems(found.problems),
        "plan": [_route(route) for route in found.plan],
    }  # fmt: skip


@router.get("/batches", dependencies=[LIST_QUERY])
async def list_batches(
    lane: Lane,
    caller: Sender,
    limit: Annotated[QueryInteger, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query()] = None,
) -> dict[str, Any]:
    """List the caller's batches, the newest first."""
    page = await lane.batches(caller, PageRequest(limit, after))
    return listed([batch_object(batch) for batch in page.items], has_more=page.has_more)


@router.get("/batches/{batch_id}")
async def show_batch(batch_id: str, lane: Lane, caller: Sender) -> dict[str, Any]:
    """Show one batch."""
    return batch_object(await lane.batch(caller, batch_id))


@router.post("/batches/{batch_id}/cancel")
async def cancel_batch(batch_id: str, lane: Lane, caller: Sender) -> dict[str, Any]:
    """Start no further line; those in progress end, and the result files are written."""
    return batch_object(await lane.cancel(caller, batch_id))


# Authentication admits only admin keys to paths under /v1/admin.
@router.get("/admin/batches", dependencies=[WHOLE_QUERY])
async def show_all_batches(lane: Lane) -> dict[str, Any]:
    """Show every tenant's batches, and its audits that wait for a provider's batch."""
    found = await lane.overview()
    return {"object": "list", "data": [_tenant(one) for one in found]}


@router.post("/admin/batches/cancel", dependencies=[WHOLE_QUERY])
async def cancel_batches(
    lane: Lane, tenant: Annotated[str, Query(min_length=1, description="whose batches")]
) -> dict[str, Any]:
    """Start no further line of a tenant's batches, as after a key of it was revoked."""
    return {"tenant": tenant, "cancelled": await lane.cancel_all(tenant)}


def _tenant(one: TenantBatches) -> dict[str, Any]:
    return {
        "tenant": one.tenant, "batches": dict(one.statuses), "lines": dict(one.lines),
        "oldest_created_at": _seconds(one.oldest_at),
        "first_deadline": _seconds(one.first_deadline), "held_usd": f"{one.held_usd:f}",
        "ended_last_day": dict(one.ended), "unanswered_last_day": one.unanswered,
        "audits": {
            "awaited": one.audits.awaited, "oldest_drawn_at": _seconds(one.audits.oldest_at),
            "worst_usd": f"{one.audits.worst_usd:f}", "batches": dict(one.audits.statuses),
        },
    }  # fmt: skip


def _order(body: NewBatch) -> BatchOrder:
    ttl = body.output_expires_after
    if ttl is not None and ttl.anchor != "created_at":
        raise InvalidRequest(
            f"output_expires_after.anchor is {ttl.anchor!r:.40}",
            field="output_expires_after.anchor",
            fix="send created_at",
        )
    return BatchOrder(
        body.endpoint, body.input_file_id, body.completion_window, body.metadata or {},
        None if ttl is None else expires_after_s(ttl.seconds),
    )  # fmt: skip


def batch_object(batch: BatchRecord) -> dict[str, Any]:
    """Return a batch as OpenAI's API shows it, with what is ours under `narrowgate`."""
    counts = batch.counts
    return {
        "id": batch.id, "object": "batch", "endpoint": batch.endpoint,
        "errors": _problems(batch.problems), "input_file_id": batch.input_file,
        "completion_window": batch.completion_window, "status": batch.status,
        "output_file_id": batch.output_file, "error_file_id": batch.error_file,
        "created_at": _seconds(batch.created_at),
        **{name: _seconds(getattr(batch, name)) for name in _TIMES},
        "request_counts": {
            "total": counts.total, "completed": counts.completed, "failed": counts.failed,
        },
        "metadata": dict(batch.metadata),
        "narrowgate": {
            "plan": [_route(route) for route in batch.plan],
            "cost_usd": None if batch.cost_usd is None else f"{batch.cost_usd:f}",
            "max_cost_usd": None if batch.max_cost_usd is None else f"{batch.max_cost_usd:f}",
        },
    }  # fmt: skip


def _route(route: PlannedRoute) -> dict[str, Any]:
    return {
        "route": route.route, "model": route.model, "lines": route.lines,
        "max_usd": None if route.max_usd is None else f"{route.max_usd:f}",
        "reference_usd": None if route.reference_usd is None else f"{route.reference_usd:f}",
        "batch_usd": None if route.batch_usd is None else f"{route.batch_usd:f}",
    }  # fmt: skip


def _problems(problems: tuple[LineProblem, ...]) -> dict[str, Any] | None:
    if not problems:
        return None
    return {
        "object": "list",
        "data": [
            {"code": one.code, "line": one.line, "message": one.message, "param": one.param}
            for one in problems
        ],
    }


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
