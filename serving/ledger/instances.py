"""Gateway processes: their heartbeats, and the open rows of ended processes."""

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Connection, Row, func, select, text, update

from serving.ledger.schema import calls, exits, instances
from serving.ledger.store import summed_exits
from serving.ledger.upsert import insert_or_replace

GATEWAY_LOST = "gateway_lost"
"""Outcome of exits and calls that were open when their process ended."""

HEARTBEAT_TIMEOUT = timedelta(seconds=15)
"""A process of another host counts as ended after this time: seven missed heartbeats."""

_AFTER_BOOT = datetime.fromtimestamp(0, UTC)
_STATE, _START_TICKS = 0, 19
"""Places behind the name, in proc(5)'s order: fields 3 and 22."""

_ENDED = ("Z", "X")

# Literal text, not parameters: only then does SQLite use the index of open exits.
_OPEN_EXIT = text("exits.state = 'open'")


@dataclass(frozen=True, slots=True)
class Instance:
    """A gateway process. host: identifies the machine, its boot and the process namespace.

    process_started_at: the time since the machine's boot, counted from 1970.
    """

    id: str
    host: str
    pid: int
    process_started_at: datetime
    started_at: datetime
    replica_hour_usd: Decimal

    @classmethod
    def of_this_process(cls, replica_hour_usd: Decimal) -> "Instance":
        """Return a new instance for the calling process."""
        return cls(
            id=uuid4().hex,
            host=_host(),
            pid=os.getpid(),
            process_started_at=_started_at(_process_facts(os.getpid())),
            started_at=datetime.now(UTC),
            replica_hour_usd=replica_hour_usd,
        )


def beat(connection: Connection, own: Instance, *, others_had_time: bool) -> int:
    """Record a heartbeat, and end the instances whose process has ended. Blocking.

    others_had_time: the database has been reachable for long enough that every running process has
    sent a heartbeat. Returns the number of ended instances.
    """
    now = database_now(connection)
    _record_sign_of_life(connection, own, now)
    ended = [row for row in _others(connection, own) if _has_ended(row, own, now, others_had_time)]
    for row in ended:
        end(connection, row.id, now)
    return len(ended)


def end(connection: Connection, instance: str, now: datetime | None = None) -> None:
    """Mark an instance as ended, and its open rows as unknown; holds stay. Blocking.

    A late close or exit is still accepted.
    """
    lost = (calls.c.state == "open") & (calls.c.instance == instance)
    connection.execute(select(calls.c.id).where(lost).order_by(calls.c.id).with_for_update())
    connection.execute(
        update(calls)
        .where(lost)
        .values(state="unknown", outcome=GATEWAY_LOST, usage_source="unknown")
    )
    connection.execute(
        summed_exits()
        .where(_OPEN_EXIT, exits.c.instance == instance)
        .values(state="unknown", outcome=GATEWAY_LOST)
    )
    connection.execute(
        update(instances)
        .where(instances.c.id == instance)
        .values(ended_at=now or database_now(connection))
    )


def _record_sign_of_life(connection: Connection, own: Instance, now: datetime) -> None:
    # An instance that was wrongly marked as ended becomes active again.
    row = {
        "id": own.id,
        "host": own.host,
        "pid": own.pid,
        "process_started_at": own.process_started_at,
        "started_at": own.started_at,
        "seen_at": now,
        "ended_at": None,
        "replica_hour_usd": own.replica_hour_usd,
    }
    connection.execute(insert_or_replace(connection, instances), row)


def _others(connection: Connection, own: Instance) -> list[Row[tuple[object, ...]]]:
    living = (instances.c.ended_at.is_(None)) & (instances.c.id != own.id)
    return list(connection.execute(select(instances).where(living).order_by(instances.c.id)))


def _has_ended(
    row: Row[tuple[object, ...]], own: Instance, now: datetime, others_had_time: bool
) -> bool:
    if row.host == own.host:
        return not _runs(row.pid, row.process_started_at)
    return others_had_time and now - row.seen_at > HEARTBEAT_TIMEOUT


def _runs(pid: int, started_at: datetime) -> bool:
    try:
        facts = _process_facts(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return facts[_STATE] not in _ENDED and _started_at(facts) == started_at


def _process_facts(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name. Raises OSError where there is none."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # The name may hold parentheses and white space.
    return text.rpartition(")")[2].split()


def _started_at(facts: list[str]) -> datetime:
    """Return a process's start, counted from the boot: moments of the clock move when it is set.

    Each of two gateways of one machine would take the other for one that has ended.
    """
    return _AFTER_BOOT + timedelta(seconds=int(facts[_START_TICKS]) / os.sysconf("SC_CLK_TCK"))


def database_now(connection: Connection) -> datetime:
    """Return the time by the clock that all processes share."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    found: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return found


def clock_ahead(connection: Connection) -> timedelta:
    """Return by how much the database's clock is ahead of this process's; negative if it is behind.

    Too small by the time that the answer took: a moment of this process, moved by it, is early
    rather than late.
    """
    if connection.dialect.name == "sqlite":
        return timedelta(0)
    return database_now(connection) - datetime.now(UTC)


def _host() -> str:
    parts = [socket.gethostname()]
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.is_file():
        parts.append(boot.read_text(encoding="ascii").strip())
    if namespace.is_symlink():
        parts.append(str(namespace.readlink()))
    return " ".join(parts)
