"""The report as text, for terminals of 80 columns."""

from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from serving.contracts.report import Idle, Report, Savings, Share, Spend
from serving.ledger.reports import formats

SHOWN_DISCREPANCIES = 20


def print_report(report: Report, console: Console) -> None:
    """Write the report to a console."""
    for part in _parts(report):
        if not isinstance(part, Table):
            console.print(part)
        elif part.row_count:
            console.print("", part, sep="\n")


def _parts(report: Report) -> Iterator[RenderableType]:
    whose = "all tenants" if report.tenant is None else f"tenant {formats.visible(report.tenant)}"
    since, until = (formats.moment(at, report) for at in (report.since, report.until))
    yield Text(f"{whose}, {since} to {until} {report.time_zone}", style="bold")
    yield Text("\n".join(_headline(report)))
    yield from _spending(report)
    yield from _routes(report)
    yield from _reconciliation(report)


def _headline(report: Report) -> Iterator[str]:
    totals, savings, idle = report.totals, report.savings, report.idle
    spent, held, opened, wasted = map(
        formats.dollars, (totals.cost_usd, totals.held_usd, totals.open_usd, totals.wasted_usd)
    )
    yield (
        f"spent   {spent}: providers {formats.dollars(totals.frontier_usd)}, local replicas "
        f"{formats.dollars(totals.local_usd)}"
    )
    yield f"held    {held} for {totals.unknown_calls:,} calls of unknown cost"
    yield f"open    {opened} for {totals.open_calls:,} calls in progress"
    yield f"wasted  {wasted} on calls without an answer for a client"
    against = ", ".join(map(formats.visible, savings.reference_models)) or formats.NONE
    yield f"saved   {_saved(savings)} against {against}"
    yield from _evidence(report)
    if idle is not None:
        idle_usd = formats.dollars(idle.idle_usd)
        yield f"        {_saved(idle)} after {idle_usd} of idle local replicas"
    yield f"inputs  {totals.exits:,} in {totals.requests:,} requests"
    local_share = formats.share(formats.local_share(report))
    yield (
        f"        {totals.answered:,} answered ({local_share} of them locally), "
        f"{totals.failed:,} failed, {totals.unknown:,} unknown, {totals.open:,} open"
    )
    if totals.deferred:
        yield f"        {totals.deferred:,} left to a provider's batch, or not run by it"
    if totals.without_reference:
        yield f"        {totals.without_reference:,} answered without a reference price"
    if totals.unguaranteed:
        yield f"        {totals.unguaranteed:,} answered outside a guarantee, which saves nothing"


def _evidence(report: Report) -> Iterator[str]:
    names = {"traffic": "live evidence", "suite": "suite evidence", "none": "no evidence"}
    shown = [f"{formats.share(item.share)} on {names[item.name]}" for item in report.evidence]
    if shown:
        yield f"        local answers' part of it: {', '.join(shown)}"
    if report.totals.audits:
        paid = formats.dollars(report.totals.audits_usd)
        yield f"        net of {report.totals.audits:,} audits, {paid}"


def _saved(found: Savings | Idle) -> str:
    return f"{formats.dollars(found.saved_usd)} ({formats.share(found.share)})"


def _spending(report: Report) -> Iterator[RenderableType]:
    yield _spends("model", report.models)
    tasks = [line if line.name else _named(line, "(no task)") for line in report.tasks]
    yield _spends("task", tasks)
    yield _spends("endpoint", report.endpoints)
    if len(report.lanes) > 1 or any(line.name != "interactive" for line in report.lanes):
        yield _spends("lane", report.lanes)
    if any(line.name != "request" for line in report.input_purposes):
        yield _spends("purpose", report.input_purposes)
    if report.tenant is None:
        yield _spends("tenant", report.tenants)
    periods = formats.by_period(report.days)
    yield _spends("day", [_sum(name, models) for name, models in periods.items() if models])
    rows: list[tuple[str | None, ...]] = [
        (item.name, f"{item.tokens:,}", formats.usd(item.cost_usd)) for item in report.token_classes
    ]
    rows.append(("local replica time", formats.NONE, formats.usd(report.totals.local_usd)))
    yield _table("token class", ("tokens", "USD"), rows)
    yield _table(
        "cached prefix",
        ("input tokens", "read", "saved USD"),
        [
            (item.name or "(no prefix)", f"{item.input_tokens:,}", formats.share(item.read_share),
             formats.usd(item.saved_usd))
            for item in report.prefixes
        ],
    )  # fmt: skip
    yield from _cache(report)
    yield _table(
        "pruned contexts",
        ("state", "answers", "avoided USD", "own USD", "saved USD"),
        [
            (f"{item.tenants} {item.subject}", item.standing, f"{item.answers:,}",
             formats.usd(item.avoided_usd), formats.usd(item.own_usd),
             formats.usd(item.saved_usd))
            for item in report.context_claims
        ],
    )  # fmt: skip
    yield _table(
        "no client asked",
        ("calls", "USD", "held USD"),
        [
            (one.name, f"{one.count:,}", formats.usd(one.cost_usd), formats.usd(one.held_usd))
            for one in report.purposes
        ],
    )
    yield _table(
        "cluster",
        ("chats", "cheaper tier", "USD", "own USD"),
        [
            (one.name, f"{one.answered:,}", f"{one.cheaper:,}", formats.usd(one.cost_usd),
             formats.usd(one.own_usd))
            for one in report.clusters
        ],
    )  # fmt: skip
    if report.output_bounds is not None:
        yield _table(
            "output bounds",
            ("answers", "continued", "cut", "at most", "mean tokens"),
            [
                (arm.name, f"{arm.answers:,}", f"{arm.continued:,}", f"{arm.cut:,}",
                 formats.share(arm.cut_upper), formats.tokens(arm.mean_tokens))
                for arm in report.output_bounds.arms
            ],
        )  # fmt: skip
        yield Text(formats.bounds_saved(report.output_bounds))
    yield _spends("service tier", report.service_tiers)
    yield _spends("price", [_named(line, formats.price_name(line)) for line in report.prices])
    for word, wasted in (("answers", False), ("no answer", True)):
        lines = [line for line in report.outcomes if line.wasted == wasted]
        yield _spends(word, [_named(line, f"{line.kind} {line.name or 'open'}") for line in lines])


def _cache(report: Report) -> Iterator[RenderableType]:
    yield _table(
        "cache hit",
        ("hits", "saved USD", "lookups, ms"),
        [
            (item.name, f"{item.hits:,}", formats.usd(item.reference_usd),
             formats.milliseconds(item.lookup_us))
            for item in report.cache
        ],
    )  # fmt: skip
    yield _table(
        "hits by meaning",
        ("state", "audits", "wrong", "at most", "audits USD"),
        [
            (f"{item.tenants} {item.subject}", item.standing, f"{item.audits:,}",
             formats.share(item.observed_error), formats.share(item.upper_bound),
             formats.usd(item.audits_usd))
            for item in report.cache_claims
        ],
    )  # fmt: skip
    yield _table(
        "refined answers",
        ("answers", "refined", "rate"),
        [
            (f"{item.tenant} {item.route}", f"{item.answered:,}", f"{item.refined:,}",
             formats.share(item.rate))
            for item in report.refinements
        ],
    )  # fmt: skip


def _routes(report: Report) -> Iterator[RenderableType]:
    yield _shares("route", report.routes)
    yield _shares("reason", report.reasons)
    yield _shares("escalated for", report.escalations)
    yield _shares("error", report.errors)
    yield _table(
        "latency, ms",
        ("inputs", "p50", "p95"),
        [
            (line.route, f"{line.count:,}", formats.milliseconds(line.p50_us),
             formats.milliseconds(line.p95_us))
            for line in report.latency
        ],
    )  # fmt: skip


def _reconciliation(report: Report) -> Iterator[RenderableType]:
    found = report.reconciliation
    if found is None:
        return
    yield Text(
        "\n" + formats.reconciled(report), style="bold red" if found.discrepancies else "bold"
    )
    for item in found.discrepancies[:SHOWN_DISCREPANCIES]:
        stated, seen = item.stated or formats.NONE, item.found or formats.NONE
        yield Text(f"  {item.kind}: {formats.visible(item.row)} states {stated}, found {seen}")
    rest = len(found.discrepancies) - SHOWN_DISCREPANCIES
    if rest > 0:
        yield Text(f"  and {rest:,} more; --json lists them all")


def _named(line: Spend, name: str) -> Spend:
    return line.model_copy(update={"name": name})


def _sum(name: str, lines: Iterable[Spend]) -> Spend:
    lines = list(lines)
    return Spend(
        name=name,
        calls=sum(line.calls for line in lines),
        cost_usd=sum((line.cost_usd for line in lines), Decimal(0)),
        held_usd=sum((line.held_usd for line in lines), Decimal(0)),
        open_usd=sum((line.open_usd for line in lines), Decimal(0)),
    )


def _spends(word: str, lines: Sequence[Spend]) -> Table:
    return _table(
        word,
        ("calls", "USD", "held USD"),
        [
            (line.name, f"{line.calls:,}", formats.usd(line.cost_usd),
             formats.usd(line.held_usd + line.open_usd))
            for line in lines
        ],
    )  # fmt: skip


def _shares(word: str, lines: Sequence[Share]) -> Table:
    rows = [(line.name, f"{line.count:,}", formats.share(line.share)) for line in lines]
    return _table(word, ("inputs", "share"), rows)


def _table(word: str, numbers: Sequence[str], rows: Iterable[tuple[str | None, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, width=80, pad_edge=False, show_edge=False)
    table.add_column(word, ratio=1, overflow="fold")
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    for name, *values in rows:
        # Text, not str: rich would read markup in a name.
        table.add_row(Text(formats.visible(name)), *(Text(value or "") for value in values))
    return table
