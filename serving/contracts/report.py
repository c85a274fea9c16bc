"""The report's document: what was spent, on what, what it saved, and whether the books agree.

Money is in US dollars, exact, and a string in JSON. `cost_usd` is known. `held_usd` is the worst
case of calls that told nothing (state unknown), `open_usd` that of calls still on their way.
"""

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Literal, Protocol
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer


def _digits(amount: Decimal) -> str:
    return format(amount, "f")


Dollars = Annotated[Decimal, PlainSerializer(_digits, return_type=str, when_used="json")]

TokenClass = Literal[
    "uncached_input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning"
]

DiscrepancyKind = Literal[
    "exit_cost",  # an input's cost is not the sum of its calls'
    "exit_held",  # nor its worst case
    "call_cost",  # a call's cost is not its tokens, or replica time, times its price
    "call_state",  # an open or unknown call has a cost, or a closed one holds money or has none
    "call_exit",  # a call belongs to no input, or to one of another tenant
    "spending",  # what counts against a budget is not the sum of the period's calls
    "negative",  # tokens, time or money below zero
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spend(_Frozen):
    """Calls that have something in common. name: None where they have no such thing."""

    name: str | None
    calls: int
    cost_usd: Dollars
    held_usd: Dollars
    open_usd: Dollars

    @property
    def paid_usd(self) -> Decimal:
        """Return what was paid or may still have to be."""
        return self.cost_usd + self.held_usd + self.open_usd


class Part(Spend):
    """Inputs that have something in common, with all their calls.

    reference_usd: what the answered inputs would have cost at the reference model, without those
    outside a guarantee.
    """

    exits: int
    answered: int
    reference_usd: Dollars


class Day(Part):
    """The inputs that came on one day of the ledger's time zone. models: their calls by model."""

    day: date
    models: tuple[Spend, ...]


class PriceSpend(Spend):
    """Calls booked at one version of a price. name: the version's id."""

    model: str | None
    source: str | None
    service_tier: str | None
    over_input_tokens: int | None


class OutcomeSpend(Spend):
    """Calls that ended alike. wasted: no client got an answer of them."""

    kind: Literal["frontier", "local"]
    wasted: bool


class TokenSpend(_Frozen):
    """Tokens of calls to providers whose cost is known."""

    name: TokenClass
    tokens: int
    cost_usd: Dollars


class Share(_Frozen):
    """How many of something. share: of the whole, in [0, 1]."""

    name: str | None
    count: int
    share: float


class Latency(_Frozen):
    """Exact percentiles (nearest rank) of closed inputs by route. Microseconds."""

    route: str
    count: int
    p50_us: int
    p95_us: int


class Totals(_Frozen):
    """The whole window. exits = answered + failed + unknown + open.

    requests: distinct ids. unknown: inputs whose gateway was lost. answers_usd + wasted_usd:
    cost_usd + held_usd, apart by whether a client got an answer of it. without_reference: answered
    inputs whose price at the reference model is not known.
    """

    requests: int
    exits: int
    answered: int
    failed: int
    unknown: int
    open: int
    cached: int
    escalated: int
    calls: int
    unknown_calls: int
    open_calls: int
    cost_usd: Dollars
    held_usd: Dollars
    open_usd: Dollars
    answers_usd: Dollars
    wasted_usd: Dollars
    frontier_usd: Dollars = Field(description="of cost_usd, what providers were paid")
    local_usd: Dollars = Field(description="of cost_usd, local replicas' time")
    replica_us: int = Field(description="local replicas' time, microseconds")
    without_reference: int
    unguaranteed: int = Field(
        description="answered inputs whose local answer lies below its threshold or has no "
        "attested error bound: they save nothing"
    )


class Savings(_Frozen):
    """Cost of the answered inputs at the reference model, less everything paid.

    saved_usd is negative for a loss. reference_usd: without answers outside a guarantee, which save
    nothing. paid_usd: known costs and worst cases, of all inputs. share: of reference_usd; None
    where that is 0. reference_models: the models that rows were compared with.
    """

    reference_models: tuple[str, ...]
    reference_usd: Dollars
    paid_usd: Dollars
    saved_usd: Dollars
    share: float | None


class Idle(_Frozen):
    """Local replicas that nobody used, and what is left of the savings after them.

    provisioned_usd: all local replicas for as long as any gateway was alive. idle_usd: that, less
    the replica time that calls were charged. saved_usd, share: as in Savings, less idle_usd.
    """

    alive_s: float
    provisioned_usd: Dollars
    idle_usd: Dollars
    saved_usd: Dollars
    share: float | None


class Discrepancy(_Frozen):
    """Two places in the books that should agree and do not. row: table, column and key."""

    kind: DiscrepancyKind
    row: str
    stated: str | None
    found: str | None


class Reconciliation(_Frozen):
    """The books against themselves, over all time. rows: how many were looked at."""

    rows: int
    discrepancies: tuple[Discrepancy, ...]


class Report(_Frozen):
    """Inputs that came in [since, until), with all their calls.

    tenant: None for all of them. tenants, idle: of reports on all tenants alone. reconciliation:
    None where it was not asked for. Lists of money are in falling order, days in theirs.
    """

    since: datetime
    until: datetime
    time_zone: str
    tenant: str | None
    totals: Totals
    savings: Savings
    idle: Idle | None
    models: tuple[Spend, ...]
    service_tiers: tuple[Spend, ...]
    prices: tuple[PriceSpend, ...]
    outcomes: tuple[OutcomeSpend, ...]
    token_classes: tuple[TokenSpend, ...]
    endpoints: tuple[Part, ...]
    tasks: tuple[Part, ...]
    tenants: tuple[Part, ...]
    paths: tuple[Part, ...] = Field(description="by route")
    days: tuple[Day, ...]
    routes: tuple[Share, ...]
    reasons: tuple[Share, ...]
    escalations: tuple[Share, ...]
    errors: tuple[Share, ...]
    latency: tuple[Latency, ...]
    reconciliation: Reconciliation | None


class Reports(Protocol):
    """Whoever can read the books; serving.ledger implements it."""

    @property
    def zone(self) -> ZoneInfo:
        """Return the time zone in which days begin."""
        ...

    async def report(self, since: datetime, until: datetime, tenant: str | None) -> Report:
        """Return the report on a tenant, or on all. Raises LedgerUnavailable."""
        ...

    def close(self) -> None:
        """Let nobody wait any more. Does not block."""
        ...
