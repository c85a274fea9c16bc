"""No tenant ever gets, sees or deletes another tenant's answer, whatever it sends."""

from collections.abc import AsyncIterator
from itertools import permutations, product
from typing import Any

import pytest
from pydantic import ValidationError

from serving.contracts.cache_settings import CacheSettings
from serving.contracts.task_spec import TaskSpec
from serving.ledger.database import Database

from .authenticated import KeyedServer
from .cache_kit import Cached, cached
from .scripted import assert_error

TENANTS = ("acme", "globex", "initech")
SHARED = {"shared": {"partners": ("globex", "initech")}}
TEXT = "The same text."
ENTRY = "x-narrowgate-cache-entry"
HEADERS: list[dict[str, str]] = [
    {},
    *({"x-narrowgate-cache": value} for value in ("use", "refresh", "no-store")),
    {"x-narrowgate-user": "acme"},
    {"x-narrowgate-tenant": "acme", "openai-organization": "acme", "openai-project": "acme"},
    {"x-narrowgate-cache-namespace": "tenant/acme"},
    {"x-request-id": "of-acme"},
    {"x-narrowgate-cache-ttl-s": "60"},
]
BODIES: list[dict[str, Any]] = [
    {"input": TEXT},
    {"inputs": [TEXT]},
    {"input": TEXT, "user": "acme"},
    {"input": TEXT, "deterministic": True},
]


class Keys:
    """A cached server with two keys of each tenant, and an operator's key."""

    def __init__(self, found: Cached, keys: dict[str, list[str]], admin: str) -> None:
        self.cached = found
        self.of = keys
        self.admin = admin

    async def send(self, method: str, path: str, key: str, **more: Any) -> Any:
        headers = {"authorization": f"Bearer {key}", **more.pop("headers", {})}
        client = self.cached.server.client
        return await client.request(method, path, headers=headers, **more)

    async def ask(self, key: str, body: dict[str, Any], headers: dict[str, str]) -> str:
        """Return the route of the answer to a text."""
        found = await self.send("POST", "/v1/tasks/topic", key, json=body, headers=headers)
        assert found.status_code == 200, found.text
        await self.cached.entries()
        return str(found.headers["x-narrowgate-route"])

    async def entry(self, tenant: str, text: str = TEXT) -> str:
        """Have a tenant's answer in the cache; return the entry's id."""
        for _ in range(2):
            found = await self.send(
                "POST", "/v1/tasks/topic", self.of[tenant][0], json={"input": text}
            )
            await self.cached.entries()
        return str(found.headers[ENTRY])


@pytest.fixture
async def keys(specs: dict[str, TaskSpec], database: Database) -> AsyncIterator[Keys]:
    keyed = KeyedServer(specs, database)
    await keyed.server.ready()
    of = {}
    for tenant in TENANTS:
        first = await keyed.tenant(tenant)
        of[tenant] = [first, await keyed.key(tenant)]
    admin = await keyed.key(None)
    async with cached(keyed.server, database, **SHARED) as found:
        yield Keys(found, of, admin)


@pytest.mark.parametrize("body", BODIES, ids=str)
async def test_no_header_and_no_field_reaches_another_tenants_answer(
    keys: Keys, body: dict[str, Any]
) -> None:
    await keys.ask(keys.of["acme"][0], body, {})
    others = [key for tenant in ("globex", "initech") for key in keys.of[tenant]]
    for key, headers in product(others, HEADERS):
        # Each finds an empty cache: nothing of another request of its own either.
        await keys.send("DELETE", "/v1/cache", keys.of["globex"][0])
        await keys.send("DELETE", "/v1/cache", keys.of["initech"][0])
        assert await keys.ask(key, body, headers) == "local", headers
    assert await keys.ask(keys.of["acme"][1], body, {}) == "cache"


async def test_every_pair_of_tenants_shares_only_what_the_operator_lists(keys: Keys) -> None:
    together = {("globex", "initech"), ("initech", "globex")}
    for number, (one, other) in enumerate(permutations(TENANTS, 2)):
        for first, second in product(keys.of[one], keys.of[other]):
            body = {"input": f"{TEXT} {number} {first} {second}"}
            assert await keys.ask(first, body, {}) == "local"
            expected = "cache" if (one, other) in together else "local"
            assert await keys.ask(second, body, {}) == expected, (one, other)


async def test_keys_of_one_tenant_share(keys: Keys) -> None:
    for tenant in TENANTS:
        first, second = keys.of[tenant]
        body = {"input": f"of {tenant}"}
        assert await keys.ask(first, body, {}) == "local"
        assert await keys.ask(second, body, {}) == "cache"


async def test_a_tenant_cannot_delete_or_judge_anothers_entry(keys: Keys) -> None:
    entry = await keys.entry("acme")
    for tenant in ("globex", "initech"):
        key = keys.of[tenant][0]
        feedback = {"id": entry, "good": False}
        for method, path, more in [
            ("DELETE", f"/v1/cache/entries/{entry}", {}),
            ("DELETE", "/v1/cache?namespace=acme", {}),
            ("DELETE", "/v1/cache?namespace=tenant/acme", {}),
            ("POST", "/v1/cache/feedback", {"json": feedback}),
            ("POST", "/v1/cache/feedback", {"json": {**feedback, "good": True}}),
        ]:
            assert_error(await keys.send(method, path, key, **more), 404, "not_found")
        for method, path in [
            ("GET", "/v1/admin/cache"),
            ("DELETE", "/v1/admin/cache?tenant=acme"),
            ("DELETE", f"/v1/admin/cache/entries/{entry}"),
            ("GET", "/v1/admin/cache/aliases"),
            ("DELETE", f"/v1/admin/cache/aliases/{'a' * 64}"),
        ]:
            assert_error(await keys.send(method, path, key), 403, "forbidden")
        assert (await keys.send("DELETE", "/v1/cache", key)).json() == {"deleted": 0}
    assert await keys.ask(keys.of["acme"][0], {"input": TEXT}, {}) == "cache"


async def test_an_unknown_entry_and_anothers_look_the_same(keys: Keys) -> None:
    entry = await keys.entry("acme")
    key = keys.of["globex"][0]
    texts = set()
    for name in (entry, "0" * 32):
        gone = await keys.send("DELETE", f"/v1/cache/entries/{name}", key)
        texts.add(gone.text.replace(name, "ID"))
    assert len(texts) == 1


async def test_partners_may_delete_a_shared_entry_and_not_the_whole_namespace(keys: Keys) -> None:
    entry = await keys.entry("globex")
    key = keys.of["initech"][0]
    path = "/v1/cache?namespace=partners"
    assert (await keys.send("DELETE", path, key)).json() == {"deleted": 0}
    gone = await keys.send("POST", "/v1/cache/feedback", key, json={"id": entry, "good": False})
    assert gone.json() == {"id": entry, "good": False, "deleted": 1}
    assert await keys.ask(keys.of["globex"][0], {"input": TEXT}, {}) == "local"


async def test_an_operator_deletes_by_namespace_tenant_request_and_end_user(keys: Keys) -> None:
    async def fill() -> None:
        for tenant in TENANTS:
            for user in ("ann", "bob"):
                await keys.send(
                    "POST", "/v1/tasks/topic", keys.of[tenant][0],
                    json={"input": f"of {tenant} {user}", "user": user},
                    headers={"x-request-id": f"{tenant}-{user}"},
                )  # fmt: skip

    for query, count in [
        ("namespace=shared/partners", 4), ("tenant=globex", 2), ("end_user=ann", 3),
        ("tenant=globex&end_user=ann", 1), ("request_id=acme-bob", 1),
        ("tenant=globex&request_id=acme-bob", 0), ("namespace=tenant/globex", 0),
    ]:  # fmt: skip
        await fill()
        found = await keys.send("DELETE", f"/v1/admin/cache?{query}", keys.admin)
        assert found.json() == {"deleted": count}, query
    refused = await keys.send("DELETE", "/v1/admin/cache", keys.admin)
    assert_error(refused, 400, "invalid_request")
    refused = await keys.send("DELETE", "/v1/admin/cache?tenant=acme&end_user=", keys.admin)
    assert_error(refused, 400, "invalid_request")


async def test_an_excluded_key_keeps_nothing(
    specs: dict[str, TaskSpec], database: Database
) -> None:
    keyed = KeyedServer(specs, database)
    await keyed.server.ready()
    key = await keyed.tenant("acme")
    async with cached(keyed.server, database, excluded_keys=(key.split("-")[1],)) as found:
        for _ in range(2):
            answer = await keyed.ask(key, "/v1/tasks/topic")
            assert answer.headers["x-narrowgate-cache"] == "bypass"
        other = await keyed.key("acme")
        for expected in ("miss", "hit"):
            answer = await keyed.ask(other, "/v1/tasks/topic")
            assert answer.headers["x-narrowgate-cache"] == expected
            await found.entries()


def test_a_tenant_with_the_name_of_a_shared_namespace_is_apart() -> None:
    settings = CacheSettings(shared={"acme": ("globex",)})
    names = [settings.namespace_of(name) for name in ("acme", "globex", "tenant/acme")]
    assert names == ["tenant/acme", "shared/acme", "tenant/tenant/acme"]


def test_a_tenant_belongs_to_one_shared_namespace() -> None:
    with pytest.raises(ValidationError, match="globex"):
        CacheSettings(shared={"a": ("globex",), "b": ("globex",)})


async def test_an_answer_in_the_wrong_row_is_not_served(keys: Keys, database: Database) -> None:
    """A key that another namespace's row has is not enough."""
    await keys.entry("acme")
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE cache_entries SET namespace = 'tenant/other'")
    keys.cached.service.flights.retire_answered()
    assert await keys.ask(keys.of["acme"][0], {"input": TEXT}, {}) == "local"
