"""Writes the result files of a batch: each custom_id once, in one of the two. Blocking."""

from datetime import datetime

from serving.batch.blobs import BlobStore, BlobWriter
from serving.batch.files import FileStore
from serving.batch.runner import LineRunner, unrun_text
from serving.batch.store import ActiveBatch, BatchStore, StoredResult

_MESSAGES = {
    "batch_cancelled": "the batch was cancelled before this line was run",
    "batch_expired": "the batch reached its deadline before this line was run",
    "budget_exceeded": "the tenant's budget had no room for this line's worst case",
    "max_cost_exceeded": "the batch's max_cost_usd had no room for this line's worst case",
}


def write_results(
    store: BatchStore,
    files: FileStore,
    blobs: BlobStore,
    runner: LineRunner,
    batch: ActiveBatch,
    now: datetime,
) -> None:
    """Write the files of a batch whose lines have all ended, and its end, in one transaction.

    A file without a line is not made. A crash before the commit leaves the batch as it was.
    """
    columns = (("output_file", "output", True), ("error_file", "errors", False))
    writers: list[tuple[str, str, BlobWriter]] = []
    try:
        for column, name, succeeded in columns:
            writer = blobs.writer(batch.caller.tenant)
            writers.append((column, f"{batch.id}_{name}.jsonl", writer))
            for result in store.results(batch.id, succeeded=succeeded):
                writer.write(_line(runner, batch.id, result))
        ttl_s = store.output_ttl_s(batch.id)
        with store.database.begin() as connection:
            found = {}
            for column, name, writer in writers:
                if writer.bytes:
                    file = files.keep_in(
                        connection, writer, batch.caller.tenant, name, "batch_output", ttl_s
                    )
                    found[column] = file.id
            store.finish(connection, batch, found, now)
    finally:
        for _, _, writer in writers:
            writer.abandon()


def _line(runner: LineRunner, batch: str, result: StoredResult) -> bytes:
    if result.result is not None:
        return runner.opened(batch, result) + b"\n"
    code = result.error or result.state
    message = _MESSAGES.get(code, "the line was not run")
    return unrun_text(f"{batch}_{result.number}", result.custom_id, code, message).encode() + b"\n"
