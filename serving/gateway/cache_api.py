"""Control of the cache: tenants delete their own entries, operators anyone's."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from serving.cache.entry_store import EntryFilter
from serving.cache.question_store import QuestionStore
from serving.cache.service import CacheService
from serving.contracts.errors import InvalidRequest, NotFound
from serving.contracts.ledger import Caller
from serving.gateway.context import Context
from serving.gateway.control import WHOLE_QUERY, body_of, body_schema

router = APIRouter(prefix="/v1", tags=["cache"], dependencies=[WHOLE_QUERY])


class Feedback(BaseModel):
    """Whether a cached answer was right. id: of the entry, as the answer named it."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=64)
    good: bool


async def _service(context: Context) -> CacheService:
    # Also where it is off: what was stored before can be seen and deleted.
    assert context.cache is not None, "a served gateway has one"
    return context.cache


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


Cache = Annotated[CacheService, Depends(_service)]
Sender = Annotated[Caller, Depends(_caller)]


@router.delete("/cache/entries/{entry}")
async def delete_entry(entry: str, cache: Cache, caller: Sender) -> dict[str, Any]:
    """Delete one entry of the caller's namespace; no replica serves it any more."""
    await _delete_one(entry, cache, caller)
    return {"id": entry, "deleted": 1}


@router.delete("/cache")
async def delete_namespace(
    cache: Cache,
    caller: Sender,
    namespace: Annotated[str | None, Query(description="the tenant's own or shared one")] = None,
) -> dict[str, Any]:
    """Delete the entries that the caller's tenant made, of one namespace or of all."""
    tenant = caller.tenant
    if namespace is None:
        return {"deleted": await cache.delete(EntryFilter(tenant=tenant))}
    # A tenant that joined a shared namespace still has entries in its own.
    for full in (cache.settings.namespace_of(tenant), f"tenant/{tenant}"):
        if namespace in (full, full.partition("/")[2]):
            return {"deleted": await cache.delete(EntryFilter(namespace=full, tenant=tenant))}
    raise _no_namespace(namespace)


@router.post("/cache/feedback", openapi_extra=body_schema(Feedback))
async def note_feedback(
    body: Annotated[Feedback, Depends(body_of(Feedback))], cache: Cache, caller: Sender
) -> dict[str, Any]:
    """Note whether a cached answer was right; a wrong one is deleted at once."""
    visible = _visible(body.id, cache, caller)
    if not body.good:
        await _delete_one(body.id, cache, caller)
    elif not await cache.read(lambda store: any(map(store.sizes, visible))):
        raise _no_entry(body.id)
    cache.events.cache_feedback(good=body.good)
    return {"id": body.id, "good": body.good, "deleted": int(not body.good)}


@router.get("/admin/cache")
async def show_sizes(cache: Cache) -> dict[str, Any]:
    """Show the entries, bytes and hits of every namespace."""
    return {"object": "list", "data": await cache.read(lambda store: store.stats(EntryFilter()))}


@router.delete("/admin/cache")
async def delete_any(
    cache: Cache,
    namespace: Annotated[str | None, Query(description="tenant/NAME or shared/NAME")] = None,
    tenant: Annotated[str | None, Query(description="tenant whose answers are deleted")] = None,
    request_id: Annotated[str | None, Query(description="only of one request")] = None,
    end_user: Annotated[str | None, Query(description="only of one end user")] = None,
) -> dict[str, Any]:
    """Delete the entries to which every given condition applies. At least one is needed."""
    given = {"namespace": namespace, "tenant": tenant, "request_id": request_id,
             "end_user": end_user}  # fmt: skip
    if not any(given.values()) or "" in given.values():
        raise InvalidRequest(
            "the request names no entries",
            field="namespace",
            fix="name a namespace, a tenant, a request_id or an end_user",
        )
    count = await cache.delete(EntryFilter(**given))
    if not count and tenant is not None:
        await cache.read(lambda entries: entries.refuse_unknown(tenant))
    return {"deleted": count}


@router.delete("/admin/cache/entries/{entry}")
async def delete_any_entry(entry: str, cache: Cache) -> dict[str, Any]:
    """Delete one entry of any namespace."""
    if not await cache.delete(EntryFilter(entry=entry)):
        raise _no_entry(entry)
    return {"id": entry, "deleted": 1}


@router.get("/admin/cache/aliases")
async def list_aliases(
    cache: Cache,
    namespace: Annotated[str | None, Query(description="tenant/NAME or shared/NAME")] = None,
    entry: Annotated[str | None, Query(description="only of one entry")] = None,
) -> dict[str, Any]:
    """List the wordings that audits accepted for an entry, by the digests of their requests."""
    found = await cache.read(
        lambda store: QuestionStore(store).aliases(namespace=namespace, entry=entry)
    )
    return {"object": "list", "data": found}


@router.delete("/admin/cache/aliases/{key}")
async def remove_alias(key: str, cache: Cache) -> dict[str, Any]:
    """Remove an accepted wording; its entry is found by its own key alone from then on."""
    entry = await cache.read(lambda store: QuestionStore(store).remove_alias(key))
    if entry is None:
        raise NotFound(
            f"there is no alias {key[:64]!r}",
            field="key",
            fix="send a key that GET /v1/admin/cache/aliases lists; it may be removed",
        )
    return {"key": key, "entry": entry, "removed": 1}


async def _delete_one(entry: str, cache: CacheService, caller: Caller) -> None:
    for chosen in _visible(entry, cache, caller):
        if await cache.delete(chosen):
            return
    raise _no_entry(entry)


def _visible(entry: str, cache: CacheService, caller: Caller) -> tuple[EntryFilter, EntryFilter]:
    """Return an entry as far as the caller may see it: in its namespace, or its tenant's own."""
    namespace = cache.settings.namespace_of(caller.tenant)
    return EntryFilter(entry=entry, namespace=namespace), EntryFilter(
        entry=entry, tenant=caller.tenant
    )


def _no_entry(entry: str) -> NotFound:
    return NotFound(
        f"there is no cache entry {entry[:64]!r}",
        field="id",
        fix="send the id in the answer's x-narrowgate-cache-entry header; it may be deleted",
    )


def _no_namespace(name: str) -> NotFound:
    return NotFound(
        f"this tenant has no namespace {name[:64]!r}",
        field="namespace",
        fix="send the tenant's own name, that of its shared namespace, or no namespace",
    )
