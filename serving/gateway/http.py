"""The ASGI application."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from serving.contracts.errors import NarrowgateError
from serving.gateway import (
    batches_api,
    cache_api,
    errors,
    evidence_api,
    files_api,
    health_api,
    messages_batches_api,
    models_api,
    openai_api,
    report_api,
    tasks_api,
)
from serving.gateway.context import GatewayContext
from serving.gateway.http_protocol import change_http_protocol
from serving.gateway.log_heartbeat import LogHeartbeat
from serving.gateway.messages_errors import MessagesErrors
from serving.gateway.middleware import (
    BodyLimit,
    HeadAsGet,
    InternalErrors,
    PlainAddress,
    RequestScope,
)
from serving.gateway.page_origin import OwnPages
from serving.local.metrics_server import metrics_served

PARTS = (
    tasks_api, openai_api, models_api, health_api, report_api, evidence_api, cache_api, files_api,
    batches_api, messages_batches_api,
)  # fmt: skip
_FIRST_READ_S = 2.0
_FORM_BYTES = 65_536
"""Of a form beside its file."""


def build_http(context: GatewayContext) -> FastAPI:
    """Return the application; its lifespan runs the ledger and the watches."""
    change_http_protocol()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Rows and decisions are flushed whatever else fails at the end: Serve stops a replica
        # without calling `drain`, and only this runs.
        async with AsyncExitStack() as closing:
            closing.push_async_callback(asyncio.to_thread, context.decisions.close)
            closing.push_async_callback(context.ledger.aclose)
            closing.callback(context.reports.close)
            closing.push_async_callback(context.frontier.aclose)
            closing.enter_context(metrics_served(context.metrics_port, context.metrics.registry))
            await context.ledger.start()
            # A key is known from the first request on, where the database answers.
            with suppress(TimeoutError):
                # Not wait_for, which in Python 3.11 can swallow a cancellation.
                async with asyncio.timeout(_FIRST_READ_S):
                    await context.access.directory.refresh()
            if context.cache is not None:
                await context.cache.start()
            if context.batches is not None:
                await context.batches.start()
            if context.lengths is not None:
                await context.lengths.start()
                closing.push_async_callback(context.lengths.flush)
            await closing.enter_async_context(context.background.running(_watches(context)))
            yield

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
            Middleware(MessagesErrors),
            Middleware(InternalErrors),
            Middleware(PlainAddress),
            *_cross_origin(context.settings.cors_origins),
            *_own_pages(context),
            *context.access.middleware(),
            Middleware(
                BodyLimit,
                max_body_bytes=context.settings.max_body_bytes,
                timeout_s=context.settings.body_timeout_s,
                others=_uploads(context),
            ),
        ],
        exception_handlers={
            NarrowgateError: errors.on_narrowgate_error,
            RequestValidationError: errors.on_validation_error,
            HTTPException: errors.on_http_exception,
        },
    )
    app.state.context = context
    return app


def _watches(context: GatewayContext) -> dict[str, Coroutine[None, None, None]]:
    """Return what runs beside the requests, by name for logs."""
    watches: dict[str, Coroutine[None, None, None]] = {
        "models": context.models.watch(),
        "access": context.access.directory.watch(),
        "log": LogHeartbeat(context.metrics.log_heartbeat.set).watch(),
    }
    if context.evidence is not None:
        watches["evidence"] = context.evidence.watch()
    if context.retention is not None:
        watches["retention"] = context.retention.watch()
    if context.cache is not None:
        watches["cache"] = context.cache.watch()
    if context.path.similar is not None:
        watches["similar"] = context.path.similar.entries.watch()
    if context.lengths is not None:
        watches["bounds"] = context.lengths.watch()
    if context.batches is not None:
        watches["batches"] = context.batches.watch()
    return watches


def _own_pages(context: GatewayContext) -> list[Middleware]:
    """Return what keeps other sites' pages out; with keys they have none to send."""
    if context.access.enforced:
        return []
    return [Middleware(OwnPages, origins=context.settings.cors_origins)]


def _uploads(context: GatewayContext) -> dict[str, tuple[int, float]]:
    """Return the limits of uploads, by path."""
    if context.batches is None:
        return {}
    batch = context.batch
    limits = (batch.max_file_bytes + _FORM_BYTES, batch.upload_timeout_s)
    return {files_api.PATH: limits, messages_batches_api.PATH: limits}


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
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    ]
