"""Tenants and keys in both databases, and the commands that keep them."""

import hashlib
import hmac
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import select

from serving.cli import main
from serving.contracts.errors import InvalidRequest, NotFound
from serving.contracts.ledger import Tenant
from serving.ledger.access.keys import (
    LiveKey,
    create_key,
    list_keys,
    live_keys,
    matching,
    revoke_key,
)
from serving.ledger.access.tenants import create_tenant, list_tenants, update_tenant
from serving.ledger.database import Database, database_url
from serving.ledger.migrate import migrate
from serving.ledger.schema import api_keys

ID, SECRET = "0123456789ab", "A" * 20 + "_-" + "z" * 21
KEY = f"ng-{ID}-{SECRET}"
LIVE = {ID: LiveKey(ID, "acme", False, hashlib.sha256(SECRET.encode()).hexdigest())}


@pytest.fixture
def database(ledger_url: SecretStr | None, state: Path) -> Any:
    found = Database(database_url(ledger_url, state))
    migrate(found)
    yield found
    found.close()


def test_the_key_itself_is_found() -> None:
    assert matching(KEY, LIVE) is LIVE[ID]


@given(st.integers(0, len(KEY) - 1), st.characters())
def test_a_key_with_any_character_changed_is_refused(place: int, other: str) -> None:
    assume(other != KEY[place])
    assert matching(KEY[:place] + other + KEY[place + 1 :], LIVE) is None


@given(st.text(max_size=80), st.sampled_from(["", KEY, "ng-", f"ng-{ID}-"]))
def test_no_other_text_is_a_key(text: str, stem: str) -> None:
    assume(text)
    assert matching(stem + text, LIVE) is None
    assert matching(text + stem, LIVE) is None


@given(st.integers(0, len(KEY) - 1))
def test_a_part_of_a_key_is_none(length: int) -> None:
    assert matching(KEY[:length], LIVE) is None


@pytest.mark.parametrize(
    "presented", [KEY, KEY[:-1] + "A", KEY.replace(ID, "f" * 12), "", "nonsense", KEY + "A"]
)
def test_every_text_costs_one_comparison_in_constant_time(
    presented: str,
) -> None:
    compared = []

    def watched(first: str, second: str) -> bool:
        compared.append((len(first), len(second)))
        return hmac.compare_digest(first, second)

    assert (matching(presented, LIVE, watched) is LIVE[ID]) == (presented == KEY)
    assert compared == [(64, 64)]


def test_a_key_is_made_listed_and_revoked(database: Database) -> None:
    create_tenant(database, Tenant("acme"))
    issued = create_key(database, "acme", "the app")
    text = issued.text.get_secret_value()
    with database.read() as connection:
        live = live_keys(connection)
    assert matching(text, live) == live[issued.id]
    (record,) = list_keys(database)
    assert (record.id, record.tenant, record.label) == (issued.id, "acme", "the app")
    assert (record.admin, record.revoked_at) == (False, None)
    revoke_key(database, issued.id)
    (revoked,) = list_keys(database)
    assert revoked.revoked_at is not None
    revoke_key(database, issued.id)
    assert list_keys(database) == [revoked]
    with database.read() as connection:
        assert live_keys(connection) == {}


def test_a_secret_is_neither_stored_nor_shown(database: Database) -> None:
    issued = create_key(database, None, "reports")
    secret = issued.text.get_secret_value().split("-", 2)[2]
    with database.read() as connection:
        rows = connection.execute(select(api_keys)).all()
        live = live_keys(connection)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    assert [row.secret_sha256 for row in rows] == [digest]
    assert secret not in repr(rows)
    for shown in (repr(issued), repr(live), repr(list_keys(database))):
        assert secret not in shown
        assert digest not in shown


def test_keys_need_a_tenant_that_exists_and_a_label_that_can_be_printed(
    database: Database,
) -> None:
    with pytest.raises(NotFound, match="nobody"):
        create_key(database, "nobody")
    for label in ("a\nb", "x" * 101, "\ud800"):
        with pytest.raises(InvalidRequest) as caught:
            create_key(database, None, label)
        assert caught.value.field == "label"
    with pytest.raises(NotFound, match="0f0f"):
        revoke_key(database, "0f0f")
    assert list_keys(database) == []


def test_tenants_come_back_as_they_were_made_and_changed(database: Database) -> None:
    acme = Tenant("acme", Decimal("5.25"), Decimal(0), 60, 4)
    create_tenant(database, acme)
    create_tenant(database, Tenant("a-1"))
    assert list_tenants(database) == [Tenant("a-1"), acme]
    changed = update_tenant(database, "acme", {"day_usd": None, "requests_per_minute": 30})
    assert changed == Tenant("acme", None, Decimal(0), 30, 4)
    assert list_tenants(database) == [Tenant("a-1"), changed]
    assert update_tenant(database, "acme", {}) == changed


@pytest.mark.parametrize("name", ["", "-a", "Acme", "a_b", "a b", "a\n", "é", "a" * 64])
def test_unfit_names_are_refused(name: str, database: Database) -> None:
    with pytest.raises(InvalidRequest) as caught:
        create_tenant(database, Tenant(name))
    assert caught.value.field == "name"
    assert list_tenants(database) == []


def test_a_taken_name_is_refused_and_an_unknown_one_cannot_be_changed(database: Database) -> None:
    create_tenant(database, Tenant("acme", Decimal(5)))
    with pytest.raises(InvalidRequest, match="already"):
        create_tenant(database, Tenant("acme"))
    with pytest.raises(NotFound, match="other"):
        update_tenant(database, "other", {"day_usd": None})
    assert list_tenants(database) == [Tenant("acme", Decimal(5))]


@pytest.mark.parametrize(
    ("field", "value"),
    [("day_usd", Decimal(-1)), ("month_usd", Decimal("NaN")), ("day_usd", Decimal("Infinity")),
     ("day_usd", Decimal("0.0000000000001")), ("month_usd", Decimal(10**7)),
     ("requests_per_minute", 0), ("max_concurrent_requests", -1), ("requests_per_minute", 2**31)],
)  # fmt: skip
def test_unfit_limits_are_refused(field: str, value: Any, database: Database) -> None:
    with pytest.raises(InvalidRequest) as caught:
        create_tenant(database, Tenant("acme", **{field: value}))
    assert caught.value.field == field
    create_tenant(database, Tenant("acme"))
    with pytest.raises(InvalidRequest):
        update_tenant(database, "acme", {field: value})
    assert list_tenants(database) == [Tenant("acme")]


class Program:
    """narrowgate, with one ledger."""

    def __init__(self, url: SecretStr | None, state: Path, capsys: Any) -> None:
        self._options = ["--state", str(state)]
        if url is not None:
            file = state.parent / "settings.yaml"
            file.write_text(json.dumps({"ledger": {"url": url.get_secret_value()}}), "utf-8")
            self._options += ["--config", str(file)]
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        code = main([*words, *self._options])
        printed = self._capsys.readouterr()
        return code, printed.out, printed.err

    def document(self, *words: str) -> Any:
        _, out, err = self(*words, "--json")
        assert err == ""
        return json.loads(out)


@pytest.fixture
def program(
    ledger_url: SecretStr | None, state: Path, capsys: pytest.CaptureFixture[str]
) -> Program:
    return Program(ledger_url, state, capsys)


def test_the_tenant_command(program: Program) -> None:
    made = program.document("tenant", "create", "acme", "--day-usd", "5.25")
    assert made == {
        "name": "acme", "day_usd": "5.25", "month_usd": None, "requests_per_minute": None,
        "max_concurrent_requests": None, "evidence_external": None,
        "evidence_providers": None,
    }  # fmt: skip
    words = ("--day-usd", "none", "--requests-per-minute", "60", "--max-concurrent-requests", "2")
    changed = program.document("tenant", "set", "acme", *words)
    wanted = {"day_usd": None, "requests_per_minute": 60, "max_concurrent_requests": 2}
    assert changed == {**made, **wanted}
    assert program.document("tenant", "list") == [changed]
    code, out, _ = program("tenant", "list")
    assert (code, out.split()) == (
        0, ["acme", "requests_per_minute", "60,", "max_concurrent_requests", "2"]
    )  # fmt: skip
    assert program.document("tenant", "create", "acme")["error"]["code"] == "invalid_request"
    for names in ("nope,,", ",", "a b", "a, b"):
        code, _, err = program("tenant", "set", "acme", "--evidence-providers", names)
        assert code == 2, names
        assert "without spaces" in err
    code, _, err = program("tenant", "set", "other", "--day-usd", "1")
    assert code == 2
    assert "fix: create it with narrowgate tenant create" in err


def test_the_key_command_prints_only_the_key_once(program: Program) -> None:
    program("tenant", "create", "acme")
    code, out, err = program("key", "create", "--tenant", "acme", "--label", "the app")
    key = out.strip()
    assert (code, out) == (0, key + "\n")
    _, key_id, secret = key.split("-", 2)
    assert key_id in err
    assert secret not in err
    admin = program.document("key", "create", "--admin")
    assert admin["key"].startswith(f"ng-{admin['id']}-")
    assert (admin["tenant"], admin["admin"]) == (None, True)
    listed = program.document("key", "list")
    assert [(row["id"], row["tenant"], row["label"]) for row in listed] == [
        (key_id, "acme", "the app"), (admin["id"], None, "")
    ]  # fmt: skip
    assert set(listed[0]) == {"id", "tenant", "admin", "label", "created_at", "revoked_at"}
    assert program.document("key", "revoke", key_id) == {
        "id": key_id, "revoked": True, "batches": {"cancelled": [], "going_on": []},
    }  # fmt: skip
    _, out, _ = program("key", "list")
    first, second = out.splitlines()
    assert (first.startswith(key_id), "revoked" in first) == (True, True)
    assert (second.split()[1], "live" in second) == ("(admin)", True)
    assert program("key", "revoke", "0f0f0f0f0f0f")[0] == 2
    assert program.document("key", "create", "--tenant", "none")["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    "words",
    [("key", "create"), ("key", "create", "--admin", "--tenant", "a"), ("key",), ("tenant",),
     ("tenant", "create", "a", "--day-usd", "much"),
     ("tenant", "set", "a", "--requests-per-minute", "1.5")],
)  # fmt: skip
def test_wrong_usage_is_a_usage_error(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert caught.value.code == 2
