"""What people do with claims: show, withdraw, label. For the admin API and the command line.

Every function is blocking and raises LedgerUnavailable.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter

from serving.contracts.errors import InvalidRequest, NotFound
from serving.contracts.evidence import Audit, Claim, ClaimEvent, ClaimState
from serving.evidence.statistics.intervals import mean_sequence
from serving.evidence.store import EvidenceStore

_CLAIM: TypeAdapter[Claim] = TypeAdapter(Claim)
_EVENT: TypeAdapter[ClaimEvent] = TypeAdapter(ClaimEvent)
_POINTS = 200


@dataclass(frozen=True, slots=True)
class Label:
    """A person's label of one audited input. index: among the request's inputs of the claim."""

    request_id: str
    label: str
    index: int = 0


def listed(store: EvidenceStore) -> list[dict[str, Any]]:
    """Return every claim as a JSON document, those in force first."""
    claims = sorted(
        store.states().claims.values(),
        key=lambda claim: (claim.state is not ClaimState.HELD, claim.scope.subject, claim.id),
    )
    return [document(claim) for claim in claims]


def document(claim: Claim) -> dict[str, Any]:
    """Return a claim as a JSON document."""
    found: dict[str, Any] = _CLAIM.dump_python(claim, mode="json")
    return found


def shown(store: EvidenceStore, name: str, actor: str) -> dict[str, Any]:
    """Return a claim with its events, the course of its error, and people's labels.

    Noted as an act. Raises NotFound.
    """
    claim = require(store, name)
    store.act(actor, "show", name)
    rows = _rows(store, name)
    events = [row for row in rows if isinstance(row, ClaimEvent)]
    audits = [row for row in rows if isinstance(row, Audit)]
    return {
        "claim": document(claim),
        "events": [_EVENT.dump_python(event, mode="json") for event in events],
        "course": _course(claim, audits),
        "verdicts": {
            verdict: sum(audit.verdict == verdict for audit in audits)
            for verdict in ("same", "different", "missing", "dropped")
        },
        "people": _people(audits),
    }


def withdraw(store: EvidenceStore, name: str, reason: str, actor: str) -> None:
    """Withdraw a claim for good. Raises NotFound, and InvalidRequest for one that is withdrawn."""
    claim = require(store, name)
    if claim.state is ClaimState.WITHDRAWN:
        raise InvalidRequest(f"the claim {name!r} is withdrawn already", field="claim")
    if not reason.strip():
        raise InvalidRequest("a withdrawal needs a reason", field="reason", fix="say why")
    now = datetime.now(UTC)
    event = ClaimEvent(name, "withdrawn", reason, actor, now, claim.sequence)
    store.append(events=[event])
    store.save([
        replace(
            claim, state=ClaimState.WITHDRAWN, action=None, since=now, reason=reason
        )
    ])  # fmt: skip
    store.act(actor, "withdraw", name)


def label(store: EvidenceStore, name: str, labels: Sequence[Label], actor: str) -> int:
    """Note a person's labels of audited inputs; return how many were new.

    Raises NotFound, and InvalidRequest where a request has no such audited input.
    """
    require(store, name)
    audits: dict[str, list[Audit]] = {}
    for row in _rows(store, name):
        if isinstance(row, Audit) and row.origin != "person" and row.request_id:
            audits.setdefault(row.request_id, []).append(row)
    found = []
    for item in labels:
        known = audits.get(item.request_id, [])
        if not 0 <= item.index < len(known):
            raise InvalidRequest(
                f"request {item.request_id!r} has no audited input {item.index} of claim {name!r}",
                field="request_id",
                fix="only inputs that were audited can be labelled",
            )
        found.append(_labelled(known[item.index], item, actor))
    count = len(store.append(found))
    store.act(actor, f"label {count}", name)
    return count


def require(store: EvidenceStore, name: str) -> Claim:
    """Return a claim. Raises NotFound."""
    claim = store.states().claims.get(name)
    if claim is None:
        raise NotFound(
            f"there is no claim {name!r}", field="claim", fix="narrowgate evidence list shows them"
        )
    return claim


def _labelled(audit: Audit, item: Label, actor: str) -> Audit:
    differs = audit.served != item.label
    return replace(
        audit,
        input=f"{audit.input}/{actor}",
        origin="person",
        coin=None,
        verdict="different" if differs else "same",
        loss=float(differs),
        reference="people",
        candidates=(),
        label=item.label,
        cost_usd=None,
        accepted=0,
        judged_at=datetime.now(UTC),
        sequence=0,
    )


def _rows(store: EvidenceStore, name: str) -> list[Audit | ClaimEvent]:
    found: list[Audit | ClaimEvent] = []
    while rows := store.rows_after(found[-1].sequence if found else 0, name):
        found += rows
    return found


def _course(claim: Claim, audits: Sequence[Audit]) -> list[dict[str, Any]]:
    """Return the confidence sequence of the present hypothesis at up to 200 of its audits."""
    number = 0 if claim.action is None else claim.action.hypothesis
    own = [
        audit
        for audit in audits
        if audit.origin == "accepted" and audit.hypothesis == number and audit.loss is not None
    ]
    step = max(1, len(own) // _POINTS)
    losses, points = 0.0, []
    for count, audit in enumerate(own, 1):
        losses += audit.loss or 0.0
        if count % step == 0 or count == len(own):
            found = mean_sequence(losses, count)
            points.append({
                "at": audit.judged_at.isoformat(), "audits": count, "error": found.mean,
                "low": found.low, "high": found.high,
            })  # fmt: skip
    return points


def _people(audits: Sequence[Audit]) -> dict[str, Any]:
    """Return how often people's labels differ from served answers, and from each other."""
    by_input: dict[str, list[str]] = {}
    wrong = 0
    for audit in audits:
        if audit.origin == "person":
            by_input.setdefault(audit.input.rpartition("/")[0], []).append(audit.label or "")
            wrong += audit.verdict == "different"
    labels = sum(map(len, by_input.values()))
    twice = [found for found in by_input.values() if len(found) > 1]
    interval = mean_sequence(wrong, labels)
    return {
        "labels": labels,
        "served_error": interval.mean if labels else None,
        "interval": [interval.low, interval.high] if labels else None,
        "labelled_twice": len(twice),
        "agreement": sum(len(set(found)) == 1 for found in twice) / len(twice) if twice else None,
    }
