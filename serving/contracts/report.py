"""The report document: spending, its breakdowns, savings, and the reconciliation of the ledger.

Money is in US dollars, exact, and a string in JSON. `cost_usd` is the known cost. `held_usd` is the
worst case of calls whose usage is unknown, `open_usd` that of calls in progress.
"""

from datetime import date, datetime
from decimal import Decimal
from typing import Literal, Protocol
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field

from serving.contracts.plain_number import Dollars

TokenClass = Literal[
    "uncached_input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning"
]

DiscrepancyKind = Literal[
    "exit_cost",  # an input's cost is not the sum of its calls' costs
    "exit_held",  # an input's held amount is not the sum of its calls' held amounts
    "call_cost",  # a call's cost is not its tokens, or replica time, times its price
    "call_state",  # an open or unknown call has a cost, or a closed one holds money or has none
    "call_exit",  # a call belongs to no input, or to one of another tenant
    "spending",  # what counts against a budget is not the sum of the period's calls
    "negative",  # tokens, time or money below zero
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spend(_Frozen):
    """Calls with an equal property. name: the property's value, None where the calls have none."""

    name: str | None
    calls: int
    cost_usd: Dollars
    held_usd: Dollars
    open_usd: Dollars

    @property
    def paid_usd(self) -> Decimal:
        """Return the amount that was paid or may still have to be paid."""
        return self.cost_usd + self.held_usd + self.open_usd


class Part(Spend):
    """Inputs with an equal property, and all their calls.

    reference_usd: cost of the answered inputs at the reference model, without those
    outside a guarantee.
    """

    exits: int
    answered: int
    reference_usd: Dollars


class Day(Part):
    """The inputs of one day in the ledger's time zone. models: their calls by model."""

    day: date
    models: tuple[Spend, ...]


class PriceSpend(Spend):
    """Calls that were priced at one version of a price. name: the version's id."""

    model: str | None
    source: str | None
    service_tier: str | None
    over_input_tokens: int | None


class OutcomeSpend(Spend):
    """Calls with the same outcome. wasted: no client got an answer from them."""

    kind: Literal["frontier", "local"]
    wasted: bool


class TokenSpend(_Frozen):
    """Tokens of calls to providers whose cost is known."""

    name: TokenClass
    tokens: int
    cost_usd: Dollars


class CachedPrefix(_Frozen):
    """Calls whose prompts share a prefix that their provider could cache.

    name: its digest, None for calls without one. saved_usd: what reading the cache saved, less what
    writing it cost more than plain input. read_share: of input_tokens; None where that is 0.
    """

    name: str | None
    calls: int
    input_tokens: int
    read_tokens: int
    written_tokens: int
    saved_usd: Dollars
    read_share: float | None


class CacheUse(_Frozen):
    """Cached answers by how they were found: `exact`, `semantic` or `alias`.

    reference_usd: their cost at the reference model, where it counts as a saving. avoided_usd: what
    the answers had cost when a model gave them. lookup_us: time of their lookups, microseconds, the
    embedding included.
    """

    name: str
    hits: int
    reference_usd: Dollars
    avoided_usd: Dollars
    lookup_us: int


class Refinements(_Frozen):
    """Chats whose answers a follow-up repeated or corrected. route: of the answers.

    rate: refined of answered; None where none was answered in the time of the report.
    """

    tenant: str
    route: str
    answered: int
    refined: int
    rate: float | None


class ClaimBound(_Frozen):
    """A claim of a tenant or pool, as of now.

    is_slowed: comparing costs more than the shortcut saves, so that it is not taken.
    observed_error, upper_bound: by audits since it was earned, and the upper end of the 95 %
    interval; None before. audits: since then.
    """

    claim: str
    tenants: str
    subject: str
    state: str
    is_slowed: bool = False
    target_error: float
    observed_error: float | None
    upper_bound: float | None
    audits: int

    @property
    def standing(self) -> str:
        """Return the state in words for people."""
        return f"{self.state}, slowed" if self.is_slowed else self.state


class CacheClaim(ClaimBound):
    """The claim on hits by meaning of a tenant or pool. Its error is the share of wrong hits.

    audits_usd: what audits of served hits cost in the time of the report.
    """

    audits_usd: Dollars


class ContextClaim(ClaimBound):
    """The claim on answers from pruned contexts. Its error is the net share of worse answers.

    answers: from pruned contexts under it, in the time of the report. avoided_usd: what the removed
    tokens would have cost at the prices of the models that answered, estimated. own_usd: of all
    that was asked to compare, in shadow too. saved_usd: avoided_usd less own_usd.
    """

    answers: int
    avoided_usd: Dollars
    own_usd: Dollars
    saved_usd: Dollars


class BoundedAnswers(_Frozen):
    """Free-form answers under learned output bounds, `directed` or `plain`.

    continued: whose bound was reached, and which a second call completed. cut: that it did not
    complete. cut_upper: of their share, one-sided at 95 %. mean_tokens: visible, to 5 %.
    """

    name: str
    answers: int
    continued: int
    cut: int
    cut_upper: float
    mean_tokens: float | None


class OutputBoundReport(_Frozen):
    """Learned output bounds, of the scopes of the last 30 days.

    saved: share of the visible output that the directive saves, with 95 % bounds; None until both
    arms have answers.
    """

    arms: tuple[BoundedAnswers, ...]
    saved: float | None
    saved_lower: float | None
    saved_upper: float | None


class PurposeSpend(_Frozen):
    """Calls that no client waited for, by purpose: `audit`, `explore` or `judge`.

    cost_usd, held_usd: known costs, and worst cases of calls of unknown cost.
    """

    name: str
    count: int
    cost_usd: Dollars
    held_usd: Dollars


class ClusterSpend(_Frozen):
    """Open-ended chats of one cluster, `CLUSTERING/NUMBER/TIER` with the tier of its reference.

    cheaper: answered by a tier that earned it. cost_usd: of the answers. own_usd: of exploring,
    judging and auditing.
    """

    name: str
    answered: int
    cheaper: int
    cost_usd: Dollars
    own_usd: Dollars


class Share(_Frozen):
    """A count and its share of the whole, in [0, 1]."""

    name: str | None
    count: int
    share: float


class EvidenceShare(_Frozen):
    """Local answers by what their bound rests on: `traffic`, `suite` or `none`.

    reference_usd: their cost at the reference model, where it counts as a saving. share: of that of
    all local answers; None where that is 0.
    """

    name: str
    count: int
    reference_usd: Dollars
    share: float | None


class Latency(_Frozen):
    """Exact percentiles (nearest rank) of closed inputs by route. Microseconds."""

    route: str
    count: int
    p50_us: int
    p95_us: int


class Totals(_Frozen):
    """The whole window. exits = answered + failed + deferred + unknown + open.

    requests: distinct ids. deferred: attempts of batches' lines that wait for a provider's batch,
    or that it did not run; the next attempt is another input. unknown: inputs whose gateway was
    lost. answers_usd and wasted_usd split cost_usd + held_usd by whether a client got an answer.
    without_reference: answered inputs whose price at the reference model is not known.
    """

    requests: int
    exits: int
    answered: int
    failed: int
    deferred: int
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
    audits: int = Field(description="calls for evidence that no client waited for; not in exits")
    audits_usd: Dollars = Field(description="part of the paid amount, for audits")


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
    """The cost of idle local replicas, and the savings after it.

    provisioned_usd: cost of all local replicas while any gateway was alive. idle_usd:
    provisioned_usd less the replica time that calls were charged. saved_usd, share: as in Savings,
    less idle_usd.
    """

    alive_s: float
    provisioned_usd: Dollars
    idle_usd: Dollars
    saved_usd: Dollars
    share: float | None


class Discrepancy(_Frozen):
    """Two values of the ledger that should agree and do not. row: table, column and key."""

    kind: DiscrepancyKind
    row: str
    stated: str | None
    found: str | None


class Reconciliation(_Frozen):
    """Consistency of the ledger over all time. rows: number of rows checked."""

    rows: int
    discrepancies: tuple[Discrepancy, ...]


class Report(_Frozen):
    """Inputs that arrived in [since, until), with all their calls.

    tenant: None for all tenants. tenants, idle: only in reports on all tenants. reconciliation:
    None where it was not requested. Lists of money are in descending order, days in calendar order.
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
    prefixes: tuple[CachedPrefix, ...] = Field(
        description="prompt caching by prefix: the 21 with most input; null is no prefix"
    )
    cache: tuple[CacheUse, ...] = Field(description="answers from the cache, by kind of hit")
    cache_claims: tuple[CacheClaim, ...] = Field(
        description="bounds on wrong hits by meaning, as of now"
    )
    context_claims: tuple[ContextClaim, ...] = Field(
        default=(), description="context pruning by claim: bounds as of now, and what it saved"
    )
    refinements: tuple[Refinements, ...]
    output_bounds: OutputBoundReport | None = Field(
        default=None, description="learned output bounds, of all tenants; null where unused"
    )
    purposes: tuple[PurposeSpend, ...] = Field(
        default=(), description="calls that no client waited for, by purpose"
    )
    clusters: tuple[ClusterSpend, ...] = Field(
        default=(), description="open-ended chats by cluster, where tiers are earned"
    )
    endpoints: tuple[Part, ...]
    lanes: tuple[Part, ...] = Field(description="`interactive` and `batch`")
    input_purposes: tuple[Part, ...] = Field(
        description="`audit`, what the inputs' batches are for, or `request`"
    )
    tasks: tuple[Part, ...]
    tenants: tuple[Part, ...]
    paths: tuple[Part, ...] = Field(description="by route")
    days: tuple[Day, ...]
    routes: tuple[Share, ...]
    reasons: tuple[Share, ...]
    escalations: tuple[Share, ...]
    errors: tuple[Share, ...]
    evidence: tuple[EvidenceShare, ...]
    latency: tuple[Latency, ...]
    reconciliation: Reconciliation | None


class Reports(Protocol):
    """Reads reports from the ledger; serving.ledger implements it."""

    @property
    def zone(self) -> ZoneInfo:
        """Return the time zone in which days begin."""
        ...

    async def report(self, since: datetime, until: datetime, tenant: str | None) -> Report:
        """Return the report on a tenant, or on all. Raises LedgerUnavailable."""
        ...

    def close(self) -> None:
        """Cancel waiting reports. Does not block."""
        ...
