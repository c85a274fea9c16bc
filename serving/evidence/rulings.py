"""Rules on each request to a task: its claim, standing, reference and coins, from memory alone."""

import hmac
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from uuid import uuid4

from serving.contracts.context import RequestContext
from serving.contracts.evidence import (
    BASELINE_PREFIX,
    PEOPLE,
    Claim,
    ClaimState,
    Scope,
    Shortcut,
    ShortcutName,
    claim_id,
)
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.ledger import Caller, Tenant
from serving.contracts.routing import RequestOptions
from serving.contracts.task_spec import TaskSpec
from serving.evidence.candidates import AttestedModel, CandidateModel
from serving.evidence.consent import consent_of
from serving.evidence.drift_watch import DriftWatch
from serving.evidence.fold import rules_version
from serving.evidence.pacing import (
    DeferredCost,
    Spent,
    audit_rate,
    has_room,
    is_affordable,
    shadow_rate,
)
from serving.evidence.shortcuts import (
    Judging,
    LocalTask,
    NarrowReading,
    ReadingRules,
    permitted,
)
from serving.evidence.snapshot import ClaimSnapshot
from serving.evidence.standing import Situation, Standing, standing_of
from serving.evidence.store import Definition
from serving.tasks.fingerprint import text_digest
from serving.tasks.grant import Grant

_MAX_DEFINITIONS = 10_000

_ENDED = (ClaimState.SUSPENDED, ClaimState.WITHDRAWN)


@dataclass(frozen=True, slots=True)
class BaselineClaim:
    """The claim against the 16-bit baseline, beside that against a provider's model.

    rate: probability of its coin.
    """

    claim: str
    reference: str
    rate: float


@dataclass(frozen=True, slots=True)
class Ruling:
    """How one request is served, and how its inputs become evidence.

    name: the claim's id. reference: the model that judges, `baseline/ID` for a local one, or None.
    rate: probability of the coin of each input. group: that of all its inputs. baseline: the claim
    under which the 16-bit baseline is asked, too; None where it is the reference or not configured.
    """

    standing: Standing
    name: str
    reference: str | None
    rate: float
    group: str
    baseline: BaselineClaim | None = None


@dataclass(slots=True)
class LocalCounts:
    """What this process counts beside the claims. spent: as last read from the database.

    deferred: audits deferred here that spent_today may lack; it includes earlier ones.
    judged_today: what comparing in shadow cost all replicas today, as last read. judged_here: what
    it cost this process on a day. accepted: inputs that took the shortcut since the claim's last
    row. dropped: audits not made, by claim. unread: answers of the reference that are no evidence,
    by claim.
    """

    spent_today: Spent = field(default_factory=Spent)
    deferred: DeferredCost = field(default_factory=DeferredCost)
    judged_today: Decimal = Decimal(0)
    judged_here: tuple[date, Decimal] = (date.min, Decimal(0))
    shadow_spent: Mapping[str, Spent] = field(default_factory=dict)
    accepted: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)

    def judged(self, day: date, usd: Decimal) -> None:
        """Count what comparing a hit in shadow cost."""
        known, before = self.judged_here
        self.judged_here = (day, usd + (before if known == day else Decimal(0)))

    def judged_usd(self, day: date) -> Decimal:
        """Return what comparing in shadow cost today, as far as this process knows."""
        known, here = self.judged_here
        return max(self.judged_today, here if known == day else Decimal(0))

    def take_accepted(self, name: str) -> int:
        """Return the accepted inputs to be written with the next row, and count anew."""
        return self.accepted.pop(name, 0)


@dataclass(frozen=True, slots=True)
class _Known:
    """A claim's definition as it was made. shortcut: kept, so that its id is not used again."""

    shortcut: Shortcut
    definition: Definition


class Evidence:
    """Rules on requests. One for a process; no method waits.

    reference: `provider/model` that judges, None without a key. tenant_of: returns a tenant with
    its flags. opened: called once with a claim that was never seen here. key: digests texts.
    drift: compares traffic with that which earned its claim. deferred: as the appender counts them.
    judging: of shortcuts with a judged loss, by name.
    """

    def __init__(
        self,
        settings: EvidenceSettings,
        snapshot: ClaimSnapshot,
        reference: str | None,
        tenant_of: Callable[[str], Tenant],
        opened: Callable[[Definition], None],
        key: bytes,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        drift: DriftWatch | None = None,
        deferred: DeferredCost | None = None,
    ) -> None:
        self.drift = drift or DriftWatch(now)
        self.judging: Mapping[ShortcutName, Judging] = {}
        self.settings = settings
        self.snapshot = snapshot
        self.reference = reference
        self.counts = LocalCounts(deferred=deferred or DeferredCost())
        self._tenant_of = tenant_of
        self._opened = opened
        self._key = key
        self._now = now
        self._rules = rules_version(settings)
        self._digests: dict[str, tuple[TaskSpec, str]] = {}
        self._scopes: dict[str, Scope] = {}
        self._local_tasks: dict[tuple[str, str], LocalTask] = {}
        self._readings: dict[str, NarrowReading] = {}
        self._definitions: dict[tuple[int, tuple[str | None, ...]], _Known] = {}
        self._candidates: dict[str, Mapping[str, CandidateModel]] = {}

    def local_task(self, spec: TaskSpec, model: str, grant: Grant) -> LocalTask:
        """Return a task's local answer as a shortcut. model: that answers it."""
        known = self._local_tasks.get((spec.name, model))
        if known is None or known.spec is not spec or known.grant is not grant:
            known = LocalTask(spec, self._digest(spec), model, grant)
            self._local_tasks[spec.name, model] = known
        return known

    def narrow_reading(self, spec: TaskSpec, rules: ReadingRules) -> NarrowReading:
        """Return the reading of chats as a task, as a shortcut."""
        known = self._readings.get(spec.name)
        if known is None or known.spec is not spec or known.rules != rules:
            known = NarrowReading(spec, self._digest(spec), rules)
            self._readings[spec.name] = known
        return known

    def permitted(self, shortcuts: Sequence[Shortcut]) -> tuple[Shortcut, ...]:
        """Return those of a plan's shortcuts, the most valuable first, that it may take."""
        return permitted(shortcuts, self.settings.max_total_error, self.judging)

    def ruling(
        self, shortcut: Shortcut, context: RequestContext, taken: Sequence[Shortcut] = ()
    ) -> Ruling:
        """Return the ruling on one shortcut of a request.

        taken: all shortcuts that the request takes, where it takes several; its claim is of all of
        them. One that is not permitted stays at the reference where a request may ask it, and
        has no guarantee elsewhere. Raises LedgerUnavailable where tenants are unknown.
        """
        caller = context.caller
        external = self.may_send(context)
        reference = self.reference if external else self._own_reference(shortcut, context)
        names = [one.name for one in taken] or [shortcut.name]
        definition = self._definition(
            shortcut, names, caller.tenant, reference or self.reference or PEOPLE
        )
        claim = self.snapshot.find(definition.id)
        if not external and self.reference is not None and reference is not None:
            outside = self._definition(shortcut, names, caller.tenant, self.reference)
            found = self.snapshot.find(outside.id)
            if found is not None and found.state in _ENDED:
                # What the reference found wrong is wrong for inputs that may not reach it, too.
                definition, claim, reference = outside, found, None
        standing = standing_of(
            definition.id,
            claim,
            Situation(
                context.options.route,
                self.reference is not None,
                external,
                reference is not None,
                self.settings.start,
                shortcut.suite,
                self.snapshot.is_fresh,
                is_permitted=shortcut in self.permitted(taken or (shortcut,)),
            ),
        )
        # Also where it is not known: it was deleted with its tenant, or is not folded yet.
        if standing.claim is not None:
            self._open(definition, claim)
        return Ruling(
            standing,
            definition.id,
            reference,
            self._rate(standing, claim),
            self._group(context),
            self._beside(shortcut, names, caller.tenant) if external else None,
        )

    def tier_ruling(
        self,
        shortcut: Shortcut,
        context: RequestContext,
        reference: str,
        asked: Sequence[str],
        conversation: str | None,
    ) -> Ruling | None:
        """Return the ruling on a cheaper tier of a request; None where nothing may be compared.

        reference: of this claim. asked: every `provider/model` that would get the input. rate: 0;
        the caller plans what is explored and audited. conversation: its beginning, where the
        request continues one; a conversation is one group of evidence. Raises LedgerUnavailable
        where tenants are unknown.
        """
        settings, caller = self.settings, context.caller
        consent = consent_of(
            context.options, caller, self._tenant_of(caller.tenant), settings, reference
        )
        if not all(consent.allows(model) for model in asked):
            return None
        definition = self._definition(shortcut, (shortcut.name,), caller.tenant, reference)
        claim = self.snapshot.find(definition.id)
        standing = standing_of(
            definition.id,
            claim,
            Situation(
                context.options.route,
                can_ask=True,
                may_shadow=True,
                may_audit=True,
                start="strict",
                suite=None,
                is_known=self.snapshot.is_fresh,
                is_permitted=shortcut in self.permitted((shortcut,)),
            ),
        )
        if standing.claim is not None:
            self._open(definition, claim)
        group = self._group(context) if conversation is None else self._digest_of(
            "conversation", caller.tenant, conversation
        )  # fmt: skip
        return Ruling(standing, definition.id, reference, 0.0, group)

    def tier_claim(self, shortcut: Shortcut, tenant: str, reference: str) -> Claim | None:
        """Return the claim on a cheaper tier; None where it is not known yet."""
        return self.snapshot.find(
            self._definition(shortcut, (shortcut.name,), tenant, reference).id
        )

    def may_send(self, context: RequestContext) -> bool:
        """Return whether the reference may get a request's input, and its answer, for evidence.

        Raises LedgerUnavailable where tenants are unknown.
        """
        if self.reference is None:
            return False
        tenant = self._tenant_of(context.caller.tenant)
        consent = consent_of(context.options, context.caller, tenant, self.settings, self.reference)
        return consent.allows(self.reference)

    def may_still_send(self, tenant: str, reference: str) -> bool:
        """Return whether an input that waited may go to the reference, as its tenant is now.

        The request and its key allowed it when it was drawn. Raises LedgerUnavailable where tenants
        are unknown.
        """
        caller = Caller(tenant)
        flags = self._tenant_of(tenant)
        consent = consent_of(RequestOptions(), caller, flags, self.settings, self.reference)
        return consent.allows(reference)

    def _open(self, definition: Definition, claim: Claim | None) -> None:
        if claim is None or definition.id not in self._scopes:
            self._scopes[definition.id] = definition.scope
            self._opened(definition)

    def _beside(
        self, shortcut: Shortcut, taken: Sequence[ShortcutName], tenant: str
    ) -> BaselineClaim | None:
        """Return the baseline's claim, under which answers to other inputs are compared as well."""
        reference = self._baseline_of(shortcut)
        if reference is None:
            return None
        definition = self._definition(shortcut, taken, tenant, reference)
        claim = self.snapshot.find(definition.id)
        self._open(definition, claim)
        rate = audit_rate(claim, self.settings, self._now())
        return BaselineClaim(definition.id, reference, rate)

    def scope(self, name: str) -> Scope:
        """Return the scope of a claim that a request had here."""
        return self._scopes[name]

    def candidates(self, name: str) -> Sequence[CandidateModel]:
        """Return the candidates of a claim; the attested model is always the first."""
        return (AttestedModel(), *self._candidates.get(name, {}).values())

    def candidate(self, name: str, candidate: str) -> CandidateModel | None:
        """Return a candidate of a claim by its name; None where it is not loaded."""
        return self._candidates.get(name, {}).get(candidate)

    def load(self, name: str, candidates: Sequence[CandidateModel]) -> None:
        """Replace the fitted candidates of a claim."""
        self._candidates[name] = {candidate.name: candidate for candidate in candidates}

    def always_escalates(self, name: str, text: str) -> bool:
        """Return whether a text is one of those that a claim's shortcut often answers wrongly."""
        claim = self.snapshot.find(name)
        if claim is None or not claim.escalate:
            return False
        return self.text_digest(name, text) in claim.escalate

    def text_digest(self, name: str, text: str) -> str:
        """Return the keyed digest by which equal texts of a scope are known."""
        content = f"{name}:{text_digest(text)}".encode()
        return hmac.digest(self._key, content, "sha256").hex()[:32]

    def now(self) -> datetime:
        """Return the time with its zone."""
        return self._now()

    def is_affordable(self) -> bool:
        """Return whether the day's budget has room for an audit now.

        Audits that wait for a provider's batch count with their worst case until they are settled.
        """
        usd = self.counts.spent_today.today_usd + self.counts.deferred.total_usd
        return is_affordable(Spent(today_usd=usd), self.settings, self._now())

    def may_judge(self) -> bool:
        """Return whether the day's budget of comparisons in shadow has room for another one."""
        spent = self.counts.judged_usd(self._now().astimezone(UTC).date())
        today = Spent(today_usd=spent)
        return has_room(today, self.settings.shadow_judge_max_usd_a_day, self._now())

    def judged(self, usd: Decimal) -> None:
        """Count what comparing a hit in shadow cost."""
        self.counts.judged(self._now().astimezone(UTC).date(), usd)

    def _own_reference(self, shortcut: Shortcut, context: RequestContext) -> str | None:
        """Return the reference of inputs that no provider gets: the 16-bit baseline, or people."""
        baseline = self._baseline_of(shortcut)
        if baseline is not None:
            return baseline
        settings = self.settings
        is_kept = settings.keep_texts is not None and context.options.audit != "never"
        return PEOPLE if is_kept and shortcut.has_labels else None

    def _baseline_of(self, shortcut: Shortcut) -> str | None:
        """Return the baseline's name; None where it answers the task itself, or no model does."""
        baseline, model = self.settings.baseline, shortcut.local_model
        if baseline is None or model is None or baseline == model:
            return None
        return BASELINE_PREFIX + baseline

    def _rate(self, standing: Standing, claim: Claim | None) -> float:
        if standing.claim is None:
            return 0.0
        if standing.mode == "shadow":
            spent = self.counts.shadow_spent.get(standing.claim, Spent())
            return shadow_rate(claim, spent, self.settings)
        return audit_rate(claim, self.settings, self._now())

    def _definition(
        self, shortcut: Shortcut, taken: Sequence[ShortcutName], tenant: str, reference: str
    ) -> Definition:
        # Digesting a scope takes longer than the rest of a ruling.
        key = (shortcut.name, shortcut.local_model, tenant, reference, *taken)
        known = self._definitions.get((id(shortcut), key))
        if known is not None and known.shortcut is shortcut:
            return known.definition
        definition = self._defined(shortcut, taken, tenant, reference)
        if len(self._definitions) >= _MAX_DEFINITIONS:
            self._definitions.clear()
        self._definitions[id(shortcut), key] = _Known(shortcut, definition)
        return definition

    def _defined(
        self, shortcut: Shortcut, taken: Sequence[ShortcutName], tenant: str, reference: str
    ) -> Definition:
        pool = self.settings.pool_of(tenant)
        scope = shortcut.scope(
            pool or tenant, pooled=pool is not None, taken=taken, rules=self._rules
        )
        name = claim_id(scope, shortcut.loss, shortcut.target_error, reference)
        return Definition(
            name, scope, shortcut.name, shortcut.loss, shortcut.target_error, reference,
            shortcut.suite is not None, self._now(),
        )  # fmt: skip

    def _digest(self, spec: TaskSpec) -> str:
        # Dumping and hashing a spec takes longer than the rest of a ruling.
        known = self._digests.get(spec.name)
        if known is None or known[0] is not spec:
            known = self._digests[spec.name] = (spec, spec.digest())
        return known[1]

    def _group(self, context: RequestContext) -> str:
        """Return the group of a request: that of its client within a window, in every replica."""
        window_s = self.settings.group_window_s
        if window_s == 0.0:
            return uuid4().hex[:16]
        caller = context.caller
        client = (caller.tenant, caller.key_id or "", context.options.end_user or "")
        return self._digest_of(*client, str(int(time.time() // window_s)))

    def _digest_of(self, *names: str) -> str:
        content = "\x00".join(names).encode("utf-8", "replace")
        return hmac.digest(self._key, content, "sha256").hex()[:16]
