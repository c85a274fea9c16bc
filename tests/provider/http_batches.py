"""Requests to batch APIs: which wire format, the key, the faults of the script."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request

from .asgi import HANG_S, Cut, Send, begin, hang_up, send_json, send_whole
from .script import BatchOperation, Fault, Script


class Refused(Exception):
    """The provider refuses a request."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param


@dataclass(frozen=True)
class Answer:
    """One answer: a document, or the lines of a file."""

    document: dict[str, Any] | None = None
    lines: list[dict[str, Any]] | bytes | None = None


class BatchEndpoints(Protocol):
    """The batch API of one wire format."""

    def operation(self, method: str, path: str) -> tuple[BatchOperation, str] | None: ...

    async def answer(
        self, operation: BatchOperation, id_: str, key: str, request: Request
    ) -> Answer: ...


async def respond(
    endpoints: BatchEndpoints,
    wire: Any,
    script: Script,
    keys: Iterable[str] | None,
    request: Request,
    send: Send,
) -> None:
    """Answer a request to a batch API, or do what the script says instead."""
    # The whole request has arrived before anything happens.
    await request.body()
    found = endpoints.operation(request.method, request.url.path)
    if found is None:
        await send_json(send, 404, wire.error(404, "", "no such path"))
        return
    operation, id_ = found
    fault = script.batch_fault_of(operation)
    key = request.headers.get("x-api-key") or request.headers.get("authorization", "")
    key = key.removeprefix("Bearer ")
    if fault is None and keys is not None and key not in keys:
        fault = Fault("status", 401, "invalid_api_key", "Incorrect API key provided.")
    if fault is not None and not fault.worked and await _instead(fault, wire, request, send):
        return
    try:
        answer = await endpoints.answer(operation, id_, key, request)
    except Refused as refused:
        await send_json(
            send, refused.status, wire.error(refused.status, refused.code, str(refused))
        )
        return
    made = str((answer.document or {}).get("id", ""))
    script.batch_requests.append((operation, id_ or made))
    if fault is not None and fault.worked and await _instead(fault, wire, request, send):
        return
    if answer.lines is None:
        data, kind = json.dumps(answer.document).encode(), "application/json"
    else:
        data, kind = _jsonl(answer.lines), "application/octet-stream"
    await _whole(data, kind, fault, send)


def _jsonl(lines: list[dict[str, Any]] | bytes) -> bytes:
    if isinstance(lines, bytes):
        return lines
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def _instead(fault: Fault, wire: Any, request: Request, send: Send) -> bool:
    match fault.kind:
        case "status":
            headers = dict(fault.headers)
            if 300 <= fault.status < 400:
                headers.setdefault("location", str(request.url))
            document = wire.error(fault.status, fault.code, fault.message)
            await send_json(send, fault.status, document, headers)
        case "raw":
            await send_whole(send, fault.status, b"".join(fault.body), "application/json")
        case "html":
            await send_whole(send, 200, b"<html>Welcome</html>", "text/html")
        case "hang":
            await asyncio.sleep(HANG_S)
        case "hang_up":
            hang_up(send)
        case "slow":
            await asyncio.sleep(fault.delay_s)
            return False
        case _:
            return False
    return True


async def _whole(data: bytes, kind: str, fault: Fault | None, send: Send) -> None:
    half = data[: len(data) // 2]
    match fault.kind if fault else None:
        case "malformed":
            data = b'{"id": oops'
        case "truncated":
            data = half
        case "cut" | "hang_mid_stream":
            await begin(send, 200, kind)
            await send({"type": "http.response.body", "body": half, "more_body": True})
            if fault and fault.kind == "hang_mid_stream":
                await asyncio.sleep(HANG_S)
            raise Cut
    await begin(send, 200, kind)
    for start in range(0, max(1, len(data)), 65_536):
        piece = data[start : start + 65_536]
        more = start + 65_536 < len(data)
        await send({"type": "http.response.body", "body": piece, "more_body": more})
