"""Decides about a chat request: a narrow task, or how dear a model it needs."""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from serving.contracts.errors import NarrowgateError
from serving.contracts.frontier import Tier
from serving.contracts.routing import Decision
from serving.contracts.routing_settings import RoutingSettings
from serving.contracts.task_spec import TaskSpec
from serving.embedding.embedder import Embedder
from serving.routing.conversation import Reading, read
from serving.routing.features import lexical_features
from serving.routing.heads import RouterModel
from serving.routing.narrow import Detection, NarrowDetector
from serving.routing.tiers import tier_by_rule, tier_of_score

# A decision waits no longer for vectors: by then any answer is worth more than a better one.
EMBEDDING_TIMEOUT_S = 2.0


class Observer(Protocol):
    """Counts what went wrong without failing a request."""

    def router_failed(self, reason: str) -> None:
        """A decision was made by rule because there was no vector. reason: an error's code."""
        ...


class LearnedRouter:
    """Rules, a learned head for tasks and one for complexity.

    Where no vector is to be had in time the request is not narrow and its tier comes from a simple
    rule; `observer` is told. Deciding never fails for lack of the embedder.
    """

    def __init__(
        self,
        settings: RoutingSettings,
        model: RouterModel,
        specs: Mapping[str, TaskSpec],
        embedder: Embedder,
        observer: Observer,
    ) -> None:
        self._settings = settings
        self._complexity = model.complexity
        self._embedder = embedder
        self._observer = observer
        self._detector = NarrowDetector(model, specs, embedder, settings.narrow_certainty)

    async def decide(self, body: Mapping[str, Any]) -> Decision:
        """Return the way of a chat request. body: fields of OpenAI's chat completions."""
        reading = read(body, self._settings.narrow_max_chars)
        try:
            async with asyncio.timeout(EMBEDDING_TIMEOUT_S):
                return await self._decide(reading)
        except (TimeoutError, NarrowgateError) as error:
            code = error.code if isinstance(error, NarrowgateError) else "timeout"
            self._observer.router_failed(code)
            return Decision(None, 1.0, None, tier_by_rule(reading), f"rule: no vector ({code})")

    async def _decide(self, reading: Reading) -> Decision:
        detection = await self._detect(reading)
        if detection.request is not None:
            return Decision(
                detection.request,
                detection.certainty,
                None,
                self._settings.task_tier,
                detection.because,
                detection.labels,
            )
        score, tier = await self._tier(reading)
        return Decision(None, detection.certainty, score, tier, detection.because)

    async def _detect(self, reading: Reading) -> Detection:
        if reading.obstacle is not None:
            return Detection(None, 1.0, f"rule: {reading.obstacle}")
        return await self._detector.detect(reading.prompt)

    async def _tier(self, reading: Reading) -> tuple[float | None, Tier]:
        text = reading.prompt.text
        # A score that decides nothing would cost a long prompt 30 ms.
        if not self._complexity.trusted or not text.strip():
            return None, tier_by_rule(reading)
        vector = await self._embedder.embed(text)
        score = self._complexity.score(vector, lexical_features(text))
        return score, tier_of_score(score, self._settings.complexity)
