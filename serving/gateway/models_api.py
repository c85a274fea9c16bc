"""GET /v1/models: the names that a chat completion may send as `model`."""

import time
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from serving.contracts.errors import ModelPreparing, UnknownModel
from serving.contracts.requests import AUTO, TASK_PREFIX
from serving.contracts.routing import Tier
from serving.gateway.attested import TaskState
from serving.gateway.context import Context, GatewayContext
from serving.tasks.grant import Grant

router = APIRouter(prefix="/v1/models", tags=["openai"])

_STARTED_AT = int(time.time())


class ModelCard(BaseModel):
    """A name, and the model, task or router behind it.

    state: of a local model, preparing, failed, starting, ready or unavailable; of a task,
    preparing, served or refused; of a frontier model, ready or no_key. attestation, tasks,
    max_model_len: of local models.
    """

    id: str
    object: str = "model"
    created: int = _STARTED_AT
    owned_by: str = "narrowgate"
    kind: Literal["local", "router", "task", "frontier"]
    state: str
    max_model_len: int | None = None
    attestation: str | None = None
    tasks: dict[str, TaskState] = Field(default_factory=dict)
    tiers: tuple[Tier, ...] = ()


class ModelList(BaseModel):
    """Every model, local ones first."""

    object: str = "list"
    data: list[ModelCard]


@router.get("")
async def list_models(context: Context) -> ModelList:
    """List the models that a chat completion may name, with their attestations."""
    return ModelList(data=_cards(context))


@router.get("/{model_id:path}")
async def get_model(model_id: str, context: Context) -> ModelCard:
    """Return one model."""
    cards = {card.id: card for card in _cards(context)}
    if model_id not in cards:
        raise UnknownModel(
            f"no model {model_id!r}", field="model", fix="use one of: " + ", ".join(cards)
        )
    return cards[model_id]


def _cards(context: GatewayContext) -> list[ModelCard]:
    local = [_local(context, model_id) for model_id in context.models.ids]
    tasks = [
        ModelCard(
            id=TASK_PREFIX + name,
            kind="task",
            state=_task_state(bound.grant),
            attestation=bound.grant.attestation,
        )
        for name, bound in sorted(context.tasks.items())
    ]
    return [*local, ModelCard(id=AUTO, kind="router", state="ready"), *tasks, *_frontier(context)]


def _local(context: GatewayContext, model_id: str) -> ModelCard:
    engine = context.engines.get(model_id)
    info = engine.health.info if engine is not None else None
    return ModelCard(
        id=model_id,
        kind="local",
        state=context.models.state(model_id),
        max_model_len=info.max_model_len if info else None,
        attestation=info.attestation if info else None,
        tasks=context.tasks_of(model_id),
    )


def _task_state(grant: Grant) -> str:
    match grant.refusal:
        case None:
            return "served"
        case ModelPreparing():
            return "preparing"
        case _:
            return "refused"


def _frontier(context: GatewayContext) -> list[ModelCard]:
    tiers: dict[str, list[Tier]] = {}
    for tier, targets in context.path.policy.tiers.items():
        for target in targets:
            tiers.setdefault(target, []).append(tier)
    configured = context.frontier.configured(tuple(tiers))
    return [
        ModelCard(
            id=target,
            owned_by=target.partition("/")[0],
            kind="frontier",
            state="ready" if target in configured else "no_key",
            tiers=tuple(found),
        )
        for target, found in tiers.items()
    ]
