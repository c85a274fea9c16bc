"""Decides about a chat that names no model: its task, or the tier that answers it."""

import asyncio
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from serving.contracts.errors import NarrowgateError
from serving.contracts.requests import ChatRequest
from serving.contracts.routing import Decision, KnownVector, Router, Tier, Vectors
from serving.contracts.routing_settings import ComplexityThresholds, RoutingSettings
from serving.contracts.task_spec import TaskSpec
from serving.embedding.embedder import Embedder, Vector
from serving.routing.conversation import SEARCHED_CHARS, ChatForm, is_longer, read
from serving.routing.features import lexical_features
from serving.routing.heads import MODEL_FILE, RouterModel, load_model
from serving.routing.narrow import Detection, NarrowDetector, nothing_known
from serving.tasks.blank_text import is_blank

# After this time the rule decides, because a late answer costs more than a less exact decision.
EMBEDDING_TIMEOUT_S = 2.0

_SHORT_WORDS = 6
_LONG_CHARS = 6000
_HARD = re.compile(
    r"\b(?:prove|proof|theorem|derive|lemma|refactor|debug|concurren\w+|implement|optimi[sz]e|"
    r"beweise?n?|démontre\w*|demuestra)\b",
    re.IGNORECASE,
)


class Observer(Protocol):
    """Counts decisions that had to be made without vectors."""

    def router_failed(self, reason: str) -> None:
        """Count a decision by rule. reason: the code of the error for which there is no vector."""
        ...


class LearnedRouter:
    """Implements Router with rules, a learned head for tasks and one for complexity.

    Where the embedder fails or takes too long, the request is not narrow, its tier follows from a
    rule, and `observer` is called. A request never fails because of the router.
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

    async def vectors(self, request: ChatRequest, known: KnownVector | None = None) -> Vectors:
        """Return the vectors that `decide` needs. Never raises: see Vectors.failure.

        known: of texts that were embedded before.
        """
        reading, earlier = self._read(request), known or nothing_known
        try:
            async with asyncio.timeout(EMBEDDING_TIMEOUT_S):
                found: dict[str, Vector] = {}
                if reading.obstacle is None:
                    found = await self._detector.vectors(reading.prompt, earlier)
                text = reading.prompt.text
                if self._scores(reading) and text not in found:
                    vector = earlier(text)
                    found[text] = await self._embedder.embed(text) if vector is None else vector
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

    def _read(self, request: ChatRequest) -> ChatForm:
        return read(request, self._settings.narrow_max_chars)

    def _scores(self, reading: ChatForm) -> bool:
        # A score that is not trusted decides nothing; for a long prompt it would take 30 ms.
        return self._complexity.trusted and not is_blank(reading.prompt.text)

    def _tier(self, reading: ChatForm, vectors: Vectors) -> tuple[float | None, Tier]:
        if not self._scores(reading):
            return None, tier_by_rule(reading)
        text = reading.prompt.text
        score = self._complexity.score(vectors.by_text[text], lexical_features(text))
        return score, tier_of_score(score, self._settings.complexity)


def build_router(
    settings: RoutingSettings,
    specs: Mapping[str, TaskSpec],
    embedder: Embedder,
    observer: Observer,
) -> Router:
    """Return a router with the shipped or the configured model. Reads a file, blocking.

    Raises InvalidSettings where the model cannot be read.
    """
    return LearnedRouter(settings, load_model(settings.model), specs, embedder, observer)


def reader_digest(settings: RoutingSettings) -> str:
    """Return the digest of all that decides which chats are read as a task, but for the tasks.

    That is the router's model, two settings, and this package's files: the rules are code, so that
    a new release with other code reads otherwise, until audits show that it does not. Reads files,
    blocking.
    """
    folder = Path(__file__).parent
    files = [path for path in folder.rglob("*") if path.suffix in _READING_FILES]
    total = hashlib.sha256()
    for path in sorted(path for path in files if path.parent.name != "evaluation"):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(folder)}:{content}\n".encode())
    if settings.model is not None:
        total.update((settings.model / MODEL_FILE).read_bytes())
    total.update(f"{settings.narrow_certainty} {settings.narrow_max_chars}".encode())
    return total.hexdigest()[:16]


_READING_FILES = frozenset({".py", ".yaml", ".json", ".jsonl", ".txt"})


def tier_of_score(score: float, thresholds: ComplexityThresholds) -> Tier:
    """Return the tier of a complexity score: the higher one within the margin below a threshold."""
    if score + thresholds.margin < thresholds.low:
        return "economy"
    if score + thresholds.margin < thresholds.medium:
        return "standard"
    return "frontier"


def tier_by_rule(reading: ChatForm) -> Tier:
    """Return the tier of a request without a trusted score.

    `economy`: one turn of at most six words that asks for text. `frontier`: code, proofs and
    prompts of more than 6,000 characters, a run of white space counted as one. `standard`: all
    others.
    """
    prompt = reading.prompt
    if (
        reading.has_code
        or is_longer(prompt.text, _LONG_CHARS)
        or _HARD.search(prompt.user, 0, SEARCHED_CHARS)
    ):
        return "frontier"
    is_short = len(prompt.user.split(maxsplit=_SHORT_WORDS)) <= _SHORT_WORDS and not prompt.system
    return "economy" if is_short and reading.turns == 1 and not reading.wants_more else "standard"
