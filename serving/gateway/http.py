"""The ASGI application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from serving.contracts.errors import NarrowgateError
from serving.gateway import (
    errors,
    evidence_api,
    health_api,
    models_api,
    openai_api,
    report_api,
    tasks_api,
)
from serving.gateway.context import GatewayContext
from serving.gateway.log_heartbeat import LogHeartbeat
from serving.gateway.middleware import BodyLimit, HeadAsGet, RequestScope

PARTS = (tasks_api, openai_api, models_api, health_api, report_api, evidence_api)


def build_http(context: GatewayContext) -> FastAPI:
    """Return the application; its lifespan runs the ledger and watches engines and tenants."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await context.ledger.start()
        watches = {
            "models": context.models.watch(),
            "access": context.access.directory.watch(),
            "log": LogHeartbeat(context.metrics.log_heartbeat.set).watch(),
        }
        if context.evidence is not None:
            watches["evidence"] = context.evidence.watch()
        async with context.background.running(watches):
            yield
        await context.frontier.aclose()
        context.reports.close()
        await context.ledger.aclose()
        await asyncio.to_thread(context.decisions.close)

    app = FastAPI(
        title="narrowgate",
        summary="Narrow NLP tasks on local models",
        lifespan=lifespan,
        # The routes as they are: `include_router` would build each of them again.
        routes=[route for part in PARTS for route in part.router.routes],
        # A slash at the end of a path is removed before routing: clients do not follow a redirected
        # POST.
        redirect_slashes=False,
        middleware=[
            Middleware(
                RequestScope,
                finished=context.metrics.http_finished,
                development=context.development,
            ),
            Middleware(HeadAsGet),
            *_cross_origin(context.settings.cors_origins),
            *context.access.middleware(),
            Middleware(
                BodyLimit,
                max_body_bytes=context.settings.max_body_bytes,
                timeout_s=context.settings.body_timeout_s,
            ),
        ],
        exception_handlers={
            NarrowgateError: errors.on_narrowgate_error,
            RequestValidationError: errors.on_validation_error,
            HTTPException: errors.on_http_exception,
            Exception: errors.on_unexpected_error,
        },
    )
    app.state.context = context
    return app


def _cross_origin(origins: tuple[str, ...]) -> list[Middleware]:
    """Return the CORS middleware; none unless origins are set.

    Before authentication: a browser's preflight request carries no key. Credentials are never
    allowed: keys are sent in headers.
    """
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    ]
