"""Claims, audits and guarantees: what a shortcut may do, and the evidence that it rests on.

A shortcut answers more cheaply than the reference. A claim bounds the shortcut's mean loss against
the reference in one scope. An audit compares one answer with the reference's. The state of a claim
is a pure function of its audits and events in the order of the database.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from serving.contracts.task_spec import LossName

ShortcutName = Literal[
    "local_task",
    "cached_answer",
    "cheaper_tier",
    "cascade",
    "brief_answer",
    "pruned_context",
    "quantized",
    "narrow_reading",
]

CONFIDENCE = 0.95
"""Of every claim. For the scope: the j-th hypothesis of a scope needs e >= j (j + 1) / 0.05."""

PEOPLE = "people"
"""Reference of a claim that is judged by people's labels."""

AWAITED = "/awaited"
"""Added to an input's name in the row that says that a person's label is due."""

BASELINE_PREFIX = "baseline/"
"""Prefix of the reference's name where it is a local model: the 16-bit baseline."""


class ClaimState(StrEnum):
    """What a claim allows.

    provisional: a suite's evidence only. shadow: being earned; the reference answers. held: the
    shortcut answers. suspended: the loss rose, too many verdicts are missing, or audits stopped;
    it is being earned again. not_earnable: nothing was on course after the stop rule's number of
    labels; a sample goes on. withdrawn: by a person, or because model, spec or engine changed.
    """

    PROVISIONAL = "provisional"
    SHADOW = "shadow"
    HELD = "held"
    SUSPENDED = "suspended"
    NOT_EARNABLE = "not_earnable"
    WITHDRAWN = "withdrawn"


Evidence = Literal["traffic", "suite", "none"]


@dataclass(frozen=True, slots=True)
class Flips:
    """How often the served model's answers differ from the 16-bit baseline's.

    inputs: chosen by a fair coin of all inputs of the scope, covered or not. interval: 95 %, valid
    at every time.
    """

    inputs: int
    share: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class JudgeSpread:
    """How often the judge finds a second answer of the same model badly worse than the first.

    A shortcut cannot be shown to do better. interval: 97.5 %, valid at every time.
    """

    pairs: int
    badly_worse: float
    interval: tuple[float, float]


class PeopleError(BaseModel):
    """The error against people, from their labels of a random sample of the audited inputs.

    labels: of accepted inputs. error, interval: of accepted answers, 95 %. method: `ppi` where the
    reference's verdicts on unlabelled inputs take part (prediction-powered inference), `labels`
    for the exact interval of the labels alone. reference_error, reference_interval: of the
    reference itself; None where people are the reference.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: int
    error: float
    interval: tuple[float, float]
    method: Literal["ppi", "labels"]
    reference_error: float | None = None
    reference_interval: tuple[float, float] | None = None


class ReadingError(BaseModel):
    """How often a chat that was read as a task asked for something else, by audits of such chats.

    claim: its id. target_error: bounds the error. observed_error, interval: as Guarantee's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    claim: str
    target_error: float = Field(ge=0.0, le=1.0)
    observed_error: float | None = Field(default=None, ge=0.0, le=1.0)
    interval: tuple[float, float] | None = None
    audits: int = Field(default=0, ge=0)


class Guarantee(BaseModel):
    """What is known of the error of one answer's kind, as clients see it.

    traffic: under a held claim, by audits of this traffic. suite: a gate's certificate alone. none:
    no bound. interval: 95 %, of examples after earning, valid at every time. since: when the claim
    was earned, or the gate ran. reference: whose answers count as right; the error against them is
    what is bounded. claim: its id. pooled: it holds on average over several tenants.
    people: the error against people, where they labelled; None elsewhere. reading: of a chat that
    was read as a task; target_error then includes its target, and observed_error does not include
    its error. None for other answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    evidence: Evidence
    target_error: float | None = Field(default=None, ge=0.0, le=1.0)
    observed_error: float | None = Field(default=None, ge=0.0, le=1.0)
    interval: tuple[float, float] | None = None
    audits: int = Field(default=0, ge=0)
    since: datetime | None = None
    reference: str | None = None
    claim: str | None = None
    pooled: bool = False
    people: PeopleError | None = None
    reading: ReadingError | None = None

    def header(self) -> str:
        """Return the value of the header `x-narrowgate-guarantee`."""
        if self.evidence == "none" or self.target_error is None:
            return self.evidence
        claim = "" if self.claim is None else f"; claim={self.claim}"
        return f"{self.evidence}; target_error={self.target_error:g}{claim}"


NO_GUARANTEE = Guarantee(evidence="none")


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a claim holds. Another value of any field is another claim.

    tenants: a tenant's name, or that of a pool of tenants. subject: task, cluster, route or kind of
    context. versions: digests and versions that the evidence depends on, by name: `model`,
    `attestation`, `spec`, `engine`. shortcuts: all that were taken together, sorted.
    """

    tenants: str
    subject: str
    versions: Mapping[str, str] = field(default_factory=dict)
    shortcuts: tuple[ShortcutName, ...] = ("local_task",)
    pooled: bool = False

    def document(self) -> dict[str, Any]:
        """Return the scope as it is digested and exported."""
        return {
            "tenants": self.tenants,
            "subject": self.subject,
            "versions": dict(sorted(self.versions.items())),
            "shortcuts": sorted(self.shortcuts),
            "pooled": self.pooled,
        }


def claim_id(scope: Scope, loss: LossName, target_error: float, reference: str) -> str:
    """Return a claim's id, 16 hex digits: equal in every replica, without asking the database."""
    content = {
        "scope": scope.document(), "loss": loss, "target_error": target_error,
        "reference": reference,
    }  # fmt: skip
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Action:
    """What a shortcut does under a claim.

    candidate: which form of the shortcut: `model`, `model@VERSION` (recalibrated), `head@VERSION`,
    `both@VERSION`, a tier, a degree of pruning. threshold: the confidence from which its answer is
    accepted, in the candidate's own units. parameters: of the candidate, such as offsets by label.
    hypothesis: its number j in the scope, from 1.
    """

    candidate: str
    threshold: float
    parameters: Mapping[str, float] = field(default_factory=dict)
    hypothesis: int = 1


@dataclass(frozen=True, slots=True)
class EarnedFrom:
    """The inputs that earned a claim, with which later traffic is compared.

    inputs: audited while it was tested. accepted: of these, from its threshold on. labels: counts
    of the accepted answers, by label; empty where the task has no labels.
    """

    inputs: int = 0
    accepted: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim and what its evidence says now.

    action: None until one was earned. observed_error, interval: of examples after the last earning,
    apart from those that earned it. audits: their number. accepted: inputs that took the shortcut
    since. missing: share of audits without a verdict. since: of the present state. earned_at: of
    the last earning. span_h: hours of traffic that earned it. episode: how often it began to be
    earned. hypotheses: tested in this scope so far. sequence: the last audit or event that this
    state includes. people: the error against people of what was accepted since earning.
    flips: where the reference is the 16-bit baseline. judge_spread: where a judge compares answers,
    what it makes of equal ones. since_signal: inputs that took the shortcut
    since it was earned or traffic was last found changed. earned_from: what it was earned on.
    affordable_rate: share of accepted inputs whose audits cost what the settings let them cost.
    escalate: digests of frequent texts that were answered wrongly, the newest last; they are never
    accepted. progress: share of the evidence that an earning needs, in [0, 1]; 1 where it is held.
    shadow_loss: mean loss under the first hypothesis of this episode, of `net_worse` the net share;
    None before any example and where it is held. alarm_progress: how near the watch of a held claim
    is to its alarm, as a share of the alarm's logarithm, in [0, 1]. is_slowed: comparing costs more
    than the shortcut saves: a sample is compared, and nothing takes the shortcut.
    """

    id: str
    scope: Scope
    shortcut: ShortcutName
    loss: LossName
    target_error: float
    reference: str
    state: ClaimState
    since: datetime
    action: Action | None = None
    observed_error: float | None = None
    interval: tuple[float, float] | None = None
    audits: int = 0
    accepted: int = 0
    missing: float = 0.0
    earned_at: datetime | None = None
    span_h: float = 0.0
    episode: int = 1
    hypotheses: int = 0
    reason: str = ""
    sequence: int = 0
    people: PeopleError | None = None
    flips: Flips | None = None
    judge_spread: JudgeSpread | None = None
    since_signal: int = 0
    earned_from: EarnedFrom = field(default_factory=EarnedFrom)
    affordable_rate: float = 1.0
    escalate: tuple[str, ...] = ()
    progress: float = 0.0
    shadow_loss: float | None = None
    alarm_progress: float = 0.0
    is_slowed: bool = False


Origin = Literal["shadow", "accepted", "escalated", "person", "refined"]
"""Why an input was audited. shadow: the reference answered it in shadow. accepted: by the coin; the
shortcut answered it. escalated: it was below the threshold. person: a person labelled it. refined:
the shortcut answered it, and a follow-up repeated or corrected the question."""

Verdict = Literal["same", "different", "missing", "dropped", "awaited"]
"""missing: no verdict for reasons of the input (refusal, unknown label, unreadable, time-out): a
loss of 1. dropped: none for reasons apart from the input (queue, budget, crash, unreachable): no
loss, and counted. awaited: people are the reference, and none has labelled the input yet; the label
is a row of its own."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate's answer to one audited input. confidence: in the candidate's own units.

    label: the answer of a classification; None for other tasks. badly_worse: share of the orders in
    which a judge found it badly worse, for the loss `net_worse`.
    """

    name: str
    confidence: float
    loss: float
    label: str | None = None
    badly_worse: float = 0.0


@dataclass(frozen=True, slots=True)
class Audit:
    """One audited input. Rows are only appended; the first by (claim, input) counts.

    input: drawn at acceptance, distinct. group: inputs that are not independent share it; at most
    one of a group counts for earning. text: digest of the normalised text, keyed and per scope.
    coin: its probability where the fair coin chose the input, 1 in shadow; None where it was
    audited for another reason, and then it only trains. hypothesis: number of the one that was
    claimed when the input was accepted; 0 in shadow. loss: of the answer as served, in [0, 1].
    candidates: what each candidate that existed made of it. label: the reference's answer.
    cost_usd: of the reference's call. judge_usd: what comparing cost besides, in shadow.
    avoided_usd: cost of the answer without the shortcut less that with it, below 0 where that cost
    more; None where either is unknown, and for claims that must not pay for their comparisons.
    accepted: inputs that took the shortcut in this replica since its last row. sequence: order in
    the database, 0 before it is written.
    """

    claim: str
    input: str
    group: str
    text: str
    origin: Origin
    coin: float | None
    verdict: Verdict
    loss: float | None
    reference: str
    candidates: tuple[Candidate, ...] = ()
    served: str | None = None
    label: str | None = None
    cost_usd: Decimal | None = None
    tenant: str = "default"
    request_id: str = ""
    end_user: str | None = None
    accepted: int = 0
    hypothesis: int = 0
    drawn_at: datetime = datetime.min
    judged_at: datetime = datetime.min
    sequence: int = 0
    judge_usd: Decimal | None = None
    avoided_usd: Decimal | None = None


EventKind = Literal[
    "tested", "earned", "suspended", "not_earnable", "withdrawn", "deleted", "erased", "drifted",
    "slowed", "resumed",
]  # fmt: skip
"""tested: a hypothesis was opened; only examples after it count for it. deleted: rows were removed
or lost what names a person, so that what they prove is computed anew. drifted: traffic differs from
that which earned the claim, so that more of it is audited. slowed: comparing costs more than the
shortcut saves; a sample goes on, and the shortcut is not taken. resumed: it pays again."""

FOLD = "fold"
"""Actor of events that follow from the rows before them."""


@dataclass(frozen=True, slots=True)
class ClaimEvent:
    """A change of a claim's state, or a person's act. Rows are only appended.

    sequence: shares its order with the audits. after: the last audit's sequence that led to it.
    actor: a key's id, `operator` for the command line, `narrowgate` for what depends on time, or
    `fold` for what follows from the rows before it. action: of an earning or a test; a test's
    parameters are `expected_error` and `expected_coverage`.
    """

    claim: str
    kind: EventKind
    reason: str
    actor: str
    at: datetime
    after: int
    action: Action | None = None
    sequence: int = 0


class Shortcut(Protocol):
    """A way to answer more cheaply than the reference: what it is measured by, and where.

    The same protocol serves local tasks, cached answers, cheaper tiers and pruned contexts.
    """

    @property
    def name(self) -> ShortcutName:
        """Return its kind."""
        ...

    @property
    def loss(self) -> LossName:
        """Return the loss of one answer against the reference's. `judged_worse`: of a judge."""
        ...

    @property
    def target_error(self) -> float:
        """Return the largest mean loss, in (0, 1)."""
        ...

    @property
    def suite(self) -> Guarantee | None:
        """Return what was certified of it beforehand; None where nothing was."""
        ...

    @property
    def local_model(self) -> str | None:
        """Return the local model that answers; None where none does."""
        ...

    @property
    def has_labels(self) -> bool:
        """Return whether an answer is one of some labels, which people can give, too."""
        ...

    def scope(
        self, tenants: str, *, pooled: bool, taken: Sequence[ShortcutName], rules: str
    ) -> Scope:
        """Return where its claim holds. taken: all shortcuts of the request. rules: a digest."""
        ...

    def loss_of(self, answer: Any, reference: Any) -> float:
        """Return the loss of an answer against the reference's, in [0, 1]. Pure."""
        ...


class UngatedShortcut:
    """What holds of every shortcut that no gate has tested: only traffic can prove it."""

    __slots__ = ()

    @property
    def suite(self) -> Guarantee | None:
        """Return None: nothing was certified of it beforehand."""
        return None

    @property
    def local_model(self) -> str | None:
        """Return None: its claim is of no local model."""
        return None

    @property
    def has_labels(self) -> bool:
        """Return False: its answers are texts."""
        return False
