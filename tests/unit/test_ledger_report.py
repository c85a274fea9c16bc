"""Reports on both databases: every way of adding the rows up has the same result."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from io import StringIO
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from rich.console import Console

from serving.contracts.answer import Usage
from serving.contracts.exits import NO_MODEL, Attempt
from serving.contracts.report import Report
from serving.ledger.database import Database, database_url
from serving.ledger.reports.build import build_report
from serving.ledger.reports.formats import share
from serving.ledger.reports.page import render_page
from serving.ledger.reports.query import Lifetime, Scope
from serving.ledger.reports.replica_time import provisioned, replica_cost
from serving.ledger.reports.text import print_report
from serving.ledger.schema import evidence_audits, evidence_states, exits

from .ledger_kit import CALLER, USAGE, FixedPrices, ended, in_time, left, running
from .ledger_rows import (
    LOCAL,
    MINI,
    SONNET,
    UTC_ZONE,
    LedgerRows,
    Row,
    drawn_rows,
    frontier,
    instance,
    local,
    unpaid,
)

START = LedgerRows().start
END = START + timedelta(days=3)

shared_database = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def database(ledger_url: SecretStr | None, state: Path) -> Iterator[Database]:
    found = Database(database_url(ledger_url, state))
    yield found
    found.close()


def report(
    database: Database,
    since: datetime = START,
    until: datetime = END,
    tenant: str | None = None,
    zone: ZoneInfo = UTC_ZONE,
) -> Report:
    return build_report(database, Scope(since, until, tenant), zone)


def total(rows: list[Row], column: str) -> Decimal:
    return sum((row[column] for row in rows if row[column] is not None), Decimal(0))


def by_key(rows: list[Row], key: Callable[[Row], str | None]) -> dict[str | None, list[Row]]:
    found: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return found


def test_an_empty_ledger_has_a_report_of_nothing(database: Database) -> None:
    LedgerRows().write(database)
    found = report(database)
    assert found.totals.exits == found.totals.calls == 0
    assert found.savings.share is None
    assert found.days == found.models == found.latency == ()
    assert found.reconciliation is not None
    assert found.reconciliation.discrepancies == ()
    assert Report.model_validate_json(found.model_dump_json()) == found


@shared_database
@given(drawn=drawn_rows())
def test_totals_equal_the_sum_of_rows_whichever_way_they_are_grouped(
    database: Database, drawn: LedgerRows
) -> None:
    drawn.write(database)
    found = report(database)
    totals = found.totals
    assert totals.cost_usd == total(drawn.calls, "cost_usd")
    assert totals.held_usd + totals.open_usd == total(drawn.calls, "held_usd")
    assert totals.answers_usd + totals.wasted_usd == totals.cost_usd + totals.held_usd
    assert totals.frontier_usd + totals.local_usd == totals.cost_usd
    assert totals.exits == len(drawn.exits)
    assert totals.exits == totals.answered + totals.failed + totals.unknown + totals.open
    assert totals.requests == len({(row["tenant"], row["request_id"]) for row in drawn.exits})
    assert totals.calls == len(drawn.calls)
    of_calls = (found.models, found.prices, found.outcomes)
    of_exits = (found.endpoints, found.tasks, found.tenants, found.paths, found.days)
    for lines in (*of_calls, *of_exits):
        assert sum(line.calls for line in lines) == totals.calls
        assert sum((line.cost_usd for line in lines), Decimal(0)) == totals.cost_usd
        assert sum((line.held_usd for line in lines), Decimal(0)) == totals.held_usd
        assert sum((line.open_usd for line in lines), Decimal(0)) == totals.open_usd
    for parts in of_exits:
        assert sum(part.exits for part in parts) == totals.exits
        assert sum(part.answered for part in parts) == totals.answered
        references = sum((part.reference_usd for part in parts), Decimal(0))
        assert references == found.savings.reference_usd
    for day in found.days:
        assert sum((line.paid_usd for line in day.models), Decimal(0)) == day.paid_usd
    assert sum((line.paid_usd for line in found.outcomes if line.wasted), Decimal(0)) == (
        totals.wasted_usd
    )
    tiers = sum((line.cost_usd for line in found.service_tiers), Decimal(0))
    classes = sum((line.cost_usd for line in found.token_classes), Decimal(0))
    assert tiers == classes == totals.frontier_usd


@shared_database
@given(drawn=drawn_rows())
def test_every_line_is_the_sum_of_its_rows(database: Database, drawn: LedgerRows) -> None:
    drawn.write(database)
    found = report(database)
    exit_of = {row["id"]: row for row in drawn.exits}
    for lines, key in (
        (found.models, lambda row: row["model"]),
        (found.prices, lambda row: row["price_id"]),
        (found.tasks, lambda row: exit_of[row["exit_id"]]["task"]),
        (found.paths, lambda row: exit_of[row["exit_id"]]["route"]),
        (found.tenants, lambda row: row["tenant"]),
        (found.days, lambda row: row["opened_at"].date().isoformat()),
    ):
        rows = by_key(drawn.calls, key)
        assert len({line.name for line in lines}) == len(lines)
        assert {line.name for line in lines} >= set(rows)
        for line in lines:
            assert line.cost_usd == total(rows[line.name], "cost_usd")
            assert line.held_usd + line.open_usd == total(rows[line.name], "held_usd")
    answered = [
        row
        for row in drawn.exits
        if row["outcome"] == "answered" and (row["route"] == "frontier" or row["guaranteed"])
    ]
    assert found.savings.reference_usd == total(answered, "reference_usd")
    paid = total(drawn.calls, "cost_usd") + total(drawn.calls, "held_usd")
    assert found.savings.saved_usd == total(answered, "reference_usd") - paid
    reasons = by_key(drawn.exits, lambda row: row["reason"])
    assert {share.name: share.count for share in found.reasons} == {
        reason: len(rows) for reason, rows in reasons.items()
    }
    for latency in found.latency:
        mine = [row for row in drawn.exits if row["route"] == latency.route]
        times = sorted(row["elapsed_us"] for row in mine if row["state"] == "closed")
        assert latency.count == len(times)
        assert latency.p50_us == times[-(-len(times) * 50 // 100) - 1]
        assert latency.p95_us == times[-(-len(times) * 95 // 100) - 1]


def _additive(found: Report) -> dict[str, object]:
    counted = found.totals.model_dump(exclude={"requests"})
    money = {"reference_usd": found.savings.reference_usd, "saved_usd": found.savings.saved_usd}
    return {**counted, **money}


def _joined(first: Report, second: Report) -> dict[str, object]:
    left, right = _additive(first), _additive(second)
    return {name: left[name] + right[name] for name in left}  # type: ignore[operator]


@shared_database
@given(drawn=drawn_rows(), minutes=st.integers(0, 3 * 24 * 60))
def test_windows_and_tenants_split_a_report_without_rest(
    database: Database, drawn: LedgerRows, minutes: int
) -> None:
    drawn.write(database)
    whole = report(database)
    middle = START + timedelta(minutes=minutes)
    early, late = report(database, until=middle), report(database, since=middle)
    assert _joined(early, late) == _additive(whole)
    one, other = report(database, tenant="a"), report(database, tenant="b")
    assert _joined(one, other) == _additive(whole)
    assert one.totals.requests + other.totals.requests == whole.totals.requests
    assert one.tenants == ()
    assert one.idle is None


@pytest.mark.parametrize(
    ("zone", "moments"),
    [
        # 23 hours: clocks go from 02:00 to 03:00 on 27 September.
        ("Pacific/Auckland", {"2026-09-26T11:59:59": 26, "2026-09-26T12:00:00": 27,
                              "2026-09-27T10:59:59": 27, "2026-09-27T11:00:00": 28}),
        # 25 hours: clocks go from 02:00 to 01:00 on 1 November; the month begins at midnight.
        ("America/New_York", {"2026-11-01T03:59:59": 31, "2026-11-01T04:00:00": 1,
                              "2026-11-02T04:59:59": 1, "2026-11-02T05:00:00": 2}),
        # Midnight is skipped.
        ("Africa/Cairo", {"2026-04-23T21:59:59": 23, "2026-04-23T22:00:00": 24}),
        # Midnight comes twice.
        ("America/Havana", {"2026-11-01T03:59:59": 31, "2026-11-01T04:30:00": 1,
                            "2026-11-01T05:30:00": 1}),
    ],
)  # fmt: skip
def test_days_are_those_of_the_time_zone(
    database: Database, zone: str, moments: dict[str, int]
) -> None:
    times = [datetime.fromisoformat(moment).replace(tzinfo=UTC) for moment in moments]
    made = LedgerRows(times[0], ZoneInfo(zone))
    for moment in times:
        made.exit((moment - times[0]) / timedelta(minutes=1), [frontier()])
    made.write(database)
    found = report(database, times[0], times[-1] + timedelta(seconds=1), zone=ZoneInfo(zone))
    expected: dict[date, int] = defaultdict(int)
    for moment, day in zip(times, moments.values(), strict=True):
        local_day = moment.astimezone(ZoneInfo(zone)).date()
        assert local_day.day == day
        expected[local_day] += 1
    assert {day.day: day.exits for day in found.days} == dict(expected)
    assert {day.name: day.calls for day in found.days} == {
        day.isoformat(): count for day, count in expected.items()
    }


def test_ten_years_of_days_are_one_query(database: Database) -> None:
    made = LedgerRows()
    made.exit(0, [frontier()])
    made.exit(3650 * 24 * 60, [local()])
    made.write(database)
    found = report(database, START, START + timedelta(days=4000), zone=ZoneInfo("Asia/Tokyo"))
    assert [day.calls for day in found.days] == [1, 1]
    assert found.days[1].day - found.days[0].day == timedelta(days=3650)


def test_inputs_without_an_answer_are_counted_apart(database: Database) -> None:
    made = LedgerRows()
    answer, failed, aside = (
        frontier(),
        frontier(outcome="frontier_timeout"),
        local(outcome="below_threshold"),
    )
    made.exit(0, [aside, failed, answer], route="frontier", escalated=True,
              reason="below_threshold")  # fmt: skip
    made.exit(1, [frontier()], outcome="client_closed", route="none", reference_usd=None)
    made.exit(2, [unpaid("unknown", Decimal("0.5"), "cancelled")], reference_usd=None)
    made.exit(3, [unpaid("open", Decimal("0.25"))], state="open", outcome=None, route=None)
    made.write(database)
    found = report(database)
    assert found.totals.answers_usd == answer["cost_usd"]
    assert found.totals.wasted_usd == (
        aside["cost_usd"] + failed["cost_usd"] + answer["cost_usd"] + Decimal("0.5")
    )
    assert found.totals.open_usd == Decimal("0.25")
    assert {(line.kind, line.name, line.wasted) for line in found.outcomes} == {
        ("local", "below_threshold", True), ("frontier", "frontier_timeout", True),
        ("frontier", "ok", False), ("frontier", "ok", True), ("frontier", "cancelled", True),
        ("frontier", None, False),
    }  # fmt: skip
    assert [(share.name, share.count) for share in found.escalations] == [("below_threshold", 1)]
    assert [(share.name, share.count) for share in found.errors] == [("client_closed", 1)]
    # What is held counts as paid, so the saving is never overstated; here it is a loss.
    assert found.savings.saved_usd == Decimal("0.01") - found.savings.paid_usd
    assert found.savings.share is not None
    assert found.savings.share < 0
    assert found.totals.without_reference == 1


@pytest.mark.parametrize("guaranteed", [False, None])
def test_an_answer_outside_its_guarantee_saves_nothing(
    database: Database, *, guaranteed: bool | None
) -> None:
    made = LedgerRows()
    made.exit(0, [local()], reference_usd=Decimal("0.01"))
    outside = local()
    made.exit(1, [outside], reference_usd=Decimal(5), guaranteed=guaranteed)
    made.exit(2, [], reference_usd=Decimal(7), guaranteed=guaranteed, route="cache", cached=True)
    made.write(database)
    found = report(database)
    assert found.savings.reference_usd == Decimal("0.01")
    assert found.savings.saved_usd == Decimal("0.01") - 2 * outside["cost_usd"]
    assert found.totals.unguaranteed == 2
    assert found.totals.without_reference == 0
    assert sum(part.reference_usd for part in found.days) == Decimal("0.01")


def test_a_frontier_answer_counts_in_full_without_a_guarantee(database: Database) -> None:
    made = LedgerRows()
    made.exit(0, [frontier()], route="frontier", guaranteed=None, reference_usd=Decimal(5))
    made.write(database)
    found = report(database)
    assert found.savings.reference_usd == 5
    assert found.totals.unguaranteed == 0


async def test_an_answer_of_a_head_saves_what_the_reference_would_have_cost(
    ledger_url: SecretStr | None, state: Path, database: Database
) -> None:
    none, asked = Usage(uncached_input_tokens=0, output_tokens=0), USAGE
    by_head = {"route": "local", "reason": "narrow", "model": "head:desk@1", "usage": none,
               "reference_usage": asked, "task": "desk", "endpoint": "task"}  # fmt: skip
    async with running(ledger_url, state) as ledger:
        for number in range(3):
            evidence = "traffic" if number else "none"
            entry = ledger.entry(CALLER, f"r{number}", "task", "desk", 0)
            entry.close(left(**by_head, request_id=f"r{number}", guaranteed=number > 0,
                             evidence=evidence, claim="c1"))  # fmt: skip
        audit = ledger.entry(CALLER, "r1", "audit", "desk", 0)
        call = await audit.open_call("openai/m", Decimal(1), in_time())
        call.close(ended())
        audit.close(left(request_id="r1", endpoint="audit", reason="audit"))
        await audit.written()
    now = datetime.now(UTC)
    found = report(database, now - timedelta(days=1), now + timedelta(days=1))
    # Two answers under the claim save; the one outside it does not; the audit is paid for.
    cost = FixedPrices().reference(asked)
    paid = FixedPrices().frontier("openai/m", asked, None).cost_usd
    assert found.savings.reference_usd == 2 * cost > 0
    assert found.savings.saved_usd == 2 * cost - paid
    shares = {part.name: (part.reference_usd, part.share) for part in found.evidence}
    assert shares == {"traffic": (2 * cost, 1.0), "none": (0, 0.0)}
    assert found.totals.audits == 1


async def test_the_cost_of_a_task_without_a_local_model_is_known(
    ledger_url: SecretStr | None, state: Path
) -> None:
    refused = Attempt(NO_MODEL, "task_not_attested", 0.0, None, 0.0)
    async with running(ledger_url, state) as ledger:
        entry = ledger.entry(CALLER, "r1", "task", "desk", 0)
        call = await entry.open_call("openai/m", Decimal(1), in_time())
        call.close(ended())
        cost = entry.close(left(request_id="r1", route="frontier", attempts=(refused,)))
    assert cost == FixedPrices().frontier("openai/m", USAGE, None).cost_usd > 0


def test_one_name_of_a_request_in_two_tenants_is_two_requests(database: Database) -> None:
    made = LedgerRows()
    for tenant in ("a", "a", "b"):
        made.exit(tenant=tenant, request_id="same")
    made.write(database)
    assert report(database).totals.requests == 2


def test_idle_replicas_are_paid_for_once_whoever_watches_them(database: Database) -> None:
    made = LedgerRows()
    made.exit(0, [local()])
    hour = timedelta(hours=1)
    made.instances = [
        instance(START - hour, START + hour, "1"),
        # Two gateways at once: the dearer one's word counts, once.
        instance(START + hour / 2, START + 2 * hour, "3", ended=False),
        instance(START - 3 * hour, START - 2 * hour, "9"),
        instance(END, END + hour, "9"),
    ]
    made.write(database)
    found = report(database)
    assert found.idle is not None
    assert found.idle.alive_s == 7200
    assert found.idle.provisioned_usd == Decimal("0.5") + Decimal("4.5")
    assert found.idle.idle_usd == 5 - found.totals.local_usd
    assert found.idle.saved_usd == found.savings.saved_usd - found.idle.idle_usd


def test_more_time_than_was_provisioned_is_shown_and_not_hidden(database: Database) -> None:
    made = LedgerRows()
    made.exit(0, [local(10**8)])
    made.write(database)
    found = report(database).idle
    assert found is not None
    assert found.idle_usd == -local(10**8)["cost_usd"]


_lifetimes = st.lists(
    st.builds(
        lambda start, length, rate: Lifetime(
            START + timedelta(minutes=start),
            START + timedelta(minutes=start + length),
            Decimal(rate) / 100,
        ),
        st.integers(-50, 120), st.integers(0, 60), st.integers(0, 500),
    ),
    max_size=6,
)  # fmt: skip


@given(_lifetimes)
def test_provisioned_cost_is_that_of_every_minute(found: list[Lifetime]) -> None:
    end = START + timedelta(minutes=100)
    rates = []
    for minute in range(100):
        moment = START + timedelta(minutes=minute, seconds=30)
        alive = [life.replica_hour_usd for life in found if life.start <= moment < life.end]
        rates += [max(alive)] if alive else []
    exact = sum(rates, Decimal(0)) / 60
    result = provisioned(found, START, end)
    assert result.alive == timedelta(minutes=len(rates))
    assert abs(result.cost_usd - exact) <= Decimal("0.5e-12")


@given(st.integers(0, 10**15), st.integers(0, 10**14))
def test_replica_time_is_rounded_to_the_nearest_picodollar(us: int, picodollars: int) -> None:
    cost = int(replica_cost(us, Decimal(picodollars) / 10**12) * 10**12)
    assert 2 * abs(cost * 3_600_000_000 - us * picodollars) <= 3_600_000_000


def test_a_tie_goes_to_the_even_picodollar() -> None:
    half = Decimal(1) / 10**12
    assert replica_cost(1_800_000_000, half) == 0
    assert replica_cost(3 * 1_800_000_000, half) == 2 * half


def test_lists_begin_with_what_cost_most(database: Database) -> None:
    made = LedgerRows()
    made.exit(
        0, [frontier(f"price-{MINI}-standard"), frontier(f"price-{SONNET}-priority"), local()]
    )
    made.write(database)
    found = report(database)
    assert [line.name for line in found.models] == [SONNET, LOCAL, MINI]
    assert {line.model for line in found.prices} == {SONNET, LOCAL, MINI}
    assert {line.service_tier for line in found.prices} == {"priority", "standard", None}


def test_the_cache_is_shown_by_kind_with_its_claims_and_refinements(database: Database) -> None:
    LedgerRows().write(database)
    base = {
        "request_id": "r", "input_index": 0, "tenant": "acme", "endpoint": "chat",
        "state": "closed", "outcome": "answered", "escalated": False, "opened_at": START,
        "instance": "i", "elapsed_us": 900, "cached": False, "route": "frontier",
    }  # fmt: skip
    hit = {
        "cached": True, "route": "cache", "guaranteed": True, "lookup_us": 400,
        "reference_usd": Decimal("0.03"), "avoided_usd": Decimal("0.02"),
    }  # fmt: skip
    rows: list[Row] = [
        {"id": "m1"}, {"id": "m2", "refined_route": "frontier"},
        {"id": "e1", **hit, "cache_kind": "exact"}, {"id": "e2", **hit},
        {"id": "s1", **hit, "cache_kind": "semantic"},
        # Served without a guarantee: a hit that saves nothing.
        {"id": "s2", **hit, "cache_kind": "semantic", "guaranteed": False},
        {"id": "f1", "refined_route": "cache"},
        {"id": "a1", "endpoint": "audit", "refined_route": "cache"},
    ]  # fmt: skip
    claim = {
        "id": "c1", "shortcut": "cached_answer", "state": "held", "target_error": 0.05,
        "scope": {"tenants": "acme", "subject": "chat/frontier"}, "observed_error": 0.01,
        "interval": [0.002, 0.04], "audits": 300,
    }  # fmt: skip
    other = {**claim, "id": "c2", "shortcut": "local_task"}
    audit = {
        "claim": "c1", "group_id": "g", "text_digest": "t", "tenant": "acme", "request_id": "r",
        "accepted": 1, "hypothesis": 1, "drawn_at": START, "verdict": "same", "reference": "m",
        "candidates": "[]", "judged_at": START, "cost_usd": Decimal("0.004"),
    }  # fmt: skip
    with database.begin() as connection:
        for row in rows:
            connection.execute(exits.insert(), {**base, **row})
        for found in (claim, other):
            document = {"claim": found["id"], "document": json.dumps(found), "sequence": 1}
            connection.execute(evidence_states.insert(), document)
        for number, origin in enumerate(("accepted", "accepted", "shadow"), 1):
            row = {**audit, "sequence": number, "input": f"i{number}", "origin": origin}
            connection.execute(evidence_audits.insert(), row)
    shown = report(database)
    assert [(line.name, line.hits, line.reference_usd) for line in shown.cache] == [
        ("exact", 2, Decimal("0.06")), ("semantic", 2, Decimal("0.03")),
    ]  # fmt: skip
    assert [line.avoided_usd for line in shown.cache] == [Decimal("0.04")] * 2
    assert [line.lookup_us for line in shown.cache] == [800, 800]
    (bound,) = shown.cache_claims
    assert (bound.claim, bound.upper_bound, bound.audits_usd) == ("c1", 0.04, Decimal("0.008"))
    assert [(line.route, line.answered, line.refined) for line in shown.refinements] == [
        ("cache", 4, 1), ("frontier", 3, 1),
    ]  # fmt: skip
    assert report(database, tenant="acme").cache_claims == (bound,)
    console = Console(file=StringIO(), width=80)
    print_report(shown, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "hits by meaning" in text
    assert share(0.04) in text
    assert "Hits by meaning" in render_page(shown)


def test_pruned_contexts_are_shown_by_claim_net_of_every_comparison(database: Database) -> None:
    LedgerRows().write(database)
    base = {
        "request_id": "r", "input_index": 0, "tenant": "acme", "endpoint": "chat",
        "state": "closed", "outcome": "answered", "escalated": False, "opened_at": START,
        "instance": "i", "elapsed_us": 900, "cached": False, "route": "frontier",
        "avoided_usd": Decimal("0.02"),
    }  # fmt: skip
    rows: list[Row] = [
        {"id": "p1", "claim": "c1"}, {"id": "p2", "claim": "brief,c1"},
        # A cached answer avoids what it had cost; an audit, and a failure, avoid nothing.
        {"id": "p3", "claim": "c1", "cached": True, "route": "cache"},
        {"id": "p4", "claim": "c1", "endpoint": "audit"},
        {"id": "p5", "claim": "c1", "outcome": "frontier_timeout"},
        {"id": "p6", "claim": "c2", "avoided_usd": Decimal("0.5")},
    ]  # fmt: skip
    claim = {
        "id": "c1", "shortcut": "pruned_context", "state": "held", "target_error": 0.05,
        "scope": {"tenants": "acme", "subject": "context/openai/large"}, "observed_error": 0.01,
        "interval": [0.002, 0.04], "audits": 300,
    }  # fmt: skip
    others = [
        {**claim, "id": "brief", "shortcut": "brief_answer"},
        {**claim, "id": "c2", "scope": {"tenants": "globex", "subject": "context/openai/large"}},
    ]
    audit = {
        "claim": "c1", "group_id": "g", "text_digest": "t", "tenant": "acme", "request_id": "r",
        "accepted": 1, "hypothesis": 1, "drawn_at": START, "verdict": "same", "reference": "m",
        "candidates": "[]", "judged_at": START, "cost_usd": Decimal("0.03"),
    }  # fmt: skip
    with database.begin() as connection:
        for row in rows:
            connection.execute(exits.insert(), {**base, **row})
        for found in (claim, *others):
            document = {"claim": found["id"], "document": json.dumps(found), "sequence": 1}
            connection.execute(evidence_states.insert(), document)
        for number, origin in enumerate(("accepted", "shadow"), 1):
            row = {**audit, "sequence": number, "input": f"i{number}", "origin": origin}
            connection.execute(evidence_audits.insert(), row)
    shown = report(database)
    lines = [
        (one.claim, one.answers, one.avoided_usd, one.own_usd, one.saved_usd)
        for one in shown.context_claims
    ]
    assert lines == [
        ("c1", 2, Decimal("0.04"), Decimal("0.06"), Decimal("-0.02")),
        ("c2", 1, Decimal("0.5"), Decimal(0), Decimal("0.5")),
    ]
    assert report(database, tenant="acme").context_claims == shown.context_claims[:1]
    assert shown.cache_claims == ()
    console = Console(file=StringIO(), width=80)
    print_report(shown, console)
    assert "pruned contexts" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "Answers from pruned contexts" in render_page(shown)
