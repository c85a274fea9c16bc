"""A cheaper tier, and a cascade, as shortcuts: what their claims bound, and where. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.contracts.evidence import Scope, ShortcutName, UngatedShortcut
from serving.contracts.routing import Tier
from serving.contracts.task_spec import LossName
from serving.evidence.judge import JUDGE_VERSION
from serving.evidence.statistics.judged import JudgedPair

SUBJECT_PREFIX = "cluster/"


class JudgedAnswer(UngatedShortcut):
    """What holds for every answer of a frontier model that a judge compares.

    judge: the model that compares.
    """

    __slots__ = ()
    judge: str

    @property
    def loss(self) -> LossName:
        """Return the loss: a judge's preference in both orders."""
        return "net_worse"

    @property
    def subject(self) -> str:
        """Return the name under which reports and metrics show it."""
        raise NotImplementedError

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions of what answers, by name."""
        raise NotImplementedError

    def scope(
        self, tenants: str, *, pooled: bool, taken: Sequence[ShortcutName], rules: str
    ) -> Scope:
        """Return where the claim holds. Another version, judge or rule is another claim."""
        versions = {**self.versions, "judge": f"{self.judge}@{JUDGE_VERSION}", "rules": rules}
        return Scope(tenants, self.subject, versions, tuple(sorted(taken)), pooled)

    def loss_of(self, answer: Any, reference: Any) -> float:
        """Return the loss of a judged pair; the reference is a part of it."""
        assert isinstance(answer, JudgedPair)
        return answer.loss


_PAIRED: Mapping[ShortcutName, tuple[str, str]] = {
    "brief_answer": ("brief", "directive"),
    "pruned_context": ("context", "pruner"),
}
"""By kind: how reports name it, and what of it has a version."""


@dataclass(frozen=True, slots=True)
class PairedModel(JudgedAnswer):
    """Implements Shortcut: a model's answers with a shortcut, compared with those without it.

    name: `brief_answer` or `pruned_context`. model: `provider/model`. version: digest of what the
    shortcut does to a request. judge: the model that compares. target_error: largest share judged
    worse less the share judged better.
    """

    name: ShortcutName
    model: str
    version: str
    judge: str
    target_error: float

    @property
    def subject(self) -> str:
        """Return the name under which reports and metrics show the model."""
        return f"{_PAIRED[self.name][0]}/{self.model}"

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions of its model and of what the shortcut does."""
        return {"model": self.model, _PAIRED[self.name][1]: self.version}


@dataclass(frozen=True, slots=True)
class CheaperTier(JudgedAnswer):
    """Implements Shortcut: a model of a cheaper tier answers a cluster of open-ended requests.

    cluster: its id. clustering: the version of its centres. tier, model: that answer. judge: the
    model that compares. target_error: largest share judged worse less the share judged better.
    """

    cluster: int
    clustering: str
    tier: Tier
    model: str
    judge: str
    target_error: float
    name: ShortcutName = "cheaper_tier"

    @property
    def subject(self) -> str:
        """Return the name under which reports and metrics show the cluster and tier."""
        return f"{SUBJECT_PREFIX}{self.cluster}/{self.tier}"

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions of its centres and model."""
        return {"clustering": self.clustering, "model": self.model}


@dataclass(frozen=True, slots=True)
class CascadedTier(JudgedAnswer):
    """Implements Shortcut: a cheaper tier's answer that its self-check finds sure enough.

    check: how sure it is of itself; the claim's threshold is in its units. Others: as CheaperTier.
    """

    cluster: int
    clustering: str
    tier: Tier
    model: str
    judge: str
    check: str
    target_error: float
    name: ShortcutName = "cascade"

    @property
    def loss(self) -> LossName:
        """Return the loss: 1 where a judge finds the kept answer worse in both orders."""
        return "not_equivalent"

    @property
    def subject(self) -> str:
        """Return the name under which reports and metrics show the cluster, tier and cascade."""
        return f"{SUBJECT_PREFIX}{self.cluster}/{self.tier}/cascade"

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions of its centres, model and check."""
        return {"clustering": self.clustering, "model": self.model, "check": self.check}

    def loss_of(self, answer: Any, reference: Any) -> float:
        """Return the loss of a judged pair; the reference is a part of it."""
        assert isinstance(answer, JudgedPair)
        return cascade_loss(answer)


def cascade_loss(pair: JudgedPair) -> float:
    """Return the share of orders in which the answer is worse, less that in which it is better.

    At least 0: an answer that is better pays for no other one.
    """
    return max(0.0, 2.0 * pair.loss - 1.0)
