"""/healthz, /readyz and /metrics."""

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from serving.contracts.errors import NarrowgateError
from serving.gateway.context import Context

router = APIRouter(tags=["operations"])

_SCRAPE_TIMEOUT_S = 2.0
_EXPOSITION_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/healthz")
async def healthz(context: Context) -> dict[str, str]:
    """Return 200: this replica answers, and its background tasks run."""
    context.background.check()
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(context: Context) -> Response:
    """Return 200 where every model serves or has failed, else 503 with the state of each."""
    models: dict[str, Any] = {}
    for model_id in context.models.ids:
        engine = context.engines.get(model_id)
        info = engine.health.info if engine is not None else None
        waiting = context.models.status(model_id)
        models[model_id] = {
            "state": context.models.state(model_id),
            "progress": asdict(waiting.progress) if waiting and waiting.progress else None,
            "reason": waiting.reason if waiting else None,
            "engine": f"{info.engine} {info.engine_version}" if info else None,
            "max_model_len": info.max_model_len if info else None,
            "quantization": info.quantization if info else None,
            "dtype": info.dtype if info else None,
            "attestation": info.attestation if info else None,
            "tasks": {
                name: state.model_dump(mode="json")
                for name, state in context.tasks_of(model_id).items()
            },
        }
    ready = not context.local_admission.draining and all(
        model["state"] in ("ready", "failed") for model in models.values()
    )
    status = "draining" if context.local_admission.draining else "ready" if ready else "not_ready"
    headers = {} if ready else {"retry-after": "5"}
    enforced = "not enforced (development)" if context.development else "enforced"
    # Not part of `ready`: narrow requests are answered without the ledger's database.
    document = {
        "status": status,
        "attestation": enforced,
        "ledger": context.ledger.state,
        "models": models,
    }
    return JSONResponse(document, 200 if ready else 503, headers)


@router.get("/metrics")
async def metrics(context: Context) -> Response:
    """Return this gateway replica's metrics, and those of one replica of each engine."""
    limits = {"local": context.local_admission, "frontier": context.frontier_admission}
    for name, limit in limits.items():
        context.metrics.active.labels(name).set(limit.active)
        context.metrics.queued.labels(f"admission:{name}").set(limit.queued)
    for model_id in context.models.ids:
        context.metrics.ready.labels(model_id).set(context.models.state(model_id) == "ready")
    for model_id, engine in context.engines.items():
        context.metrics.queued.labels(f"scoring:{model_id}").set(engine.queue_depth)
    texts = await asyncio.gather(*(_engine_metrics(context, name) for name in context.engines))
    engines = {name: text for name, text in zip(context.engines, texts, strict=True) if text}
    return Response(context.metrics.exposition(engines), media_type=_EXPOSITION_TYPE)


async def _engine_metrics(context: Context, model_id: str) -> str | None:
    engine = context.engines[model_id]
    if engine.health.state != "ready":
        return None
    try:
        return await engine.metrics(_SCRAPE_TIMEOUT_S)
    except NarrowgateError:
        # Metrics are optional: a scrape without the engine's is better than none.
        context.metrics.scrape_failed(model_id)
        return None
