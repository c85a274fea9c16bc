"""OpenAI's files and batches: `/v1/files` and `/v1/batches`."""

import json
import re
import time
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from . import openai_wire
from .batches import Batch, Batches, Line, file_ids
from .http_batches import Answer, Refused
from .script import BatchOperation, Seen

MAX_LINES = 50_000
MAX_BYTES = 200 * 10**6
_ENDPOINT = "/v1/chat/completions"
_STATUS = {"validating": "validating", "in_progress": "in_progress", "finalizing": "finalizing"}
_LINE_ERRORS = {
    "expired": "This request could not be executed before the completion window expired.",
    "cancelled": "The batch was cancelled before this request was executed.",
}


class OpenAIBatches:
    """The endpoints of one provider."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._files: dict[str, dict[str, Any]] = {}
        self._content: dict[str, bytes] = {}
        # Files of results that were deleted.
        self._gone: set[str] = set()

    def operation(self, method: str, path: str) -> tuple[BatchOperation, str] | None:
        """Return what a request asks for, and the id that it names."""
        match (method, path.removeprefix("/v1/").split("/")):
            case ("POST", ["files"]):
                return "upload", ""
            case ("GET" | "DELETE", ["files", file_id]):
                return "file", file_id
            case ("GET", ["files"]):
                return "file", ""
            case ("GET", ["files", file_id, "content"]):
                return "results", file_id
            case ("POST", ["batches"]):
                return "create", ""
            case ("GET", ["batches"]):
                return "list", ""
            case ("GET", ["batches", batch_id]):
                return "state", batch_id
            case ("POST", ["batches", batch_id, "cancel"]):
                return "cancel", batch_id
        return None

    async def answer(
        self, operation: BatchOperation, id_: str, key: str, request: Request
    ) -> Answer:
        match operation:
            case "upload":
                return Answer(await self._upload(key, request))
            case "file" if not id_:
                return Answer(self._list_files(key, request))
            case "file":
                return Answer(self._described(key, id_, request))
            case "results":
                return Answer(lines=self._download(key, id_))
            case "create":
                return Answer(_shown(self._create(key, await request.json())))
            case "list":
                return Answer(self._list(key, request))
        return Answer(await self._asked(operation, id_, key))

    async def _asked(self, operation: BatchOperation, id_: str, key: str) -> dict[str, Any]:
        batch = self._batches.find(key, id_)
        if batch is None:
            raise _no_batch(id_)
        if operation == "cancel":
            if not await self._batches.cancel(batch):
                raise Refused(
                    409, "", f"Cannot cancel a batch with status '{_status(batch)}'.", "batch"
                )
        else:
            await self._batches.poll(batch)
        return _shown(batch)

    def _described(self, key: str, file_id: str, request: Request) -> dict[str, Any]:
        if request.method == "DELETE" and self._batches.of_results(key, file_id) is not None:
            if file_id in self._gone:
                raise Refused(404, "", f"No such File object: {file_id}", "id")
            self._gone.add(file_id)
            return {"id": file_id, "object": "file", "deleted": True}
        file = self._file(key, file_id)
        if request.method == "DELETE":
            del self._files[file_id], self._content[file_id]
            return {"id": file_id, "object": "file", "deleted": True}
        return {name: value for name, value in file.items() if name != "key"}

    async def _upload(self, key: str, request: Request) -> dict[str, Any]:
        async with request.form() as form:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile):
                raise Refused(400, "", "'file' is a required property", "file")
            if not isinstance(purpose, str):
                raise Refused(400, "", "'purpose' is a required property", "purpose")
            data, name = await file.read(), file.filename
        if purpose == "batch" and len(data) > MAX_BYTES:
            raise Refused(413, "", "Maximum content size limit exceeded")
        file_id = f"file-{self._batches.number():08d}"
        self._content[file_id] = data
        self._files[file_id] = _file(file_id, len(data), name or "file", purpose, key)
        return {name: value for name, value in self._files[file_id].items() if name != "key"}

    def _list_files(self, key: str, request: Request) -> dict[str, Any]:
        purpose = request.query_params.get("purpose")
        files = [
            {name: value for name, value in file.items() if name != "key"}
            for file in reversed(self._files.values())
            if file["key"] == key and purpose in (None, file["purpose"])
        ]
        return _page(files, request, 10_000)

    def _file(self, key: str, file_id: str) -> dict[str, Any]:
        file = self._files.get(file_id)
        if file is None or file["key"] != key:
            raise Refused(404, "", f"No such File object: {file_id}", "id")
        return file

    def _download(self, key: str, file_id: str) -> list[dict[str, Any]] | bytes:
        batch = self._batches.of_results(key, file_id)
        if file_id in self._gone:
            raise Refused(404, "", f"No such File object: {file_id}", "id")
        if batch is None:
            self._file(key, file_id)
            return self._content[file_id]
        is_output = file_id == file_ids(batch)[0]
        lines = [
            _result(line, batch)
            for line in batch.results()
            if (line.outcome == "succeeded") == is_output
        ]
        if is_output:
            lines += [
                {"id": f"batch_req_s{n}", "custom_id": f"stranger-{n}", "error": None,
                 "response": {"status_code": 200, "request_id": "req_1", "body": {}}}
                for n in range(batch.plan.strangers)
            ]  # fmt: skip
        return lines

    def _create(self, key: str, body: dict[str, Any]) -> Batch:
        for name in ("input_file_id", "endpoint", "completion_window"):
            if name not in body:
                raise Refused(400, "missing_required_parameter", f"Missing '{name}'.", name)
        if body["completion_window"] != "24h":
            raise Refused(400, "invalid_value", "Invalid value: expected '24h'.")
        if body["endpoint"] != _ENDPOINT:
            raise Refused(400, "invalid_value", "This endpoint has no batches here.", "endpoint")
        metadata = body.get("metadata") or {}
        is_small = len(metadata) <= 16 and all(
            len(name) <= 64 and isinstance(value, str) and len(value) <= 512
            for name, value in metadata.items()
        )
        if not is_small:
            raise Refused(400, "invalid_type", "Invalid 'metadata'.", "metadata")
        file = self._files.get(body["input_file_id"])
        if file is None or file["key"] != key or file["purpose"] != "batch":
            raise Refused(
                400, "invalid_file", "The file does not exist, or has not the purpose 'batch'."
            )
        lines, errors = _lines(self._content[file["id"]], key)
        facts = {"input_file_id": file["id"], "metadata": body.get("metadata")}
        batch = self._batches.create(key, "openai", lines, facts)
        batch.errors = errors
        return batch

    def _list(self, key: str, request: Request) -> dict[str, Any]:
        shown = [_shown(batch) for batch in self._batches.listed(key, "openai")]
        return _page(shown, request, 20)


def _lines(data: bytes, key: str) -> tuple[list[tuple[str, Seen]], list[dict[str, Any]]]:
    """Return the requests of a file, and what validation has against it."""
    lines: list[tuple[str, Seen]] = []
    errors: list[dict[str, Any]] = []
    known: set[str] = set()
    models: set[str] = set()

    def refuse(number: int | None, code: str, message: str, param: str | None = None) -> None:
        errors.append({"code": code, "message": message, "param": param, "line": number})

    rows = data.decode().splitlines()
    for number, row in enumerate(rows, start=1):
        try:
            found = json.loads(row)
            custom_id, body = found["custom_id"], found["body"]
            models.add(body["model"])
        except (ValueError, KeyError, TypeError) as error:
            refuse(number, "invalid_json_line", f"This line is not a request: {error}")
            continue
        if not isinstance(custom_id, str) or custom_id in known:
            refuse(number, "duplicate_custom_id", "The custom_id was used before.", "custom_id")
        if found.get("url") != _ENDPOINT or found.get("method") != "POST":
            refuse(number, "invalid_url", "The URL is not the batch's endpoint.", "url")
        if body.get("stream"):
            refuse(number, "invalid_request", "Streaming is not supported.", "body.stream")
        known.add(custom_id)
        text = json.dumps(body)
        lines.append((custom_id, Seen("openai", {}, body, text, key)))
    if not rows:
        refuse(None, "empty_file", "The input file is empty.")
    if len(rows) > MAX_LINES:
        refuse(None, "too_many_tasks", f"The file has more than {MAX_LINES} requests.")
    if len(models) > 1:
        refuse(None, "mismatched_model", "All requests must name one model.", "body.model")
    return lines, errors


def _result(line: Line, batch: Batch) -> dict[str, Any]:
    id_ = f"batch_req_{batch.id[-4:]}{line.number or batch.lines.index(line)}"
    shown: dict[str, Any] = {"id": id_, "custom_id": line.custom_id}
    if line.outcome in _LINE_ERRORS:
        error = {"code": f"batch_{line.outcome}", "message": _LINE_ERRORS[line.outcome]}
        return {**shown, "response": None, "error": error}
    if line.fault is not None:
        status = line.fault.status
        body = openai_wire.error(status, line.fault.code, line.fault.message)
    else:
        assert line.answer is not None
        status = 200
        body = openai_wire.whole(line.seen, line.answer, line.usage, line.number)
    response = {"status_code": status, "request_id": f"req_{line.number}", "body": body}
    return {**shown, "response": response, "error": None}


def _status(batch: Batch) -> str:
    return batch.ends if batch.phase == "ended" else batch.phase


def _shown(batch: Batch) -> dict[str, Any]:
    times = {f"{name}_at": int(at) for name, at in batch.times.items() if name != "validating"}
    done, failed = batch.count("succeeded"), len(batch.lines) - batch.count("succeeded")
    if batch.plan.omits_unrun:
        failed = batch.count("errored")
    has_results = batch.phase == "ended" and batch.ends != "failed" and not batch.late_files
    output, errors = file_ids(batch)
    at = dict.fromkeys(
        ("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at",
         "cancelling_at", "cancelled_at")
    )  # fmt: skip
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": _ENDPOINT,
        "model": batch.lines[0].seen.model if batch.lines else None,
        "errors": None
        if batch.phase != "ended" or not batch.errors
        else {"object": "list", "data": batch.errors}
        if batch.plan.errors is None
        else batch.plan.errors,
        "input_file_id": batch.facts["input_file_id"],
        "completion_window": "24h",
        "status": _status(batch),
        "output_file_id": output if has_results and done else None,
        "error_file_id": errors if has_results and failed else None,
        "created_at": int(batch.created_at),
        "expires_at": int(batch.expires_at),
        **at,
        **times,
        # Counted from the end of validation on.
        "request_counts": {
            "total": len(batch.lines)
            if batch.phase != "validating" and batch.ends != "failed"
            else 0,
            "completed": done,
            "failed": batch.count("errored"),
        },
        "usage": _usage(batch) if has_results else None,
        "metadata": batch.facts["metadata"],
    }


def _usage(batch: Batch) -> dict[str, Any]:
    used = [line.usage for line in batch.lines if line.usage is not None]
    read = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in used)
    reasoning = sum(usage["completion_tokens_details"]["reasoning_tokens"] for usage in used)
    return {
        "input_tokens": sum(usage["prompt_tokens"] for usage in used),
        "input_tokens_details": {"cached_tokens": read},
        "output_tokens": sum(usage["completion_tokens"] for usage in used),
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": sum(usage["total_tokens"] for usage in used),
    }


def _page(items: list[dict[str, Any]], request: Request, usual: int) -> dict[str, Any]:
    """Return one page of a list. after: the id before it; limit: how many."""
    after, limit = request.query_params.get("after"), request.query_params.get("limit")
    if after is not None:
        known = [item["id"] for item in items]
        if after not in known:
            raise Refused(400, "invalid_cursor", f"No such object: {after}", "after")
        items = items[known.index(after) + 1 :]
    count = int(limit) if limit and re.fullmatch("[0-9]+", limit) else usual
    page = items[:count]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > count,
    }


def _file(file_id: str, size: int, name: str, purpose: str, key: str) -> dict[str, Any]:
    return {
        "id": file_id,
        "object": "file",
        "bytes": size,
        "created_at": int(time.time()),
        "expires_at": None,
        "filename": name,
        "purpose": purpose,
        "status": "processed",
        "status_details": None,
        "key": key,
    }


def _no_batch(batch_id: str) -> Refused:
    return Refused(404, "", f"No batch found with id '{batch_id}'.")
