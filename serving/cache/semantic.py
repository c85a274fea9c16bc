"""What the semantic step serves, in which state, and how it treats a doubtful entry.

Nothing here asks a model or a database. The caller embeds the question, finds candidates in the
index, and carries out what is decided.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from serving.cache.guards.refusal import refusal_at
from serving.cache.guards.words import Words
from serving.contracts.evidence import Scope, ShortcutName, UngatedShortcut
from serving.contracts.task_spec import LossName
from serving.evidence.judge import JUDGE_VERSION, agreement_of
from serving.evidence.statistics.judged import JudgedLimits

CANDIDATES = 8
TARGET_ERROR = JudgedLimits().badly_worse
"""Of a judged hit the loss is whether it is badly worse than the fresh answer: wrong, or the answer
to another question. That it is slightly better or worse is the model's own spread, which a fresh
answer has as well; so the mean of a preference, whose target is above 0.5, is not used."""

THRESHOLDS = {"loose": 0.85, "default": 0.90, "strict": 0.95}
"""Cosines from which a candidate is served, by the setting's value."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A stored question near the asked one. is_aside: suspected, so that it is not served."""

    entry: str
    text: str
    similarity: float
    is_aside: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """The stored question that has the asked one's answer."""

    entry: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What a lookup found. match: None where nothing may be served. refusals: reason by entry."""

    match: Match | None
    refusals: tuple[tuple[str, str], ...] = ()


def choose(text: str, candidates: Sequence[Candidate], threshold: float) -> Choice:
    """Return the nearest candidate that reaches the threshold and that no guard refuses."""
    asked = Words(text)
    refusals: list[tuple[str, str]] = []
    for candidate in sorted(candidates, key=lambda one: -one.similarity)[:CANDIDATES]:
        if candidate.similarity < threshold:
            break
        reason = refusal_at(asked, Words(candidate.text), candidate.similarity, threshold)
        if reason is None and candidate.is_aside:
            reason = "aside"
        if reason is None:
            return Choice(Match(candidate.entry, candidate.similarity), tuple(refusals))
        refusals.append((candidate.entry, reason))
    return Choice(None, tuple(refusals))


@dataclass(frozen=True, slots=True)
class CachedAnswer(UngatedShortcut):
    """Implements Shortcut: an answer that was given to a question of the same meaning.

    subject: route or task. encoder: its name with its version. threshold: cosine. Another encoder,
    threshold or version of the guards is another claim.
    """

    subject: str
    encoder: str
    threshold: float
    guards: str
    is_label: bool = False
    target_error: float = TARGET_ERROR
    name: ShortcutName = "cached_answer"

    @property
    def loss(self) -> LossName:
        """Return the loss: equal labels for a classification, a judge's verdict for others."""
        return "exact" if self.is_label else "not_equivalent"

    @property
    def has_labels(self) -> bool:
        """Return whether answers are labels."""
        return self.is_label

    def scope(
        self, tenants: str, *, pooled: bool, taken: Sequence[ShortcutName], rules: str
    ) -> Scope:
        """Return where the claim holds."""
        versions = {
            "encoder": self.encoder, "threshold": f"{self.threshold:.4f}", "guards": self.guards,
            "judge": JUDGE_VERSION, "rules": rules,
        }  # fmt: skip
        return Scope(tenants, self.subject, versions, tuple(sorted(taken)), pooled)

    def loss_of(self, answer: Any, reference: Any) -> float:
        """Return 0 where two texts say the same by rule, 1 where they differ or it is not known.

        A judge decides before what rules do not (serving.evidence.judge).
        """
        agreement = agreement_of(str(answer), str(reference), is_label=self.is_label)
        return 0.0 if agreement == "same" else 1.0


@dataclass(frozen=True, slots=True)
class Served:
    """A hit that a client got. at: when. conversation: digest of the turns before it."""

    entry: str
    question: str
    at: datetime
    conversation: str


def is_refinement(served: Served, question: str, at: datetime, window: timedelta) -> bool:
    """Return whether a later turn of the same conversation repeats or corrects the question.

    The caller compares conversations. A turn is a refinement where it shares most of its content
    words with the question, or begins as a correction does.
    """
    if not timedelta(0) <= at - served.at <= window:
        return False
    if _CORRECTION.match(question):
        return True
    before, after = Words(served.question), Words(question)
    one = {before.stems[n] for n in before.content}
    other = {after.stems[n] for n in after.content}
    return bool(one and other) and len(one & other) / min(len(one), len(other)) >= _REPEATED_SHARE


_REPEATED_SHARE = 0.6
_CORRECTION = re.compile(
    r"\W*(?:no\b|nope\b|wrong\b|that(?:'s| is| was) (?:not|wrong|incorrect)|"
    r"not (?:what|true|right)|"
    r"i (?:meant|asked|said|mean)\b|actually\b|incorrect\b|nein\b|falsch\b|das (?:stimmt|ist) "
    r"(?:nicht|falsch)|ich meinte\b|non\b|faux\b|ce n'est pas\b|je voulais dire\b|incorrecto\b|"
    r"eso no\b|no es\b|quise decir\b)",
    re.IGNORECASE,
)
