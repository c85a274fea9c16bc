"""Which shortcuts a request may take together. Pure.

Each shortcut has a claim of its own, whose scope names all that were taken with it. The error of an
answer is at most the sum of the targets (union bound).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.contracts.answer import Answer
from serving.contracts.evidence import Guarantee, Scope, Shortcut, ShortcutName, UngatedShortcut
from serving.contracts.task_spec import LossName, TaskSpec
from serving.evidence.fold import FIXED_THRESHOLD
from serving.evidence.judge import JUDGE_VERSION
from serving.evidence.statistics.audit_rate import allowed_shortcuts
from serving.evidence.statistics.judged import JudgedBaseline, JudgedLimits
from serving.tasks.grant import Grant
from serving.tasks.loss import loss_of

JUDGED: LossName = "judged_worse"


@dataclass(frozen=True, slots=True)
class LocalTask:
    """Implements Shortcut: a task's local answer. model: that answers it, `none` without one."""

    spec: TaskSpec
    spec_digest: str
    model: str
    grant: Grant

    name: ShortcutName = "local_task"

    @property
    def loss(self) -> LossName:
        """Return the task's loss."""
        return self.spec.loss

    @property
    def target_error(self) -> float:
        """Return the largest mean loss."""
        return self.spec.target_error

    @property
    def suite(self) -> Guarantee | None:
        """Return what a gate certified; None where nothing did."""
        return self.grant.guarantee

    @property
    def local_model(self) -> str | None:
        """Return the model; None where no model is gated for the task."""
        return self.model if self.grant.refusal is None else None

    @property
    def has_labels(self) -> bool:
        """Return whether the task is a classification."""
        return self.spec.kind == "classification"

    def scope(
        self, tenants: str, *, pooled: bool, taken: Sequence[ShortcutName], rules: str
    ) -> Scope:
        """Return where the claim holds: on one task, model, attestation and spec."""
        versions = {"model": self.model, "spec": self.spec_digest, "rules": rules}
        if self.grant.attestation is not None:
            versions["attestation"] = self.grant.attestation
        return Scope(tenants, self.spec.name, versions, tuple(sorted(taken)), pooled)

    def loss_of(self, answer: Any, reference: Any) -> float:
        """Return the loss of an Answer against the reference's value."""
        assert isinstance(answer, Answer)
        return loss_of(self.spec, answer.value, reference, valid=answer.valid)


@dataclass(frozen=True, slots=True)
class ReadingRules:
    """How chats are read as tasks. reader: digest of all that decides it. target_error: largest
    share of chats that may ask for something else than what was read."""

    reader: str
    target_error: float


@dataclass(frozen=True, slots=True)
class NarrowReading(UngatedShortcut):
    """Implements Shortcut: a chat is answered as the task that was read in it, with its text."""

    spec: TaskSpec
    spec_digest: str
    rules: ReadingRules

    name: ShortcutName = "narrow_reading"

    @property
    def loss(self) -> LossName:
        """Return the loss: whether the reference answers the client's own messages otherwise."""
        return "not_equivalent"

    @property
    def target_error(self) -> float:
        """Return the largest mean loss."""
        return self.rules.target_error

    def scope(
        self, tenants: str, *, pooled: bool, taken: Sequence[ShortcutName], rules: str
    ) -> Scope:
        """Return where the claim holds: for chats read as one task, by one version of the reader.

        It has one test, of all such chats: a reading has no confidence on which a threshold could
        be placed.
        """
        versions = {
            "reader": self.rules.reader, "spec": self.spec_digest, "judge": JUDGE_VERSION,
            FIXED_THRESHOLD: "1.0", "rules": rules,
        }  # fmt: skip
        subject = f"reading/{self.spec.name}"
        return Scope(tenants, subject, versions, tuple(sorted(taken)), pooled)

    def loss_of(self, answer: Any, reference: Any) -> float:
        """Return 0 for equal answers, else 1: a judge decides before what is not equal."""
        return float(answer != reference)


@dataclass(frozen=True, slots=True)
class Judging:
    """What is known of a judge in one scope. baseline: the reference judged against itself."""

    limits: JudgedLimits
    baseline: JudgedBaseline | None = None

    @property
    def is_usable(self) -> bool:
        """Return whether judged losses mean anything here; without a baseline it is not known."""
        return self.baseline is not None and not self.baseline.is_unjudgeable(self.limits)


def permitted(
    shortcuts: Sequence[Shortcut],
    max_total_error: float,
    judging: Mapping[ShortcutName, Judging] | None = None,
) -> tuple[Shortcut, ...]:
    """Return the shortcuts that one request may take together, the most valuable first.

    Those of a judged loss whose scope is unjudgeable are left out, and then those from the first
    that would raise the sum of targets above max_total_error. What is left out stays at the
    reference. judging: by the shortcut's name.
    """
    known = judging or {}
    kept = [one for one in shortcuts if one.loss != JUDGED or _is_judgeable(one, known)]
    return tuple(kept[: allowed_shortcuts([one.target_error for one in kept], max_total_error)])


def _is_judgeable(shortcut: Shortcut, judging: Mapping[ShortcutName, Judging]) -> bool:
    found = judging.get(shortcut.name)
    return found is not None and found.is_usable
