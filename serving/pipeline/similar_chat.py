"""Looks chats up by meaning: what may be found, under which claim, and what is then compared."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import uuid4

from cachetools import LRUCache

from serving.cache.eligible import ineligible_chat
from serving.cache.entry import Entry, Question
from serving.cache.key import normalised
from serving.cache.semantic import THRESHOLDS, CachedAnswer, Served, is_refinement
from serving.cache.similar import (
    SimilarEntries,
    SimilarEvents,
    SimilarFound,
    SimilarMatch,
    SimilarOutcome,
)
from serving.contracts.answer import CacheHit, CacheKind, Route
from serving.contracts.context import RequestContext
from serving.contracts.errors import LedgerUnavailable, NarrowgateError
from serving.contracts.evidence import NO_GUARANTEE, Guarantee
from serving.contracts.requests import TASK_PREFIX, ChatRequest
from serving.evidence.pacing import coin
from serving.evidence.rulings import Evidence, Ruling
from serving.pipeline.auditor import Embed
from serving.pipeline.cache_access import CacheAccess
from serving.pipeline.exit_recorder import RequestRecord
from serving.pipeline.hit_auditor import Fresh, FreshAnswer, HitAuditor, ObservedHit

_EMBEDDING_TIMEOUT_S = 2.0
_AUDITED_SHARE = 0.05
"""Least share of hits under a held claim that are audited."""
_MOST_REMEMBERED = 10_000
_LONGEST_REMEMBERED = 100_000
"""Characters of a conversation in which a refinement is looked for."""


@dataclass(frozen=True, slots=True)
class Similar:
    """What a lookup by meaning found for one chat.

    question: stored with its answer; None where it may not be found by meaning. hit: what was
    found. serves: the client gets it. observed: what is to be compared with a fresh answer; None
    where nothing is.
    """

    question: Question | None = None
    hit: SimilarMatch | None = None
    serves: bool = False
    observed: ObservedHit | None = None
    ruling: Ruling | None = None

    @property
    def guarantee(self) -> Guarantee:
        """Return what is known of the error of such hits; nothing without a claim."""
        return NO_GUARANTEE if self.ruling is None else self.ruling.standing.guarantee


NOTHING = Similar()


@dataclass(frozen=True, slots=True)
class _Recent:
    """An answer that a client got. entry: None where the key alone names it.

    observed: of a hit by meaning under a claim, without its answer.
    """

    served: Served
    route: Route
    kind: str
    entry: str | None
    observed: "_Observed | None" = None


@dataclass(frozen=True, slots=True)
class _Observed:
    """A served hit. is_audited: the coin chose it, so that it is not audited again."""

    similarity: float
    kind: CacheKind
    ruling: Ruling
    input: str
    is_audited: bool


class SimilarChats:
    """The semantic step of chats. evidence, auditor: None where there are no claims.

    versions: of encoder and guards, by name; claims are about them.
    """

    def __init__(
        self,
        access: CacheAccess,
        entries: SimilarEntries,
        events: SimilarEvents,
        embed: Embed,
        versions: tuple[str, str],
        evidence: Evidence | None = None,
        auditor: HitAuditor | None = None,
    ) -> None:
        self._access = access
        self.entries = entries
        self._events = events
        self._embed = embed
        self._versions = versions
        self._evidence = evidence
        self._auditor = auditor
        self._shortcuts: dict[str, CachedAnswer] = {}
        self._recent: LRUCache[str, _Recent] = LRUCache(_MOST_REMEMBERED)
        self._changes: set[asyncio.Task[None]] = set()

    async def look(self, request: ChatRequest, key: str, record: RequestRecord) -> Similar:
        """Return what was found after an exact miss. key: of the request. Never raises."""
        context = record.context
        if not self._is_on(request, context):
            return NOTHING
        reason = ineligible_chat(request.messages, request.fields)
        if reason is not None:
            self._events.similar_ineligible(reason)
            return NOTHING
        started_s = time.monotonic()
        question = await self._question(request, record)
        if question is None:
            self._events.similar_looked_up("unavailable", time.monotonic() - started_s)
            return NOTHING
        if context.options.cache == "refresh":
            return Similar(question)
        found = await self.entries.find(
            key,
            self._access.namespace(context),
            question,
            THRESHOLDS[self._access.cache.settings.semantic_threshold],
            lambda entry: self._is_servable(entry, context),
        )
        seconds = time.monotonic() - started_s
        similar = self._ruled(found, question, key, context)
        self._events.similar_looked_up(_outcome(found, similar), seconds)
        for guard in () if found is None else found.refusals:
            self._events.similar_refused(guard)
        record.looked_up(seconds + (record.inputs[0].lookup_s or 0.0))
        return similar

    def served(self, similar: Similar, ask: Fresh) -> None:
        """Note that a hit was served: it is audited where its coin says so."""
        if similar.observed is not None and self._auditor is not None:
            self._auditor.served(similar.observed, ask)

    def answered(self, similar: Similar, fresh: FreshAnswer, ask: Fresh) -> None:
        """Compare a hit that was not served with the model's answer."""
        if similar.observed is not None and self._auditor is not None:
            self._auditor.shadowed(similar.observed, fresh, ask)

    def follow(
        self, request: ChatRequest, record: RequestRecord, fresh: Callable[[ChatRequest], Fresh]
    ) -> None:
        """Note where a chat repeats or corrects the question of an answer just before.

        Answers are remembered in this replica alone. What is refined is put aside at once; a hit
        under a claim is audited, and counts against the claim where it is found wrong.
        fresh: asks a model about a request.
        """
        context = record.context
        window_s = self._access.cache.settings.refinement_window_s
        turns = request.messages
        roles = [message.role for message in turns[-3:]]
        is_short = request.text_chars <= _LONGEST_REMEMBERED
        if not window_s or roles != ["user", "assistant", "user"] or not is_short:
            return
        refined = replace(request, messages=turns[:-2], stream=False)
        before = self._recent.get(self._access.key_of(refined, context))
        if before is None:
            return
        now = self._access.cache.now()
        if not is_refinement(before.served, turns[-1].text, now, timedelta(seconds=window_s)):
            return
        for item in record.inputs:
            item.refined_route = before.route
        self._events.answer_refined(before.route, before.kind)
        task = asyncio.create_task(self._refined(before, context, fresh(refined)))
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)

    async def _refined(self, before: _Recent, context: RequestContext, ask: Fresh) -> None:
        await self._put_aside(before)
        observed, entry = before.observed, before.entry
        if observed is None or entry is None or self._auditor is None or observed.is_audited:
            return
        asked = await self.entries.asked(entry)
        # The follow-up may have taken its consent back.
        if asked is None or not self._may_send(context):
            return
        evidence = self._evidence
        assert evidence is not None
        match = SimilarMatch(asked.entry, asked.question, observed.similarity, observed.kind)
        one = ObservedHit(
            match,
            before.served.conversation,
            before.served.question,
            context,
            observed.ruling,
            coin=False,
            input=observed.input,
            drawn_at=evidence.now(),
            is_affordable=evidence.is_affordable(),
            is_suspected=True,
        )
        self._auditor.refined(one, ask)

    async def _put_aside(self, before: _Recent) -> None:
        cache, key = self._access.cache, before.served.conversation
        cache.flights.retire_key(key)
        await cache.written()
        await self.entries.set_aside("refinement", before.entry, key)

    def remember(
        self,
        request: ChatRequest,
        key: str,
        route: Route,
        hit: CacheHit | None,
        similar: Similar,
    ) -> None:
        """Remember an answer, so that a follow-up to it is recognised."""
        if not self._access.cache.settings.refinement_window_s:
            return
        kind, entry = ("none", None) if hit is None else (hit.kind, hit.entry)
        served = Served(entry or "", request.messages[-1].text, self._access.cache.now(), key)
        found, observed = similar.observed, None
        if similar.serves and found is not None:
            observed = _Observed(
                found.match.similarity, found.match.kind, found.ruling, found.input, found.coin
            )
        self._recent[key] = _Recent(served, route, kind, entry, observed)

    def _is_on(self, request: ChatRequest, context: RequestContext) -> bool:
        options, setting = context.options, self._access.cache.settings.semantic
        if setting == "off" or options.deterministic or request.choices != 1:
            return False
        if request.model.startswith(TASK_PREFIX):
            return False
        if not self._has_reference:
            return setting == "on"
        assert self._evidence is not None
        # Elsewhere no claim could be earned or watched, and the answer must not reach the judge
        # with a later question either.
        return options.route == "auto" and self._may_send(context)

    def _may_send(self, context: RequestContext) -> bool:
        assert self._evidence is not None
        try:
            return self._evidence.may_send(context)
        except LedgerUnavailable:
            return False

    @property
    def _has_reference(self) -> bool:
        return self._evidence is not None and self._evidence.reference is not None

    async def _question(self, request: ChatRequest, record: RequestRecord) -> Question | None:
        text = normalised(request.messages[-1].text)
        try:
            async with asyncio.timeout(_EMBEDDING_TIMEOUT_S):
                vector = await self._embed(text)
        except (NarrowgateError, TimeoutError):
            return None
        # The router needs the same vector. It is the request's own: a memory that tenants share
        # would tell by its time what others ask.
        record.vectors[text] = vector
        fingerprint = self._access.fingerprint(request, record.context)
        # Vectors of another encoder are not comparable.
        place = hashlib.sha256(f"{fingerprint}:{self._versions[0]}".encode()).hexdigest()
        return Question(place, text, vector)

    def _is_servable(self, entry: Entry, context: RequestContext) -> bool:
        # A task's answer is under the task's claim and found by its key alone.
        return entry.origin.task is None and self._access.is_servable(entry, context)

    def _ruled(
        self, found: SimilarFound | None, question: Question, key: str, context: RequestContext
    ) -> Similar:
        match = None if found is None else found.match or found.aside
        if found is None or match is None:
            return Similar(question)
        is_suspected = found.match is None
        if not self._has_reference:
            return Similar(question, match, serves=not is_suspected)
        evidence = self._evidence
        assert evidence is not None
        try:
            ruling = evidence.ruling(self._shortcut(match.entry), context)
        except LedgerUnavailable:
            return Similar(question)
        standing = ruling.standing
        if standing.mode not in ("claim", "shadow") or ruling.reference is None:
            return Similar(question)
        serves = standing.mode == "claim" and not is_suspected
        if serves:
            assert standing.action is not None
            is_near = match.similarity >= standing.action.threshold
            serves = is_near and not evidence.always_escalates(ruling.name, question.text)
            if not serves:
                return Similar(question)
            ruling = replace(ruling, rate=max(ruling.rate, _AUDITED_SHARE))
        observed = ObservedHit(
            match,
            key,
            question.text,
            context,
            ruling,
            coin(ruling.rate),
            uuid4().hex,
            evidence.now(),
            evidence.is_affordable() if serves else evidence.may_judge(),
            is_suspected,
        )
        return Similar(question, match, serves, observed, ruling)

    def _shortcut(self, entry: Entry) -> CachedAnswer:
        subject = f"chat/{entry.origin.route}"
        known = self._shortcuts.get(subject)
        if known is None:
            # One object a subject: evidence keeps what it knows of it.
            threshold = THRESHOLDS[self._access.cache.settings.semantic_threshold]
            known = CachedAnswer(subject, self._versions[0], threshold, self._versions[1])
            self._shortcuts[subject] = known
        return known


def _outcome(found: SimilarFound | None, similar: Similar) -> SimilarOutcome:
    if found is None:
        return "unavailable"
    if found.is_loading:
        return "loading"
    if similar.hit is not None:
        return "hit" if similar.serves else "shadow"
    return "refused" if found.refusals else "miss"
