"""What the arms of the cost replay share: its requests, assumptions and levers."""

import itertools
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from benchmarks.replay_assumptions import Values
from benchmarks.replay_briefs import brief_requests
from benchmarks.replay_contexts import pruned_requests
from benchmarks.replay_earning import (
    EARLIER_DAYS,
    Earned,
    Rungs,
    Topics,
    cascades_earned,
    earned,
    hits_earned,
    mean_tokens,
    rungs_of,
    topics_of,
)
from benchmarks.replay_mix import Request
from benchmarks.replay_paired import PairedClaims, PairedRequest, TrafficBefore, paired_earned
from serving.contracts.answer import Usage
from serving.contracts.context_settings import ContextSettings
from serving.contracts.evidence import Audit
from serving.contracts.routing import TIERS, Tier
from serving.contracts.settings import Settings
from serving.contracts.tiers_settings import TiersSettings
from serving.evidence.store import EvidenceStore
from serving.ledger.database import Database
from serving.pipeline.brevity import directive_version
from tests.unit.authenticated import opened

if TYPE_CHECKING:
    from serving.context.lazy import LazyPruner
    from serving.ledger.pricing.book import PriceBook
    from serving.savings.detection import RememberingEmbedder

Lever = Literal[
    "exact_cache", "local_tasks", "context_pruning", "prompt_caching", "output_bounds",
    "similar_cache", "tiers", "cascade",
]  # fmt: skip
LEVERS: tuple[Lever, ...] = get_args(Lever)[:-1]
"""Those that all together has, in the order in which they are added.

similar_cache needs exact_cache: alone it is with it, and all less exact_cache is without both. A
cascade is off as shipped, and needs tiers."""

EARNED: tuple[Lever, ...] = (
    "context_pruning", "output_bounds", "similar_cache", "tiers", "cascade"
)  # fmt: skip
"""Those that a claim must allow."""

UNBOUNDED = 8192
"""Output tokens of a client that sets no limit."""


@dataclass(frozen=True)
class Replay:
    """What the arms share. reference: `provider/model` that every request would have gone to.

    earlier_days: of the same traffic before the replay. seed: of what was earned in them.
    """

    requests: Sequence[Request]
    values: Values
    settings: Settings
    book: "PriceBook"
    reference: str
    folder: Path
    earlier_days: float = EARLIER_DAYS
    seed: int = 1
    _folders: dict[tuple[Lever, ...], Path] = field(default_factory=dict)
    _paired: dict[tuple[str, bool], Earned] = field(default_factory=dict)

    def tier_of(self) -> dict[str, Tier]:
        """Return the tier of each model, by its name without the provider."""
        return {
            target.partition("/")[2]: tier
            for tier in TIERS
            for target in self.settings.frontier.tiers[tier]
        }

    def usd(self, model: str, usage: Usage) -> float:
        """Return the price of a usage at a `provider/model`."""
        prices = self.book.of(model)
        assert prices is not None, model
        return float(prices.base.cost(usage))

    @cached_property
    def embedder(self) -> "RememberingEmbedder":
        """Return the embedder of all arms: equal texts are embedded once."""
        from serving.embedding.embedder import build_embedder
        from serving.savings.detection import RememberingEmbedder

        return RememberingEmbedder(build_embedder(self.folder))

    @cached_property
    def topics(self) -> Topics:
        """Return the clusters of the requests. Blocking."""
        return topics_of(self.requests, self.embedder, self.values, self.seed)

    @cached_property
    def rungs(self) -> Rungs:
        """Return the tiers with their prices."""
        found = {}
        for tier in TIERS:
            model = self.settings.frontier.tiers[tier][0]
            prices = self.book.of(model)
            assert prices is not None, model
            found[tier] = (model, prices.base)
        return rungs_of(found, self.start)

    @property
    def start(self) -> Tier:
        """Return the tier of the reference."""
        return self.tier_of()[self.reference.partition("/")[2]]

    @property
    def judge(self) -> str:
        """Return the model that compares answers."""
        return self.rungs.judge.model

    @property
    def tiers_settings(self) -> TiersSettings:
        """Return the settings, with tiers on and the cheapest judge."""
        return self.settings.tiers.model_copy(
            update={"mode": "on", "reference": self.start, "judge": self.judge}
        )

    @cached_property
    def earned(self) -> Earned:
        """Return the tiers that earlier traffic has earned. Blocking: seconds."""
        return earned(
            self.requests, self.topics, self.rungs, self.values, self.tiers_settings,
            days=self.earlier_days, seed=self.seed,
        )  # fmt: skip

    @cached_property
    def cascades_earned(self) -> Earned:
        """Return the cascades that earlier traffic has earned where the tier is not. Blocking."""
        return cascades_earned(
            self.earned, self.topics, self.rungs, self.values, self.tiers_settings.target_error
        )

    @cached_property
    def hits_earned(self) -> Earned:
        """Return the claim of hits by meaning that earlier traffic has earned. Blocking."""
        from serving.embedding.model_file import encoder_name

        asked = [one for one in self.requests if one.kind in ("medium", "open")]
        kinds = [one.kind for one in asked] or ["medium"]
        output = sum(mean_tokens(kind, self.values) for kind in kinds) / len(kinds)
        judge = self.rungs.judge
        return hits_earned(self.values, judge.prices, (40.0, output), encoder_name(), judge.model)

    @cached_property
    def context_settings(self) -> ContextSettings:
        """Return the settings of pruning under a claim, with the cheapest judge."""
        return self.settings.context.model_copy(update={"mode": "auto", "judge": self.judge})

    @cached_property
    def pruner(self) -> "LazyPruner":
        """Return the pruner of all arms."""
        from serving.context.lazy import LazyPruner

        return LazyPruner(self.context_settings)

    @cached_property
    def pruned_requests(self) -> Sequence[PairedRequest]:
        """Return what the pruner removes of each context. Blocking: 50 ms each."""
        return pruned_requests(self.requests, self.values, self.pruner)

    def contexts_earned(self, *, with_tiers: bool) -> Earned:
        """Return the claims on pruned contexts that earlier traffic has earned. Blocking.

        with_tiers: the models answer that the clusters have earned at the end, not the reference
        alone.
        """
        claims = PairedClaims(
            "contexts", "pruned_context", self.pruner.version, self.settings.context.target_error
        )
        return self._paired_earned(self.pruned_requests, claims, with_tiers=with_tiers)

    def briefs_earned(self, *, with_tiers: bool) -> Earned:
        """Return the claims on brief answers that earlier traffic has earned. Blocking.

        with_tiers: as contexts_earned.
        """
        bounds = self.settings.frontier.bounds
        claims = PairedClaims(
            "briefs", "brief_answer", directive_version(bounds.directive or ""),
            bounds.target_error, bounds.holdout,
        )  # fmt: skip
        found = brief_requests(self.requests, self.values)
        return self._paired_earned(found, claims, with_tiers=with_tiers)

    def _paired_earned(
        self, found: Sequence[PairedRequest], claims: PairedClaims, *, with_tiers: bool
    ) -> Earned:
        known = claims.what, with_tiers
        if known not in self._paired:
            present = self.earned.present if with_tiers else {}
            before = TrafficBefore(
                self.requests, self.topics, self.rungs, self.values, present, self.earlier_days
            )
            self._paired[known] = paired_earned(found, before, claims)
        return self._paired[known]

    def arm_folder(self, levers: Sequence[Lever]) -> Path:
        """Return a new folder with the database of an arm, and the evidence of its levers in it."""
        earned = tuple(lever for lever in EARNED if lever in levers)
        if earned not in self._folders:
            folder = self._folders[earned] = self.folder / f"earned-{len(self._folders)}"
            database = opened(None, folder)
            for found in self.all_before(levers):
                _write_evidence(database, found)
            database.close()
        place = self.folder / f"arm-{time.monotonic_ns()}"
        shutil.copytree(self._folders[earned], place)
        return place

    def all_before(self, levers: Sequence[Lever]) -> list[Earned]:
        """Return what earlier traffic has earned for the levers of an arm. Blocking."""
        return [self._before(lever, levers) for lever in EARNED if lever in levers]

    def _before(self, lever: Lever, levers: Sequence[Lever]) -> Earned:
        if lever == "context_pruning":
            return self.contexts_earned(with_tiers="tiers" in levers)
        if lever == "output_bounds":
            return self.briefs_earned(with_tiers="tiers" in levers)
        if lever == "cascade":
            return self.cascades_earned
        return self.earned if lever == "tiers" else self.hits_earned


def _write_evidence(database: Database, earned: Earned) -> None:
    """Write what was earned, in the order of each claim. Blocking: seconds."""
    store = EvidenceStore(database)
    store.register(earned.definitions)
    for is_audit, rows in itertools.groupby(earned.rows, lambda row: isinstance(row, Audit)):
        chosen: list[Any] = list(rows)
        store.append(audits=chosen if is_audit else (), events=() if is_audit else chosen)
