"""Builds the router and its log from settings."""

from collections.abc import Mapping
from typing import Protocol

from serving.contracts.routing import DecisionLog, Router
from serving.contracts.routing_settings import RoutingSettings
from serving.contracts.task_spec import TaskSpec
from serving.embedding.embedder import Embedder
from serving.routing import decision_log, router
from serving.routing.heads import load_model


class Observer(router.Observer, decision_log.Observer, Protocol):
    """What both report to."""


def build_router(
    settings: RoutingSettings,
    specs: Mapping[str, TaskSpec],
    embedder: Embedder,
    observer: router.Observer,
) -> Router:
    """Return the router on the shipped or the configured model. Reads a file, blocking.

    Raises InvalidSettings where the model cannot be read.
    """
    model = load_model(settings.model)
    return router.LearnedRouter(settings, model, specs, embedder, observer)


def build_decision_log(settings: RoutingSettings, observer: decision_log.Observer) -> DecisionLog:
    """Return the log in the configured file, or one that keeps nothing."""
    if settings.decisions_log is None:
        return decision_log.NoLog()
    return decision_log.FileLog(settings.decisions_log, observer)
