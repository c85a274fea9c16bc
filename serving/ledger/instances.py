"""Which gateway processes live, and what becomes of the rows that a dead one left open."""

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import psutil
from sqlalchemy import Connection, Row, func, select, text, update

from serving.ledger.schema import calls, exits, instances
from serving.ledger.store import summed_exits
from serving.ledger.upsert import insert_or_replace

GATEWAY_LOST = "gateway_lost"
"""Outcome of what was open when its process ended."""

SILENT = timedelta(seconds=15)
"""After which a process of another host counts as dead; seven signs of life are missed by then."""

_SAME_START = timedelta(seconds=2)
# The literal words, and no parameters: SQLite takes the index of open exits for those alone.
_OPEN_EXIT = text("exits.state = 'open'")


@dataclass(frozen=True, slots=True)
class Instance:
    """A process that keeps books. host: tells machines, boots and process namespaces apart."""

    id: str
    host: str
    pid: int
    process_started_at: datetime
    started_at: datetime
    replica_hour_usd: Decimal

    @classmethod
    def of_this_process(cls, replica_hour_usd: Decimal) -> "Instance":
        """Return a new instance of the process that asks."""
        return cls(
            id=uuid4().hex,
            host=_host(),
            pid=os.getpid(),
            process_started_at=_moment(psutil.Process().create_time()),
            started_at=datetime.now(UTC),
            replica_hour_usd=replica_hour_usd,
        )


def beat(connection: Connection, own: Instance, *, others_had_time: bool) -> int:
    """Say that an instance lives, and give up what dead ones left open. Blocking.

    others_had_time: the database has answered for long enough that a living process would have
    been heard. Returns how many instances were found dead.
    """
    now = _now(connection)
    _say_alive(connection, own, now)
    dead = [row for row in _others(connection, own) if _is_dead(row, own, now, others_had_time)]
    for row in dead:
        end(connection, row.id, now)
    return len(dead)


def end(connection: Connection, instance: str, now: datetime | None = None) -> None:
    """Mark an instance as ended and what it left open as unknown; holds stay. Blocking.

    A late close or exit is still taken.
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
        update(instances).where(instances.c.id == instance).values(ended_at=now or _now(connection))
    )


def _say_alive(connection: Connection, own: Instance, now: datetime) -> None:
    # Whoever was taken for dead and is not has no end any more.
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


def _is_dead(
    row: Row[tuple[object, ...]], own: Instance, now: datetime, others_had_time: bool
) -> bool:
    if row.host == own.host:
        return not _runs(row.pid, row.process_started_at)
    return others_had_time and now - row.seen_at > SILENT


def _runs(pid: int, started_at: datetime) -> bool:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(_moment(process.create_time()) - started_at) < _SAME_START
    except psutil.NoSuchProcess:
        return False


def _now(connection: Connection) -> datetime:
    """Return the time by the one clock that all processes share."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    found: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return found


def _host() -> str:
    parts = [socket.gethostname()]
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.is_file():
        parts.append(boot.read_text(encoding="ascii").strip())
    if namespace.is_symlink():
        parts.append(str(namespace.readlink()))
    return " ".join(parts)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
