"""Files of batches, as OpenAI's API has them."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response, StreamingResponse

from serving.contracts.batch import Batches, PageRequest, StoredFile
from serving.contracts.errors import InvalidRequest, NotFound
from serving.contracts.invalid_values import invalid
from serving.contracts.ledger import Caller
from serving.gateway.context import Context
from serving.gateway.control import LIST_QUERY, QueryInteger
from serving.gateway.multipart import read_form

router = APIRouter(prefix="/v1", tags=["batches"])

PATH = "/v1/files"
_SHORTEST_S, _LONGEST_S = 3600, 2_592_000


async def service(context: Context) -> Batches:
    """Return the batch lane. Raises NotFound where it is off."""
    if context.batches is None:
        raise NotFound("this server runs no batches", fix="set batch.enabled: true")
    return context.batches


async def sender(request: Request) -> Caller:
    """Return the request's caller."""
    caller: Caller = request.state.caller
    return caller


Lane = Annotated[Batches, Depends(service)]
Sender = Annotated[Caller, Depends(sender)]
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer"},
                    },
                }
            }
        },
    }
}


@router.post("/files", openapi_extra=_FORM)
async def upload_file(request: Request, lane: Lane, caller: Sender) -> dict[str, Any]:
    """Store a file of requests, one JSON object a line, with the purpose `batch`."""
    upload = lane.upload(caller)
    try:
        content_type = request.headers.get("content-type", "")
        form = await read_form(content_type, _body(request), upload.write)
        purpose = form.fields.get("purpose")
        if form.filename is None:
            raise invalid("file", None, "a file")
        if purpose != "batch":
            raise invalid("purpose", purpose, "batch: other files are not used here")
        return file_object(
            await upload.finish(form.filename, "batch", _expires_after_s(form.fields))
        )
    finally:
        await upload.abandon()


@router.get("/files", dependencies=[LIST_QUERY])
async def list_files(
    lane: Lane,
    caller: Sender,
    purpose: Annotated[str | None, Query()] = None,
    limit: Annotated[QueryInteger, Query(ge=1, le=10_000)] = 10_000,
    after: Annotated[str | None, Query()] = None,
    order: Annotated[Literal["asc", "desc"], Query()] = "desc",
) -> dict[str, Any]:
    """List the caller's files."""
    page = await lane.files(caller, purpose, PageRequest(limit, after, order == "desc"))
    return listed([file_object(file) for file in page.items], has_more=page.has_more)


@router.get("/files/{file_id}")
async def show_file(file_id: str, lane: Lane, caller: Sender) -> dict[str, Any]:
    """Show one file."""
    return file_object(await lane.file(caller, file_id))


@router.get("/files/{file_id}/content")
async def read_file(file_id: str, lane: Lane, caller: Sender) -> Response:
    """Send a file's content."""
    content = await lane.content(caller, file_id)
    return StreamingResponse(content, media_type="application/octet-stream")


@router.delete("/files/{file_id}")
async def delete_file(file_id: str, lane: Lane, caller: Sender) -> dict[str, Any]:
    """Delete a file that no unfinished batch reads."""
    await lane.delete_file(caller, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def file_object(file: StoredFile) -> dict[str, Any]:
    """Return a file as OpenAI's API shows it."""
    return {
        "id": file.id, "object": "file", "bytes": file.bytes,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": int(file.expires_at.timestamp()), "filename": file.filename,
        "purpose": file.purpose, "status": "processed", "status_details": None,
    }  # fmt: skip


def listed(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return a page as OpenAI's API shows it."""
    return {
        "object": "list", "data": data, "has_more": has_more,
        "first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None,
    }  # fmt: skip


async def _body(request: Request) -> AsyncIterator[bytes]:
    async for data in request.stream():
        if data:
            yield data


def _expires_after_s(fields: dict[str, str]) -> float | None:
    anchor, seconds = (fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise invalid("expires_after.anchor", anchor, "created_at")
    return expires_after_s(seconds)


def expires_after_s(seconds: object) -> float:
    """Return how long a file is kept. Raises InvalidRequest."""
    text = str(seconds) if isinstance(seconds, int | str) else ""
    if not text.isascii() or not text.isdecimal() or not _SHORTEST_S <= int(text) <= _LONGEST_S:
        raise InvalidRequest(
            f"expires_after.seconds is {seconds!r:.40}",
            field="expires_after.seconds",
            fix=f"send a number from {_SHORTEST_S} to {_LONGEST_S}",
        )
    return float(text)
