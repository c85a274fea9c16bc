"""`narrowgate report`: text, JSON and page of real databases; names are hostile."""

import json
import re
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from zoneinfo import ZoneInfo

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import insert, text, update

from serving.cli import main
from serving.contracts.errors import LedgerUnusable
from serving.contracts.report import Day, Report
from serving.ledger.database import Database, database_url
from serving.ledger.migrate import migrate
from serving.ledger.reports.build import build_report
from serving.ledger.reports.formats import by_period, dollars, usd, visible
from serving.ledger.reports.page import render_page
from serving.ledger.reports.query import Scope
from serving.ledger.reports.written import written_ledger
from serving.ledger.schema import exits

from .ledger_rows import UTC_ZONE, LedgerRows, frontier, instance, local, unpaid

HOSTILE = '<script>alert("$x$")</script> [red]&\x1b[31m\u202e_'
ESCAPED = "&lt;script&gt;"
LAST = datetime.now(UTC) - timedelta(hours=2)
TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "section", "div", "span",
    "h1", "h2", "h3", "p", "strong", "bdi", "table", "thead", "tbody", "tr", "th", "td", "figure",
    "figcaption", "svg", "g", "defs", "path", "use", "text", "clippath", "rect", "metadata",
    "rdf:rdf", "cc:work", "dc:type", "dc:date", "dc:format", "dc:creator", "cc:agent", "dc:title",
}  # fmt: skip


@pytest.fixture
def database(ledger_url: SecretStr | None, state: Path) -> Iterator[Database]:
    found = Database(database_url(ledger_url, state))
    yield found
    found.close()


def hostile_rows() -> LedgerRows:
    made = LedgerRows(start=LAST)
    model = frontier() | {"model": "_" + HOSTILE, "service_tier": HOSTILE}
    made.exit(0, [model, local()], tenant=HOSTILE, task=HOSTILE, reason=HOSTILE, endpoint=HOSTILE)
    made.exit(1, [unpaid("unknown", Decimal(1), HOSTILE)], route="none", outcome=HOSTILE)
    made.exit(2, [unpaid("open", Decimal(1))], state="open", route=None, outcome=None)
    made.exit(3, [frontier()], reference_model=HOSTILE)
    made.instances = [instance(LAST, LAST + timedelta(hours=1), "0.1")]
    return made


def report(database: Database) -> Report:
    return build_report(database, Scope(LAST, LAST + timedelta(days=1), None), UTC_ZONE)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_a_page_holds_no_markup_but_its_own(database: Database) -> None:
    hostile_rows().write(database)
    with database.begin() as connection:
        connection.execute(
            update(exits).where(exits.c.id == "exit-3").values(cost_usd=Decimal(5), id=HOSTILE)
        )
    found = report(database)
    page = render_page(found)
    tags = Tags()
    tags.feed(page)
    assert tags.names <= TAGS
    assert not {name for name in tags.attributes if name.startswith("on")}
    assert ESCAPED in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "Discrepancies" in page
    # Nothing is loaded: only links within the page, and names of XML namespaces.
    assert "default-src 'none'" in page
    links = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', page)
    assert all((a or b).startswith("#") for a, b in links)
    assert render_page(found) == page


def test_an_empty_report_has_a_page(database: Database) -> None:
    LedgerRows().write(database)
    page = render_page(report(database))
    assert "$0.0000 spent" in page
    assert "<svg" not in page
    assert "0 rows reconciled, 0 discrepancies" in page


def test_drawing_leaves_the_process_as_it_was(state: Path) -> None:
    database = Database(database_url(None, state))
    hostile_rows().write(database)
    before = dict(matplotlib.rcParams)
    page = render_page(report(database))
    assert page.count("<svg") == 4
    assert dict(matplotlib.rcParams) == before
    database.close()


def test_a_page_shows_more_models_than_it_has_colours(database: Database) -> None:
    made = LedgerRows(start=LAST)
    made.exit(0, [frontier() | {"model": f"provider/model-{n:02}"} for n in range(20)])
    made.write(database)
    page = render_page(report(database))
    assert "all others" in page
    assert "provider/model-19" in page


def ledger_command(state: Path, *arguments: str) -> int:
    return main(["report", "--state", str(state), *arguments])


@pytest.fixture
def honest(state: Path) -> Path:
    database = Database(database_url(None, state))
    hostile_rows().write(database)
    database.close()
    return state


def test_the_text_fits_80_columns_and_shows_names_harmlessly(
    honest: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert ledger_command(honest, "--since", "24h") == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[red]" in shown
    assert "0 discrepancies" in shown
    for word in ("spent", "held", "wasted", "saved", "idle", "token class", "latency, ms"):
        assert word in shown


def test_json_is_the_document_and_the_page_a_file(
    honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.html"
    arguments = ("--since", "24h", "--tenant", HOSTILE, "--html", str(file), "--json")
    assert ledger_command(honest, *arguments) == 0
    found = Report.model_validate_json(capsys.readouterr().out)
    assert found.tenant == HOSTILE
    assert found.totals.exits == 1
    assert ESCAPED in file.read_text(encoding="utf-8")
    assert ledger_command(honest, "--html", str(tmp_path / "no" / "r.html"), "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"]["field"] == "--html"


def test_an_unknown_tenant_is_an_error(honest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger_command(honest, "--tenant", "typo", "--json") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["field"]) == ("not_found", "tenant")
    assert "'typo'" in error["message"]
    assert ledger_command(honest, "--tenant", "a", "--json") == 0
    assert ledger_command(honest, "--tenant", "default", "--json") == 0


def test_a_ledger_of_a_newer_version_has_no_report(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = Database(database_url(None, state))
    migrate(database)
    assert ledger_command(state, "--json") == 0
    with database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999_later'"))
    database.close()
    capsys.readouterr()
    assert ledger_command(state, "--json") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "ledger_unusable"
    assert "9999_later" in error["message"]


def test_rows_that_do_not_agree_fail(honest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(honest / "ledger" / "ledger.db") as connection:
        connection.execute("UPDATE exits SET cost_usd = cost_usd + 1 WHERE id = 'exit-3'")
    connection.close()
    assert ledger_command(honest, "--since", "24h") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 discrepancy exit_cost: exits.cost_usd exit-3 states 0.000300000001" in shown


def test_rows_written_meanwhile_are_not_in_the_report(honest: Path) -> None:
    writer = Database(database_url(None, honest))
    with writer.begin() as connection:
        row = {**hostile_rows().exits[0], "id": "late", "cost_usd": Decimal(0)}
        connection.execute(insert(exits), row)
        assert ledger_command(honest, "--since", "24h", "--json") == 0
    writer.close()


def test_a_report_without_a_ledger_creates_none(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ledger_command(state, "--json") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "ledger_unusable"
    assert "narrowgate serve" in error["fix"]
    assert not state.exists()


def test_a_database_without_the_tables_is_refused(
    empty_ledger_url: SecretStr | None, state: Path
) -> None:
    ledger_url = empty_ledger_url
    database = Database(database_url(ledger_url, state))
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE other (id INTEGER)"))
    with pytest.raises(LedgerUnusable, match="has no"), written_ledger(ledger_url, state):
        pass
    hostile_rows().write(database)
    with written_ledger(ledger_url, state) as found:
        assert build_report(found, Scope(LAST, LAST, None), ZoneInfo("UTC")).totals.exits == 0
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE calls DROP COLUMN usage_source"))
    with (
        pytest.raises(LedgerUnusable, match=r"no 'calls\.usage_source'"),
        written_ledger(ledger_url, state),
    ):
        pass
    database.close()


def test_a_report_on_a_file_that_is_not_a_database_is_refused(state: Path) -> None:
    (state / "ledger").mkdir(parents=True)
    (state / "ledger" / "ledger.db").write_text("not a database " * 100)
    with pytest.raises(LedgerUnusable, match="cannot be read"), written_ledger(None, state):
        pass


@pytest.mark.parametrize(
    ("amount", "long", "short"),
    [
        ("0", "0.000000", "$0.0000"),
        ("-0.0000001", "0.000000", "$0.0000"),
        ("1234.5678901", "1,234.567890", "$1,234.57"),
        ("-44.125", "-44.125000", "-$44.12"),
    ],
)
def test_amounts_read_as_money(amount: str, long: str, short: str) -> None:
    assert usd(Decimal(amount)) == long
    assert dollars(Decimal(amount)) == short


@given(st.text())
def test_names_are_escaped(name: str) -> None:
    assert visible(name).isprintable()
    assert len(visible(name)) == len(name)


@given(st.sets(st.dates(datetime(2020, 1, 1).date(), datetime(2030, 1, 1).date()), max_size=8))
def test_periods_have_every_day_once(days: set[object]) -> None:
    nothing = {"calls": 0, "cost_usd": 0, "held_usd": 0, "open_usd": 0}
    line = {"name": "m", **nothing}
    drawn = [
        Day.model_validate(
            {**line, "day": day, "exits": 1, "answered": 1, "reference_usd": 0, "models": [line]}
        )
        for day in days
    ]
    periods = by_period(drawn)
    assert sum(map(len, periods.values())) == len(days)
    assert list(periods) == sorted(periods)
    assert all(str(day)[: len(next(iter(periods)))] in periods for day in days)
