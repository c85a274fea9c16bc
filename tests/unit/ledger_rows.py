"""Generated ledger rows of any shape that agree with each other, as requests would leave them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st
from sqlalchemy import delete, insert

from serving.ledger.database import Database
from serving.ledger.rows import periods_at
from serving.ledger.schema import calls, exits, instances, metadata, prices, spending, tenants
from serving.ledger.upsert import insert_new

Row = dict[str, Any]

TOKENS = (
    "uncached_input_tokens", "cache_read_tokens", "cache_write_5m_tokens",
    "cache_write_1h_tokens", "output_tokens", "reasoning_tokens",
)  # fmt: skip

HOUR_US = 3_600_000_000
UTC_ZONE = ZoneInfo("UTC")
SONNET, MINI, LOCAL = "anthropic/sonnet", "openai/mini", "smol"


def _price(price_id: str, model: str, tier: str | None, **dollars: Decimal) -> Row:
    columns = [name.replace("tokens", "usd") for name in TOKENS[:-1]]
    return {
        "id": price_id, "model": model, "source": "test", "service_tier": tier,
        "over_input_tokens": 0, "replica_hour_usd": None, **dict.fromkeys(columns), **dollars,
    }  # fmt: skip


def _token_price(model: str, tier: str, unit: str) -> Row:
    usd = Decimal(unit)
    return _price(
        f"price-{model}-{tier}", model, tier, uncached_input_usd=usd, cache_read_usd=usd / 10,
        cache_write_5m_usd=usd * 5 / 4, cache_write_1h_usd=usd * 2, output_usd=usd * 5,
    )  # fmt: skip


PRICES = (
    _token_price(SONNET, "standard", "0.000002"),
    _token_price(SONNET, "priority", "0.000004"),
    _token_price(MINI, "standard", "0.00000015"),
    _price("price-local", LOCAL, None, replica_hour_usd=Decimal("0.37")),
)
PRICE = {row["id"]: row for row in PRICES}


@dataclass
class LedgerRows:
    """Rows by table; times are offsets from `start`."""

    start: datetime = datetime(2026, 11, 1, tzinfo=UTC)
    zone: ZoneInfo = UTC_ZONE
    exits: list[Row] = field(default_factory=list)
    calls: list[Row] = field(default_factory=list)
    instances: list[Row] = field(default_factory=list)

    def exit(self, minutes: float = 0, calls: Sequence[Row] = (), **fields: Any) -> Row:
        """Add an input with its calls; its money is theirs."""
        number = len(self.exits)
        opened = self.start + timedelta(minutes=minutes)
        row: Row = {
            "id": f"exit-{number}", "request_id": f"request-{number // 2}", "input_index": 0,
            "tenant": "a", "key_id": None, "endpoint": "task", "task": "sentiment",
            "state": "closed", "route": "local", "reason": "narrow", "model": LOCAL,
            "outcome": "answered", "valid": True, "guaranteed": True,
            "escalated": False, "cached": False,
            **dict.fromkeys(TOKENS), "service_tier": None, "reference_usd": Decimal("0.01"),
            "reference_model": SONNET, "opened_at": opened, "elapsed_us": 1000, "instance": "g",
            **fields,
        }  # fmt: skip
        for call in calls:
            self._call(row, call)
        mine = [call for call in self.calls if call["exit_id"] == row["id"]]
        row["cost_usd"] = sum((call["cost_usd"] or Decimal(0) for call in mine), Decimal(0))
        row["held_usd"] = sum((call["held_usd"] for call in mine), Decimal(0))
        self.exits.append(row)
        return row

    def _call(self, of: Row, fields: Row) -> None:
        periods = periods_at(of["opened_at"], self.zone)
        self.calls.append(
            {
                "id": f"call-{len(self.calls)}", "exit_id": of["id"], "tenant": of["tenant"],
                "day": periods.day, "month": periods.month, "opened_at": of["opened_at"],
                "elapsed_us": 900, "instance": "g", **fields,
            }
        )  # fmt: skip

    def spending(self) -> list[Row]:
        """Return what counts against budgets: sums of the calls to providers."""
        found: dict[tuple[str, str, str], Row] = {}
        for call in self.calls:
            for period in ("day", "month") if call["kind"] == "frontier" else ():
                key = (call["tenant"], period, call[period])
                row = found.setdefault(
                    key, {"tenant": key[0], "period": key[1], "start": key[2],
                          "spent_usd": Decimal(0), "held_usd": Decimal(0)},
                )  # fmt: skip
                row["spent_usd"] += call["cost_usd"] or Decimal(0)
                row["held_usd"] += call["held_usd"]
        return list(found.values())

    def write(self, database: Database) -> None:
        """Replace whatever the database holds."""
        tables = (
            (prices, PRICES), (exits, self.exits), (calls, self.calls),
            (spending, self.spending()), (instances, self.instances),
        )  # fmt: skip
        with database.begin() as connection:
            metadata.create_all(connection)
            for table, _ in reversed(tables):
                connection.execute(delete(table))
            for table, rows in tables:
                if rows:
                    connection.execute(insert(table), rows)
            names = [{"name": name, "created_at": self.start} for name in ("a", "b")]
            connection.execute(insert_new(connection, tenants), names)


def instance(start: datetime, end: datetime, rate: str, *, ended: bool = True) -> Row:
    """Return a gateway's row; one that has not ended was last seen at its end."""
    return {
        "id": f"{start}-{end}-{rate}", "host": "h", "pid": 1, "process_started_at": start,
        "started_at": start, "seen_at": end if not ended else start,
        "ended_at": end if ended else None, "replica_hour_usd": Decimal(rate),
    }  # fmt: skip


def frontier(
    price_id: str = f"price-{SONNET}-standard",
    tokens: Sequence[int] = (100, 0, 0, 0, 10, 0),
    outcome: str = "ok",
) -> Row:
    """Return a closed call of a provider."""
    price = PRICE[price_id]
    of_class = [*TOKENS[:-1], "output_tokens"]
    cost = sum(
        (n * price[name.replace("_tokens", "_usd")]
         for n, name in zip(tokens, of_class, strict=True)),
        Decimal(0),
    )  # fmt: skip
    return {
        "kind": "frontier", "model": price["model"], "state": "closed", "outcome": outcome,
        **dict(zip(TOKENS, tokens, strict=True)), "usage_source": "reported",
        "service_tier": price["service_tier"], "replica_us": None, "price_id": price_id,
        "cost_usd": cost, "held_usd": Decimal(0),
    }  # fmt: skip


def unpaid(state: str, held_usd: Decimal, outcome: str | None = None) -> Row:
    """Return a call that is open, or unknown: held at its worst case."""
    return {
        **frontier(), **dict.fromkeys(TOKENS), "state": state, "outcome": outcome,
        "usage_source": None, "service_tier": None, "cost_usd": None, "held_usd": held_usd,
    }  # fmt: skip


def local(replica_us: int = 1_000_000, outcome: str = "ok") -> Row:
    """Return a call of a local model."""
    picodollars = Decimal(replica_us) * PRICE["price-local"]["replica_hour_usd"] * 10**12 / HOUR_US
    return {
        **frontier(), **dict(zip(TOKENS, (50, 0, 0, 0, 1, 0), strict=True)), "kind": "local",
        "model": LOCAL, "outcome": outcome, "service_tier": None, "replica_us": replica_us,
        "price_id": "price-local", "cost_usd": Decimal(round(picodollars)) / 10**12,
    }  # fmt: skip


_amounts = st.integers(0, 10**12).map(lambda n: Decimal(n) / 10**12)
_calls = st.one_of(
    st.builds(
        frontier,
        st.sampled_from([row["id"] for row in PRICES[:-1]]),
        st.tuples(*[st.integers(0, 200_000)] * 6),
        st.sampled_from(["ok", "frontier_timeout", "hedge_lost", "cancelled"]),
    ),
    st.builds(local, st.integers(0, 10**8), st.sampled_from(["ok", "below_threshold"])),
    st.builds(
        unpaid, st.just("unknown"), _amounts, st.sampled_from(["frontier_timeout", "cancelled"])
    ),
)
_exits = st.one_of(
    st.fixed_dictionaries(
        {
            "outcome": st.just("answered"),
            "route": st.sampled_from(["local", "frontier"]),
            "reason": st.sampled_from(["narrow", "requested", "below_threshold"]),
            "escalated": st.booleans(),
            "guaranteed": st.sampled_from([True, False, None]),
            "reference_usd": st.none() | _amounts,
        }
    ),
    st.fixed_dictionaries(
        {
            "outcome": st.sampled_from(["frontier_timeout", "client_closed"]),
            "route": st.just("none"),
            "reference_usd": st.none(),
            "model": st.none(),
        }
    ),
    st.fixed_dictionaries(
        {"outcome": st.just("gateway_lost"), "state": st.just("unknown"), "route": st.none()}
    ),
    st.fixed_dictionaries({"outcome": st.none(), "state": st.just("open"), "route": st.none()}),
)  # fmt: skip


@st.composite
def drawn_rows(draw: st.DrawFn) -> LedgerRows:
    """Draw three days of two tenants' inputs."""
    found = LedgerRows()
    for _ in range(draw(st.integers(0, 12))):
        fields = draw(_exits)
        of = draw(st.lists(_calls, max_size=3))
        if fields.get("state") == "open":
            of.append(unpaid("open", draw(_amounts)))
        found.exit(
            draw(st.integers(0, 3 * 24 * 60 - 1)),
            of,
            tenant=draw(st.sampled_from("ab")),
            endpoint=draw(st.sampled_from(["task", "chat"])),
            task=draw(st.sampled_from(["sentiment", "ner", None])),
            elapsed_us=draw(st.integers(0, 10**9)),
            **fields,
        )
    return found
