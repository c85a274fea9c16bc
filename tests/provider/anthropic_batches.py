"""Anthropic's Message Batches: `/v1/messages/batches`."""

import json
import re
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from . import anthropic_wire
from .batches import Batch, Batches, Line
from .http_batches import Answer, Refused
from .script import BatchOperation, Seen

MAX_LINES = 100_000
MAX_BYTES = 256 * 10**6
_BASE = "/v1/messages/batches"
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z")


class AnthropicBatches:
    """The endpoints of one provider."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def operation(self, method: str, path: str) -> tuple[BatchOperation, str] | None:
        """Return what a request asks for, and the id that it names."""
        match (method, path.removeprefix(_BASE).strip("/").split("/")):
            case ("POST", [""]):
                return "create", ""
            case ("GET", [""]):
                return "list", ""
            case ("GET", [batch_id]):
                return "state", batch_id
            case ("DELETE", [batch_id]):
                return "delete", batch_id
            case ("GET", [batch_id, "results"]):
                return "results", batch_id
            case ("POST", [batch_id, "cancel"]):
                return "cancel", batch_id
        return None

    async def answer(
        self, operation: BatchOperation, id_: str, key: str, request: Request
    ) -> Answer:
        base = str(request.base_url).rstrip("/")
        if operation == "create":
            return Answer(_shown(self._create(key, await request.body()), base))
        if operation == "list":
            return Answer(self._list(key, request, base))
        batch = self._batches.find(key, id_)
        if batch is None:
            raise Refused(404, "", f"Message Batch {id_} not found.")
        match operation:
            case "results":
                if batch.phase != "ended":
                    raise Refused(404, "", "The batch has no results before it ends.")
                return Answer(lines=_results(batch))
            case "cancel":
                if not await self._batches.cancel(batch):
                    raise Refused(400, "", "Batch cannot be canceled: it has ended.")
            case "delete":
                if batch.phase != "ended":
                    raise Refused(400, "", "Batch cannot be deleted while it is in progress.")
                self._batches.delete(batch)
                return Answer({"id": id_, "type": "message_batch_deleted"})
            case _:
                await self._batches.poll(batch)
        return Answer(_shown(batch, base))

    def _create(self, key: str, data: bytes) -> Batch:
        if len(data) > MAX_BYTES:
            raise Refused(413, "", "Request exceeds the maximum size")
        body = json.loads(data)
        unknown = set(body) - {"requests"}
        if unknown:
            raise Refused(400, "", f"{min(unknown)}: Extra inputs are not permitted")
        requests = body.get("requests")
        if not isinstance(requests, list) or not 1 <= len(requests) <= MAX_LINES:
            raise Refused(400, "", f"requests: List should have 1 to {MAX_LINES} items")
        known: set[str] = set()
        lines: list[tuple[str, Seen]] = []
        for number, request in enumerate(requests):
            custom_id, params = request.get("custom_id"), request.get("params")
            where = f"requests.{number}"
            if not isinstance(custom_id, str) or not _CUSTOM_ID.match(custom_id):
                what = "String should match pattern '^[a-zA-Z0-9_-]{1,64}$'"
                raise Refused(400, "", f"{where}.custom_id: {what}")
            if custom_id in known:
                raise Refused(400, "", f"{where}.custom_id: Duplicate custom_id")
            if not isinstance(params, dict) or not params.get("messages"):
                raise Refused(400, "", f"{where}.params.messages: Field required")
            if params.get("stream"):
                raise Refused(400, "", f"{where}.params.stream: Streaming is not supported")
            known.add(custom_id)
            lines.append((custom_id, Seen("anthropic", {}, params, json.dumps(params), key)))
        batch = self._batches.create(key, "anthropic", lines, {})
        batch.enter("in_progress")
        return batch

    def _list(self, key: str, request: Request, base: str) -> dict[str, Any]:
        query = request.query_params
        batches = self._batches.listed(key, "anthropic")
        ids = [batch.id for batch in batches]
        limit = int(query.get("limit", "20"))
        if not 1 <= limit <= 1000:
            raise Refused(400, "", "limit: Input should be 1 to 1000")
        if (after := query.get("after_id")) is not None:
            batches = batches[ids.index(after) + 1 :] if after in ids else []
            page, has_more = batches[:limit], len(batches) > limit
        elif (before := query.get("before_id")) is not None:
            batches = batches[: ids.index(before)] if before in ids else []
            page, has_more = batches[-limit:], len(batches) > limit
        else:
            page, has_more = batches[:limit], len(batches) > limit
        return {
            "data": [_shown(batch, base) for batch in page],
            "has_more": has_more,
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }


def _results(batch: Batch) -> list[dict[str, Any]]:
    shown = [{"custom_id": line.custom_id, "result": _result(line)} for line in batch.results()]
    return shown + [
        {"custom_id": f"stranger-{n}", "result": {"type": "expired"}}
        for n in range(batch.plan.strangers)
    ]


def _result(line: Line) -> dict[str, Any]:
    if line.fault is not None:
        error = anthropic_wire.error(line.fault.status, line.fault.code, line.fault.message)
        return {"type": "errored", "error": error}
    if line.answer is None:
        return {"type": "expired" if line.outcome == "expired" else "canceled"}
    message = anthropic_wire.whole(line.seen, line.answer, line.usage, line.number)
    return {"type": "succeeded", "message": message}


def _shown(batch: Batch, base: str) -> dict[str, Any]:
    has_ended, total = batch.phase == "ended", len(batch.lines)
    # The counts stay in `processing` until the whole batch ends.
    counts = {
        "processing": 0 if has_ended else total,
        "succeeded": batch.count("succeeded") if has_ended else 0,
        "errored": batch.count("errored") if has_ended else 0,
        "canceled": batch.count("cancelled") if has_ended else 0,
        "expired": batch.count("expired") if has_ended else 0,
    }
    status = {"ended": "ended", "cancelling": "canceling"}.get(batch.phase, "in_progress")
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": status,
        "request_counts": counts,
        "created_at": _time(batch.created_at),
        "expires_at": _time(batch.expires_at),
        "ended_at": _time(batch.times[batch.ends]) if has_ended else None,
        "cancel_initiated_at": _time(batch.times.get("cancelling")),
        "archived_at": None,
        "results_url": f"{base}{_BASE}/{batch.id}/results" if has_ended else None,
    }


def _time(at: float | None) -> str | None:
    return (
        None if at is None else datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
    )
