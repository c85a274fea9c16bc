"""The operations on the ledger, and their form as lines of text.

Applying an operation twice has the same result as applying it once.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any


class UnreadableLine(ValueError):
    """A line that is cut off or is not an operation."""


Row = Mapping[str, Any]
"""Values of a table's row by column, as serving.ledger.schema types them."""


@dataclass(frozen=True, slots=True)
class Open:
    """Open a call, and its exit where this is the exit's first call; hold the call's worst case.

    first: no call of the exit was tried before, so the exit has no row yet.
    """

    exit: Row
    call: Row
    first: bool = False


@dataclass(frozen=True, slots=True)
class Close:
    """Write how a call ended.

    call: the whole row, so that it can be written even if the opening was lost. withdrawn: the call
    was never made, so nothing is written unless its opening was.
    """

    call: Row
    prices: tuple[Row, ...] = ()
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class RecordExit:
    """Write an exit with its local calls. paid: the exit has opened provider calls as well."""

    exit: Row
    calls: tuple[Row, ...] = ()
    prices: tuple[Row, ...] = ()
    paid: bool = False


_OWN_CALL_FIELDS = (
    "id", "exit_id", "tenant", "kind", "model", "outcome", "day", "month", "opened_at", "instance",
)  # fmt: skip
_OWN_EXIT_FIELDS = (
    "id", "request_id", "input_index", "tenant", "key_id", "endpoint", "lane", "purpose", "task",
    "route", "reason", "outcome", "valid", "guaranteed", "evidence", "claim", "escalated", "cached",
    "opened_at", "instance",
)  # fmt: skip

Operation = Open | Close | RecordExit
Spillable = Close | RecordExit
"""Operations that may be applied later. A call cannot wait for its opening."""


def withdrawal(operation: Open) -> Close:
    """Return the operation that undoes an opening, whether or not the opening was written."""
    call = {**operation.call, "state": "closed", "outcome": "not_made", "held_usd": Decimal(0)}
    return Close({**call, "cost_usd": Decimal(0)}, withdrawn=True)


def without_reported_values(operation: Spillable) -> Spillable:
    """Return an operation without the values that providers, models and clients report.

    For an operation that the database rejects: a call or an exit must not stay open because one
    value does not fit. The call's usage is unknown then, and what its opening held stays held.
    """
    if isinstance(operation, Close):
        kept = {name: operation.call.get(name) for name in _OWN_CALL_FIELDS}
        unknown = {"state": "unknown", "usage_source": "unknown", "held_usd": None}
        return Close({**kept, **unknown})
    kept = {name: operation.exit.get(name) for name in _OWN_EXIT_FIELDS}
    # paid: the sums are computed again from the calls that are there.
    return RecordExit({**kept, "state": "closed"}, paid=True)


def to_line(operation: Spillable) -> str:
    """Return an operation as one line of JSON, without the line's end.

    Raises TypeError for a value that no row can hold.
    """
    if isinstance(operation, Close):
        content = {
            "do": "close",
            "call": operation.call,
            "prices": operation.prices,
            "withdrawn": operation.withdrawn,
        }
    else:
        content = {
            "do": "leave",
            "exit": operation.exit,
            "calls": operation.calls,
            "prices": operation.prices,
            "paid": operation.paid,
        }
    return json.dumps(content, default=_plain)


def from_line(line: str) -> Spillable:
    """Read a line. Raises UnreadableLine."""
    try:
        content = json.loads(line)
        prices = tuple(map(_row, content["prices"]))
        if content["do"] == "close":
            return Close(_row(content["call"]), prices, content["withdrawn"])
        calls = tuple(map(_row, content["calls"]))
        return RecordExit(_row(content["exit"]), calls, prices, content["paid"])
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnreadableLine(f"not an operation of the ledger: {type(error).__name__}") from error


def _plain(value: object) -> str:
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"a row of the ledger cannot hold a {type(value).__name__}")


def _row(content: Mapping[str, Any]) -> Row:
    return {name: _typed(name, value) for name, value in content.items()}


def _typed(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name.endswith("_usd"):
        return Decimal(value)
    return datetime.fromisoformat(value) if name.endswith("_at") else value
