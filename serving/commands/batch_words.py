"""What `narrowgate batch` prints."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_SHOWN_PROBLEMS = 20


def print_check(found: Mapping[str, Any]) -> None:
    """Print what a dry run found: the cost by route, and every bad line."""
    console = _console()
    problems = problems_of(found)
    console.print(f"{found['lines']} lines can run", markup=False)
    _print_plan(console, found.get("plan") or [])
    _print_problems(console, problems, len(problems))


def print_batch(batch: Mapping[str, Any]) -> None:
    """Print one batch: its state, its plan, what was wrong with its file."""
    console = _console()
    counts = batch.get("request_counts") or {}
    total, done = counts.get("total") or 0, counts.get("completed") or 0
    failed = counts.get("failed") or 0
    lines = f"{done} of {total} lines answered" + (f", {failed} failed" if failed else "")
    console.print(f"{batch['id']}  {batch['status']}  {lines}", markup=False)
    facts = {
        "created": _time(batch.get("created_at")),
        "deadline": _time(batch.get("expires_at")),
        "cost": _usd(_ours(batch).get("cost_usd")),
        "output file": batch.get("output_file_id"),
        "error file": batch.get("error_file_id"),
    }
    for name, value in facts.items():
        if value is not None:
            console.print(f"  {name + ':':<12} {value}", markup=False)
    _print_plan(console, _ours(batch).get("plan") or [])
    _print_problems(console, problems_of(batch), _SHOWN_PROBLEMS)


def problems_of(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what is wrong with the file of a batch, or of a check."""
    return (document.get("errors") or {}).get("data") or []


def print_list(batches: Sequence[Mapping[str, Any]]) -> None:
    """Print batches, one a line."""
    console = _console()
    if not batches:
        console.print("no batches")
    for batch in batches:
        counts = batch.get("request_counts") or {}
        done, failed = counts.get("completed") or 0, counts.get("failed") or 0
        parts = (
            batch["id"], f"{batch['status']:<11}", _time(batch.get("created_at")) or "",
            f"{done}/{counts.get('total') or 0} lines", f"{failed} failed" if failed else "",
            _usd(_ours(batch).get("cost_usd")) or "",
        )  # fmt: skip
        console.print("  ".join(parts).rstrip(), markup=False)


def print_overview(tenants: Sequence[Mapping[str, Any]], now_s: float) -> None:
    """Print every tenant's batches. now_s: seconds since 1970."""
    console = _console()
    if not tenants:
        console.print("no batches in the last day")
    for one in tenants:
        oldest, deadline = one.get("oldest_created_at"), one.get("first_deadline")
        late_s = 0.0 if deadline is None else now_s - deadline
        facts = {
            "batches": _counted(one.get("batches")),
            "lines": _counted(one.get("lines")),
            "oldest": None if oldest is None else _age(now_s - oldest),
            "past its deadline": _age(late_s) if late_s > 0 else None,
            "held": _usd(one.get("held_usd")),
            "ended in a day": _counted(one.get("ended_last_day")),
            "lines without an answer in a day": str(one.get("unanswered_last_day") or 0),
            "audits awaited": _audits(one.get("audits") or {}, now_s),
        }
        console.print(str(one.get("tenant")), markup=False)
        for name, value in facts.items():
            if value is not None:
                console.print(f"  {name + ':':<34} {value}", markup=False)


def _audits(found: Mapping[str, Any], now_s: float) -> str | None:
    """Return the audits that wait for a provider's batch, as text; None without any."""
    oldest = found.get("oldest_drawn_at")
    if not found.get("awaited"):
        return None
    age = "" if oldest is None else f", the oldest for {_age(now_s - oldest)}"
    return f"{found['awaited']}{age}; at most {_usd(found.get('worst_usd'))}"


def _counted(counts: Mapping[str, int] | None) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted((counts or {}).items())) or "none"


def _age(seconds: float) -> str:
    minutes = int(max(0.0, seconds)) // 60
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def fetched(
    batch: Mapping[str, Any], out: Path | None, errors: Path | None, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Return what was fetched of a batch. failed: lines without an answer."""
    counts = batch.get("request_counts") or {}
    done, failed = counts.get("completed") or 0, counts.get("failed") or 0
    where = f" in {out}" if out is not None else ""
    text = f"{done} answers{where}"
    if failed:
        text += f"; {failed} lines without one"
        text += f" in {errors}" if errors is not None else "; --errors FILE writes them"
    return {
        "id": batch["id"], "status": batch["status"], "completed": done, "failed": failed,
        "output_bytes": sizes.get("output_file_id", 0),
        "error_bytes": sizes.get("error_file_id", 0), "text": text,
    }  # fmt: skip


def _ours(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields that OpenAI's batches do not have."""
    return batch.get("narrowgate") or {}


def _print_plan(console: Console, plan: Sequence[Mapping[str, Any]]) -> None:
    if not plan:
        return
    references = [row.get("reference_usd") for row in plan]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for name in ("route", "model"):
        table.add_column(name)
    for name in ("lines", "at most", "in a provider's batch", "reference, synchronously"):
        table.add_column(name, justify="right")
    for row in plan:
        table.add_row(
            str(row.get("route")), str(row.get("model")), str(row.get("lines")),
            _at_most(row), _usd(row.get("batch_usd")) or "-",
            _usd(row.get("reference_usd")) or "unknown",
        )  # fmt: skip
    if len(plan) > 1:
        known = [row.get("max_usd") for row in plan if row.get("route") != "local"]
        table.add_row(
            "all", "", str(sum(int(row.get("lines") or 0) for row in plan)),
            _sum(known), "", _sum(references),
        )  # fmt: skip
    console.print(table)


def _at_most(row: Mapping[str, Any]) -> str:
    if row.get("route") == "local" and not Decimal(str(row.get("max_usd") or 0)):
        return "own GPU"
    return _usd(row.get("max_usd")) or "unknown"


def _sum(values: Sequence[Any]) -> str:
    if any(value is None for value in values):
        return "unknown"
    return _usd(sum((Decimal(str(value)) for value in values), Decimal(0))) or "unknown"


def _print_problems(console: Console, problems: Sequence[Mapping[str, Any]], most: int) -> None:
    if not problems:
        return
    console.print(f"{len(problems)} problems:", markup=False)
    for problem in problems[:most]:
        line = problem.get("line")
        where = f"line {line}" if line is not None else "file"
        param = problem.get("param")
        at = f" ({param})" if param else ""
        console.print(f"  {where}: {problem.get('message')}{at}", markup=False)
    if len(problems) > most:
        console.print(f"  and {len(problems) - most} more: --json shows them", markup=False)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _time(value: object) -> str | None:
    if not isinstance(value, int | float):
        return None
    return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _usd(value: object) -> str | None:
    if value is None:
        return None
    usd = Decimal(str(value))
    return f"${usd:,.2f}" if usd == 0 or usd >= 1 else f"${usd:.4f}"
