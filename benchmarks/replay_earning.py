"""What the traffic before the replay has earned: the product's claims and planning, simulated.

The replayed requests are too few to earn a tier in each cluster. The same mix is therefore
simulated for some days before them, without any model: what it explored, judged and audited is in
the figures, and its audits are the evidence under which the replay's tiers and hits are served.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.replay_assumptions import Values
from benchmarks.replay_mix import Kind, Request
from benchmarks.replay_provider import CHARS_PER_TOKEN, TopicKind, lost
from benchmarks.tiers_simulation import AT, Judge, Quality, Simulation, TierClaim, Topic
from serving.cache.policy import guards_digest
from serving.cache.semantic import THRESHOLDS, CachedAnswer
from serving.contracts.evidence import (
    Audit,
    Candidate,
    ClaimEvent,
    ClaimState,
    Shortcut,
    claim_id,
)
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.prices import TokenPrices
from serving.contracts.requests import Message
from serving.contracts.routing import Tier
from serving.contracts.tiers_settings import TiersSettings
from serving.evidence.fold import rules_version
from serving.evidence.statistics.judged import judged_pair
from serving.evidence.store import Definition
from serving.tiers.clusters import clustered_text, read_clustering
from serving.tiers.policy import AuditShares, Rung, Traffic, is_cascade_open, ladder
from serving.tiers.shortcut import CascadedTier, CheaperTier, cascade_loss

if TYPE_CHECKING:
    from serving.savings.detection import RememberingEmbedder

TENANT = "default"
EVIDENCE = EvidenceSettings(group_window_s=0.0, max_snapshot_age_s=600.0)
EARLIER_DAYS = 28.0
MONTH_DAYS = 30.0
_PAIRS_OF_A_CONVERSATION = 2.0
_TURNS = 4.0
_MOST_HITS = 2_000


@dataclass(frozen=True, slots=True)
class Topics:
    """The clusters of a mix's open-ended requests. kinds: by the key of a request."""

    clusters: Mapping[str, int]
    names: tuple[str, ...]
    version: str
    of_cluster: Mapping[int, TopicKind]

    @property
    def kinds(self) -> Mapping[str, TopicKind]:
        """Return the kind of topic of each request."""
        return {key: self.of_cluster[cluster] for key, cluster in self.clusters.items()}


def topics_of(
    requests: Sequence[Request], embedder: "RememberingEmbedder", values: Values, seed: int
) -> Topics:
    """Return the shipped clusters of a mix's requests, each easy, hard or a trap. Blocking.

    Which are which is drawn by the seed until their shares of the requests are as assumed.
    """
    clustering = read_clustering(None)
    asked = [one for one in requests if one.kind != "narrow"]
    texts = [
        clustered_text([Message(m["role"], m["content"]) for m in one.messages]) for one in asked
    ]
    vectors = embedder.embed_all(texts) if texts else np.empty((0, 1), np.float32)
    clusters = {
        one.key: clustering.nearest(vector) for one, vector in zip(asked, vectors, strict=True)
    }
    counts = Counter(clusters[one.key] for one in asked)
    return Topics(clusters, clustering.names, clustering.version, _kinds(counts, values, seed))


def _kinds(counts: Mapping[int, int], values: Values, seed: int) -> dict[int, TopicKind]:
    """Return a kind for each cluster: traps while their share fits, then easy ones, then hard."""

    def drawn(cluster: int) -> str:
        return hashlib.sha256(f"{seed}/{cluster}".encode()).hexdigest()

    left = sum(counts.values())
    wanted: dict[TopicKind, float] = {
        "trap": values["trap"] * left, "easy": values["easy"] * left,
    }  # fmt: skip
    found: dict[int, TopicKind] = {}
    for cluster in sorted(counts, key=drawn):
        # The one that is nearest to its share: a large cluster may go a little beyond it.
        kind = next((k for k, n in wanted.items() if counts[cluster] <= 1.2 * n), None)
        found[cluster] = kind or "hard"
        if kind is not None:
            wanted[kind] -= counts[cluster]
    return found


@dataclass(frozen=True, slots=True)
class Earned:
    """What was earned before the replay. what: tiers, hits, cascades, contexts or briefs.

    definitions, rows: of every claim, in their order.

    traffic: by cluster as the ledger names it. until: their end. requests: open-ended ones that
    were simulated. reference_usd: at the reference. answers_usd: that clients got. explored_usd,
    audited_usd: behind them. settled_at, paid_back_at: after which of the requests no cluster
    changed its tier, and the cost was below the reference's; None where never. late_usd: what the
    same requests would have saved, net, as at their end. tiers: shares of the requests by their
    tier at the end. present: tier by cluster at the end. hits, hits_usd: of hits and cascades,
    compared until their claims were held or given up, and what that cost. states: of contexts
    and briefs, the state of each model's claim at the end, and its share of the requests.
    """

    what: str
    definitions: tuple[Definition, ...]
    rows: tuple[Audit | ClaimEvent, ...]
    traffic: Mapping[tuple[str, str], Traffic]
    until: datetime
    requests: int = 0
    reference_usd: float = 0.0
    answers_usd: float = 0.0
    explored_usd: float = 0.0
    audited_usd: float = 0.0
    settled_at: int = 0
    paid_back_at: int | None = None
    late_usd: float = 0.0
    tiers: Mapping[str, float] | None = None
    present: Mapping[int, str] = field(default_factory=dict)
    hits: int = 0
    hits_usd: float = 0.0
    states: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def net_usd(self) -> float:
        """Return what was saved, less all that earning and watching cost."""
        spent = self.answers_usd + self.explored_usd + self.audited_usd + self.hits_usd
        return self.reference_usd - spent


def realised(earned: Sequence[Earned]) -> float:
    """Return what was saved before, net, as a share of what it would have been as at the end.

    1 where nothing is saved at the end.
    """
    late = sum(one.late_usd for one in earned)
    return sum(one.net_usd for one in earned) / late if late > 0.0 else 1.0


@dataclass(frozen=True, slots=True)
class Rungs:
    """The tiers of the replay. start: of the reference. cheaper: below it. judge: that compares."""

    start: Rung
    cheaper: tuple[Rung, ...]
    judge: Rung


def earned(
    requests: Sequence[Request],
    topics: Topics,
    rungs: Rungs,
    values: Values,
    tiers: TiersSettings,
    *,
    days: float = EARLIER_DAYS,
    seed: int = 1,
) -> Earned:
    """Simulate the days before the replay. Blocking: seconds."""
    asked = [one for one in requests if one.kind != "narrow" and not one.is_repeat]
    if not asked:
        return Earned("tiers", (), (), {}, AT)
    share = len(asked) / len(requests)
    count = max(1, round(days * 86_400 / values["arrival_s"] * share))
    topic_of = {
        cluster: _topic(cluster, found, topics, rungs, values)
        for cluster, found in _by_cluster(asked, topics).items()
    }
    shortcuts = {
        (topic.name, rung.tier): CheaperTier(
            cluster, topics.version, rung.tier, rung.model, rungs.judge.model, tiers.target_error
        )
        for cluster, topic in topic_of.items()
        for rung in rungs.cheaper
    }
    simulation = Simulation(
        requests=count, days=days, budget_usd_a_day=tiers.explore_usd_a_day,
        payback_days=tiers.payback_days, judge=Judge(values["slip"], values["place"]),
        judged_by=rungs.judge,
        audits=AuditShares(
            tiers.audit_share_of_saving, tiers.audit_floor, tiers.audit_high,
            tiers.audit_high_requests, tiers.audit_settled,
        ),
        settings=EVIDENCE, topics=list(topic_of.values()), start=rungs.start,
        cheaper=rungs.cheaper,
        defined=lambda topic, rung: defined(shortcuts[topic.name, rung.tier], rungs.start.model),
    )  # fmt: skip
    course = simulation.course(seed)
    result = course.run()
    claims = course.claims.values()
    weights: dict[str, float] = defaultdict(float)
    for topic in topic_of.values():
        weights[result.assignment[topic.name]] += topic.weight / len(asked)
    return Earned(
        "tiers",
        tuple(defined(shortcut, rungs.start.model) for shortcut in shortcuts.values()),
        tuple(row for claim in claims for row in of_people(claim)),
        {
            (TENANT, f"{topics.version}/{cluster}/{rungs.start.tier}"): course.traffic(topic)
            for cluster, topic in topic_of.items()
        },
        AT + timedelta(days=days), count, result.reference_usd, result.answers_usd,
        result.explored_usd, result.audited_usd, result.settled_at, result.paid_back_at,
        result.late_saving * result.reference_usd, dict(weights),
        {cluster: result.assignment[topic.name] for cluster, topic in topic_of.items()},
    )  # fmt: skip


def hits_earned(
    values: Values, judge: TokenPrices, tokens: tuple[float, float], encoder: str, model: str
) -> Earned:
    """Return the evidence of hits by meaning, until their claim is held. Blocking: a second.

    tokens: of a question and of an answer. Every hit is judged in shadow, in which the client gets
    the model's answer: the judge alone is a cost.
    """
    threshold = THRESHOLDS["default"]
    shortcut = CachedAnswer("chat/frontier", encoder, threshold, guards_digest())
    definition = defined(shortcut, model)
    claim = TierClaim.of("hits", EVIDENCE, definition)
    errs, draw = Judge(values["slip"], values["place"]), np.random.default_rng(1)
    at = AT
    count = 0
    while claim.claim.state is not ClaimState.HELD and count < _MOST_HITS:
        count += 1
        at += timedelta(seconds=values["arrival_s"] * 10)
        loss = judged_pair(*errs.pair("same", draw)).badly_worse
        claim.add(
            Audit(
                definition.id, f"hit-{count}", str(count), str(count), "shadow", 1.0,
                "different" if loss else "same", loss, model,
                (Candidate("model", 0.97, loss),), drawn_at=at, judged_at=at,
            )
        )  # fmt: skip
    judging = Traffic(1, 1.0, *tokens).judging_usd(judge)
    return Earned(
        "hits", (definition,), tuple(of_people(claim)), {}, at, hits=count,
        hits_usd=count * judging,
    )  # fmt: skip


def cascades_earned(
    before: Earned, topics: Topics, rungs: Rungs, values: Values, target_error: float
) -> Earned:
    """Return the evidence of the cheapest tier's cascade in each cluster that has not earned it.

    before: of the tiers. Until the claim is held, or 600 pairs have placed no threshold. Blocking:
    seconds.
    """
    errs, draw = Judge(values["slip"], values["place"]), np.random.default_rng(2)
    cheapest = rungs.cheaper[-1] if rungs.cheaper else None
    definitions: list[Definition] = []
    rows: list[Audit | ClaimEvent] = []
    pairs, usd = 0, 0.0
    for cluster, tier in before.present.items():
        if cheapest is None or tier == cheapest.tier:
            continue
        kind = topics.of_cluster[cluster]
        worse = lost(kind, cheapest.tier, values) - lost(kind, rungs.start.tier, values)
        shortcut = CascadedTier(
            cluster, topics.version, cheapest.tier, cheapest.model, rungs.judge.model, "samples",
            target_error,
        )  # fmt: skip
        claim = TierClaim.of("cascade", EVIDENCE, defined(shortcut, rungs.start.model))
        traffic = before.traffic[TENANT, f"{topics.version}/{cluster}/{rungs.start.tier}"]
        number = 0
        while is_cascade_open(claim.claim) and number < _MOST_HITS:
            number += 1
            claim.add(_cascade_audit(claim, number, worse, values, errs, draw))
        definitions.append(defined(shortcut, rungs.start.model))
        rows += of_people(claim)
        pairs += number
        pair_usd = 2 * traffic.cost_usd(cheapest.prices) + traffic.judging_usd(rungs.judge.prices)
        usd += number * pair_usd
    return Earned(
        "cascades", tuple(definitions), tuple(rows), {}, before.until, hits=pairs, hits_usd=usd
    )


def _cascade_audit(
    claim: TierClaim,
    number: int,
    worse: float,
    values: Values,
    errs: Judge,
    draw: np.random.Generator,
) -> Audit:
    at = AT + timedelta(minutes=number)
    is_worse = draw.random() < worse
    agrees = draw.random() < values["agree_wrong" if is_worse else "agree_right"]
    loss = cascade_loss(judged_pair(*errs.pair("worse" if is_worse else "same", draw)))
    candidate = Candidate("model", 1.0 if agrees else float(draw.uniform(0.2, 0.8)), loss)
    return Audit(
        claim.claim.id, f"pair-{number}", str(number), str(number), "shadow", 1.0,
        "different" if loss else "same", loss, claim.claim.reference, (candidate,), drawn_at=at,
        judged_at=at,
    )  # fmt: skip


def defined(shortcut: Shortcut, reference: str) -> Definition:
    """Return a shortcut's claim as the service defines it."""
    scope = shortcut.scope(
        TENANT, pooled=False, taken=(shortcut.name,), rules=rules_version(EVIDENCE)
    )
    name = claim_id(scope, shortcut.loss, shortcut.target_error, reference)
    return Definition(
        name, scope, shortcut.name, shortcut.loss, shortcut.target_error, reference, False, AT
    )


def of_people(claim: TierClaim) -> list[Audit | ClaimEvent]:
    """Return the rows that the service's worker does not derive by itself."""
    derived = ("earned", "suspended", "not_earnable")
    return [row for row in claim.rows if isinstance(row, Audit) or row.kind not in derived]


def _by_cluster(asked: Sequence[Request], topics: Topics) -> dict[int, list[Request]]:
    found: dict[int, list[Request]] = defaultdict(list)
    for one in asked:
        found[topics.clusters[one.key]].append(one)
    return dict(sorted(found.items()))


def _topic(
    cluster: int, found: Sequence[Request], topics: Topics, rungs: Rungs, values: Values
) -> Topic:
    kind = topics.of_cluster[cluster]

    def quality(tier: Tier) -> Quality:
        worse = max(0.0, lost(kind, tier, values) - lost(kind, rungs.start.tier, values))
        return Quality(worse, badly=values["badly"])

    turns = sum(one.kind == "turns" for one in found) / len(found)
    return Topic(
        topics.names[cluster], quality("standard"), quality("economy"), weight=float(len(found)),
        input_tokens=float(np.mean([_chars(one) / CHARS_PER_TOKEN for one in found])),
        output_tokens=float(np.mean([mean_tokens(one.kind, values) for one in found])),
        counted=1.0 - turns * (1.0 - _PAIRS_OF_A_CONVERSATION / _TURNS),
    )  # fmt: skip


def _chars(one: Request) -> int:
    return sum(len(message["content"]) for message in one.messages)


def mean_tokens(kind: Kind, values: Values) -> float:
    """Return the mean length of the reference's answers: of a lognormal."""
    median = values["medium_tokens" if kind == "turns" else f"{kind}_tokens"]
    return float(median * np.exp(values["spread"] ** 2 / 2))


def rungs_of(
    prices: Mapping[Tier, tuple[str, TokenPrices]], start: Tier, judge: Tier = "economy"
) -> Rungs:
    """Return the tiers of a replay. prices: model and prices of each tier."""
    found = {tier: Rung(tier, model, price) for tier, (model, price) in prices.items()}
    return Rungs(found[start], ladder(found[start], list(found.values())), found[judge])
