"""Decides about a chat request: a narrow task, or how dear a model it needs."""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from serving.contracts.errors import NarrowgateError
from serving.contracts.requests import ChatRequest
from serving.contracts.routing import Decision, Tier, Vectors
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

    async def vectors(self, request: ChatRequest) -> Vectors:
        """Return the vectors that `decide` needs. Never raises: see Vectors.failure."""
        reading = self._read(request)
        try:
            async with asyncio.timeout(EMBEDDING_TIMEOUT_S):
                found = {} if reading.obstacle else await self._detector.vectors(reading.prompt)
                text = reading.prompt.text
                if self._scores(reading) and text not in found:
                    found[text] = await self._embedder.embed(text)
        except (TimeoutError, NarrowgateError) as error:
            code = error.code if isinstance(error, NarrowgateError) else "timeout"
            self._observer.router_failed(code)
            return Vectors(failure=code)
        return Vectors(found)

    def decide(self, request: ChatRequest, vectors: Vectors) -> Decision:
        """Return the decision about a chat. Pure; does not wait."""
        reading = self._read(request)
        if vectors.failure is not None:
            because = f"rule: no vector ({vectors.failure})"
            return Decision(None, 1.0, None, tier_by_rule(reading), because)
        if reading.obstacle is not None:
            detection = Detection(None, 1.0, f"rule: {reading.obstacle}")
        else:
            detection = self._detector.detect(reading.prompt, vectors.by_text)
        if detection.request is not None:
            return Decision(
                detection.request,
                detection.certainty,
                None,
                self._settings.task_tier,
                detection.because,
                detection.labels,
            )
        score, tier = self._tier(reading, vectors)
        return Decision(None, detection.certainty, score, tier, detection.because)

    def _read(self, request: ChatRequest) -> Reading:
        return read(request.provider_body(), self._settings.narrow_max_chars)

    def _scores(self, reading: Reading) -> bool:
        # A score that decides nothing would cost a long prompt 30 ms.
        return self._complexity.trusted and bool(reading.prompt.text.strip())

    def _tier(self, reading: Reading, vectors: Vectors) -> tuple[float | None, Tier]:
        if not self._scores(reading):
            return None, tier_by_rule(reading)
        text = reading.prompt.text
        score = self._complexity.score(vectors.by_text[text], lexical_features(text))
        return score, tier_of_score(score, self._settings.complexity)
