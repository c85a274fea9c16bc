"""Message Batches, as Anthropic's API has them: chat completions in batches underneath."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from serving.contracts.batch import (
    FINAL_STATUSES,
    Batches,
    BatchOrder,
    BatchRecord,
    PageRequest,
)
from serving.contracts.errors import InvalidRequest, NotFound, UnsupportedMediaType
from serving.contracts.file_lines import lines_of
from serving.contracts.ledger import Caller
from serving.contracts.openai import json_text
from serving.gateway.context import Context
from serving.gateway.control import LIST_QUERY, QueryInteger
from serving.gateway.files_api import Lane, Sender
from serving.gateway.messages_reader import CHAT_URL, MessagesReader
from serving.gateway.messages_result import result_of

PATH = "/v1/messages/batches"
router = APIRouter(prefix=PATH, tags=["batches"])

_MARK = {"narrowgate_interface": "messages"}
_OURS, _THEIRS = "batch_", "msgbatch_"
_WINDOW = "24h"
_READ_AT_ONCE = 100
_PIECE_BYTES = 2**18
_KINDS = ("processing", "succeeded", "errored", "canceled", "expired")


@router.post("")
async def create_batch(request: Request, lane: Lane, caller: Sender, context: Context) -> Any:
    """Run Messages requests that can wait: text, system prompts, tools."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType(
            f"content-type is {kind!r:.80}", field="content-type",
            fix="send content-type: application/json",
        )  # fmt: skip
    reader = MessagesReader(context.settings.max_body_bytes, context.batch.max_lines)
    upload = lane.upload(caller)
    try:
        async for piece in _pieces(request):
            await upload.write(await asyncio.to_thread(reader.feed, piece))
        await upload.write(await asyncio.to_thread(reader.end))
        file = await upload.finish("messages.jsonl", "batch", None)
    finally:
        await upload.abandon()
    batch = await lane.create(caller, BatchOrder(CHAT_URL, file.id, _WINDOW, dict(_MARK)))
    if batch.status == "failed":
        await lane.delete_file(caller, file.id)
        raise _refused(batch)
    return await _shown(lane, caller, batch, request)


@router.get("", dependencies=[LIST_QUERY])
async def list_batches(
    request: Request,
    lane: Lane,
    caller: Sender,
    limit: Annotated[QueryInteger, Query(ge=1, le=1000)] = 20,
    after_id: Annotated[str | None, Query()] = None,
    before_id: Annotated[str | None, Query()] = None,
) -> Any:
    """List the caller's Message Batches, the newest first."""
    if after_id is not None and before_id is not None:
        raise InvalidRequest(
            "after_id and before_id are both given", field="before_id", fix="send one of them"
        )
    newest_first = before_id is None
    cursor = after_id if newest_first else before_id
    found, has_more = await _found(lane, caller, cursor, limit, newest_first=newest_first)
    shown = [
        await _shown(lane, caller, batch, request)
        for batch in (found if newest_first else found[::-1])
    ]
    return {
        "data": shown, "has_more": has_more,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
    }  # fmt: skip


@router.get("/{batch_id}")
async def show_batch(batch_id: str, request: Request, lane: Lane, caller: Sender) -> Any:
    """Show one Message Batch."""
    return await _shown(lane, caller, await _batch(lane, caller, batch_id), request)


@router.post("/{batch_id}/cancel")
async def cancel_batch(batch_id: str, request: Request, lane: Lane, caller: Sender) -> Any:
    """Start no further request of a batch."""
    batch = await _batch(lane, caller, batch_id)
    if batch.status in FINAL_STATUSES:
        raise InvalidRequest(
            f"the batch {batch_id[:80]!r} has ended", field="message_batch_id",
            fix="fetch its results",
        )  # fmt: skip
    return await _shown(lane, caller, await lane.cancel(caller, batch.id), request)


@router.delete("/{batch_id}")
async def delete_batch(batch_id: str, lane: Lane, caller: Sender) -> Any:
    """Delete the requests and results of a batch that has ended."""
    batch = await _batch(lane, caller, batch_id)
    if batch.status not in FINAL_STATUSES:
        raise InvalidRequest(
            f"the batch {batch_id[:80]!r} is in progress", field="message_batch_id",
            fix="cancel it, and wait until it has ended",
        )  # fmt: skip
    # The requests last: without them the batch counts as deleted.
    for file in (batch.output_file, batch.error_file, batch.input_file):
        if file is not None:
            await _delete(lane, caller, file)
    return {"id": batch_id, "type": "message_batch_deleted"}


@router.get("/{batch_id}/results")
async def batch_results(batch_id: str, lane: Lane, caller: Sender) -> Response:
    """Send the results of a batch that has ended, one JSON object a line, in no order."""
    batch = await _batch(lane, caller, batch_id)
    if batch.status not in FINAL_STATUSES:
        raise NotFound(
            f"the batch {batch_id[:80]!r} is in progress and has no results",
            field="message_batch_id",
            fix="wait until processing_status is ended",
        )
    files = [file for file in (batch.output_file, batch.error_file) if file is not None]
    contents = [await lane.content(caller, file) for file in files]
    return StreamingResponse(_results(contents), media_type="application/x-jsonl")


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """Yield a body in pieces large enough for a thread each."""
    pending = bytearray()
    async for piece in request.stream():
        pending += piece
        if len(pending) >= _PIECE_BYTES:
            yield bytes(pending)
            pending.clear()
    if pending:
        yield bytes(pending)


async def _results(contents: list[AsyncIterator[bytes]]) -> AsyncIterator[bytes]:
    for content in contents:
        async for line in lines_of(content):
            yield json_text(result_of(json.loads(line))).encode() + b"\n"


async def _batch(lane: Batches, caller: Caller, batch_id: str) -> BatchRecord:
    """Return a Message Batch. Raises NotFound for another, or a deleted one."""
    missing = NotFound(
        f"there is no message batch {batch_id[:80]!r}", field="message_batch_id",
        fix="send the id of a batch in GET /v1/messages/batches; its results may have expired",
    )  # fmt: skip
    if not batch_id.startswith(_THEIRS):
        raise missing
    try:
        batch = await lane.batch(caller, _OURS + batch_id.removeprefix(_THEIRS))
    except NotFound:
        raise missing from None
    if not await _is_kept(lane, caller, batch):
        raise missing
    return batch


async def _is_kept(lane: Batches, caller: Caller, batch: BatchRecord) -> bool:
    """Return whether a batch is a Message Batch, and not deleted."""
    if any(batch.metadata.get(name) != value for name, value in _MARK.items()):
        return False
    try:
        await lane.file(caller, batch.input_file)
    except NotFound:
        return False
    return True


async def _found(
    lane: Batches, caller: Caller, cursor: str | None, limit: int, *, newest_first: bool
) -> tuple[list[BatchRecord], bool]:
    """Return Message Batches from a cursor on, and whether there are more."""
    after = None if cursor is None else (await _batch(lane, caller, cursor)).id
    found: list[BatchRecord] = []
    while True:
        page = await lane.batches(caller, PageRequest(_READ_AT_ONCE, after, newest_first))
        for batch in page.items:
            if await _is_kept(lane, caller, batch):
                if len(found) == limit:
                    return found, True
                found.append(batch)
        if not page.has_more or not page.items:
            return found, False
        after = page.items[-1].id


async def _delete(lane: Batches, caller: Caller, file: str) -> None:
    try:
        await lane.delete_file(caller, file)
    except NotFound:
        # It has expired.
        return


def _refused(batch: BatchRecord) -> InvalidRequest:
    """Return the error of a batch whose requests cannot be run: the first one at fault."""
    if not batch.problems:
        return InvalidRequest("the batch was refused", field="requests", fix="check its requests")
    problem, *others = batch.problems
    param = (problem.param or "").removeprefix("body.")
    where = "requests" if problem.line is None else f"requests.{problem.line - 1}"
    field = f"{where}.params.{param}" if param and problem.line is not None else where
    more = f" (and {len(others)} more problems)" if others else ""
    return InvalidRequest(
        f"{problem.message}{more}", field=field, fix="correct the request; nothing has run"
    )


async def _shown(
    lane: Batches, caller: Caller, batch: BatchRecord, request: Request
) -> dict[str, Any]:
    has_ended = batch.status in FINAL_STATUSES
    status = "canceling" if batch.status == "cancelling" else "in_progress"
    id_ = _THEIRS + batch.id.removeprefix(_OURS)
    ended = batch.completed_at or batch.expired_at or batch.cancelled_at or batch.failed_at
    base = str(request.base_url).rstrip("/")
    return {
        "id": id_, "type": "message_batch",
        "processing_status": "ended" if has_ended else status,
        "request_counts": await _counts(lane, caller, batch),
        "created_at": _time(batch.created_at), "expires_at": _time(batch.expires_at),
        "ended_at": _time(ended) if has_ended else None,
        "cancel_initiated_at": _time(batch.cancelling_at), "archived_at": None,
        "results_url": f"{base}{PATH}/{id_}/results" if has_ended else None,
    }  # fmt: skip


async def _counts(lane: Batches, caller: Caller, batch: BatchRecord) -> dict[str, int]:
    """Return Anthropic's counts, which stay in `processing` until the batch has ended."""
    counts, found = batch.counts, dict.fromkeys(_KINDS, 0)
    if batch.status not in FINAL_STATUSES:
        return {**found, "processing": counts.total}
    found |= {"succeeded": counts.completed, "errored": counts.failed}
    if batch.status != "completed" and batch.error_file is not None:
        # Which lines failed and which never ran is in the error file only.
        try:
            content = await lane.content(caller, batch.error_file)
        except NotFound:
            # Its client deleted the file, or it has expired: the kinds are no longer known.
            return found
        async for line in lines_of(content):
            kind = result_of(json.loads(line))["result"]["type"]
            if kind != "errored":
                found["errored"] -= 1
                found[kind] += 1
    return found


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
