"""Claims for operators: list, show, withdraw, label, delete. These paths need an admin key."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from serving.cache.entry_store import EntryFilter
from serving.contracts.errors import NotFound
from serving.contracts.invalid_values import invalid
from serving.contracts.ledger import Caller
from serving.evidence import administration
from serving.evidence.kept_texts import KeptTexts
from serving.evidence.store import EvidenceOwner, EvidenceStore
from serving.gateway.context import Context, GatewayContext
from serving.gateway.control import WHOLE_QUERY, QueryInteger, body_of, body_schema

_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

router = APIRouter(prefix="/v1/admin", tags=["evidence"], dependencies=[WHOLE_QUERY])


class Withdrawal(BaseModel):
    """Why a claim is withdrawn."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=500)


class PersonsLabel(BaseModel):
    """A person's label of one audited input. input: its name, as `texts` of the claim lists it."""

    model_config = ConfigDict(extra="forbid")

    input: str = Field(min_length=1, max_length=256)
    label: str = Field(min_length=1, max_length=200)


class Labels(BaseModel):
    """Labels of audited inputs of one claim."""

    model_config = ConfigDict(extra="forbid")

    labels: list[PersonsLabel] = Field(min_length=1, max_length=10_000)


async def _actor(request: Request) -> str:
    caller: Caller = request.state.caller
    return caller.key_id or "operator"


Actor = Annotated[str, Depends(_actor)]


@router.get("/claims")
async def list_claims(context: Context) -> dict[str, Any]:
    """List every claim with its state."""
    found = await asyncio.to_thread(administration.listed, _store(context))
    return {"object": "list", "data": found}


@router.get("/claims/{claim}")
async def show_claim(claim: str, context: Context, actor: Actor) -> dict[str, Any]:
    """Show a claim with its events, the course of its error, and people's labels."""
    return await asyncio.to_thread(lambda: _details(claim, context, actor).document())


@router.get("/claims/{claim}/page", response_class=HTMLResponse)
async def show_page(claim: str, context: Context, actor: Actor) -> HTMLResponse:
    """Show a claim as a page, which runs no script and loads no other file."""
    # Loads matplotlib, which no other request needs.
    from serving.evidence.page import render_claim

    page = await asyncio.to_thread(lambda: render_claim(_details(claim, context, actor)))
    return HTMLResponse(page, headers={"content-security-policy": _PAGE_POLICY})


@router.get("/claims/{claim}/texts")
async def sample_texts(
    claim: str,
    context: Context,
    actor: Actor,
    count: Annotated[QueryInteger, Query(ge=1, le=1000, description="texts at most")] = 100,
) -> dict[str, Any]:
    """Return a random sample of audited texts for the caller to label. Each reading is logged."""
    found = await asyncio.to_thread(
        administration.sampled, _store(context), _texts(context), claim, actor, count
    )
    rows = [
        {"input": one.audit.input, "text": one.text, "labels": list(one.labels)} for one in found
    ]
    return {"object": "list", "data": rows}


@router.post("/claims/{claim}/withdraw", openapi_extra=body_schema(Withdrawal))
async def withdraw_claim(
    claim: str,
    body: Annotated[Withdrawal, Depends(body_of(Withdrawal))],
    context: Context,
    actor: Actor,
) -> dict[str, Any]:
    """Withdraw a claim for good; every replica follows within 2 s, this one at once."""
    store = _store(context)
    await asyncio.to_thread(administration.withdraw, store, claim, body.reason, actor)
    assert context.evidence is not None
    await context.evidence.worker.round()
    return {"claim": claim, "state": "withdrawn"}


@router.post("/claims/{claim}/labels", openapi_extra=body_schema(Labels))
async def label_inputs(
    claim: str,
    body: Annotated[Labels, Depends(body_of(Labels))],
    context: Context,
    actor: Actor,
) -> dict[str, Any]:
    """Note a person's labels of audited inputs."""
    labels = [administration.Label(item.input, item.label) for item in body.labels]
    count = await asyncio.to_thread(
        administration.label, _store(context), _texts(context), claim, labels, actor
    )
    return {"claim": claim, "labels": count}


@router.delete("/evidence")
async def delete_evidence(
    context: Context,
    actor: Actor,
    tenant: Annotated[str, Query(description="whose evidence")],
    request_id: Annotated[str | None, Query(description="only of one request")] = None,
    end_user: Annotated[str | None, Query(description="only of one end user")] = None,
) -> dict[str, Any]:
    """Delete what names a tenant, a request or an end user, cached answers too.

    Also of parts that are switched off now.
    """
    for name, value in {"tenant": tenant, "request_id": request_id, "end_user": end_user}.items():
        if value == "":
            raise invalid(name, value, "a name of at least one character")
    retention, cache = context.retention, context.cache
    assert retention is not None
    assert cache is not None
    owner = EvidenceOwner(tenant, request_id, end_user)
    done = await asyncio.to_thread(retention.delete, owner, actor)
    cached = await cache.delete(EntryFilter(None, tenant, request_id, end_user))
    if context.evidence is not None and context.evidence.heads is not None:
        await context.evidence.heads.refresh()
    found = {"deleted": done.audits, "texts": done.texts, "cached": cached,
             "examples": done.examples}  # fmt: skip
    if not any(found.values()):
        await asyncio.to_thread(retention.refuse_unknown, tenant)
    return found


def _details(claim: str, context: GatewayContext, actor: str) -> administration.ClaimDetails:
    return administration.claim_details(_store(context), claim, actor, _texts(context))


def _store(context: GatewayContext) -> EvidenceStore:
    if context.evidence is None:
        raise NotFound("this server keeps no evidence", fix="set evidence.enabled: true")
    return context.evidence.store


def _texts(context: GatewayContext) -> KeptTexts | None:
    return None if context.evidence is None else context.evidence.texts
