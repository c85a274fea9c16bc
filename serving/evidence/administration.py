"""What people do with claims: show, withdraw, label. For the admin API and the command line.

Every function is blocking and raises LedgerUnavailable.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from typing import Any, get_args

from pydantic import TypeAdapter

from serving.contracts.errors import InvalidRequest, NotFound
from serving.contracts.evidence import (
    AWAITED,
    PEOPLE,
    Audit,
    Candidate,
    Claim,
    ClaimEvent,
    ClaimState,
    Verdict,
)
from serving.evidence.history import Period, history
from serving.evidence.kept_texts import KeptText, KeptTexts
from serving.evidence.people_error import labelled_row_candidates
from serving.evidence.statistics.people import agreement
from serving.evidence.store import EvidenceStore

_CLAIM: TypeAdapter[Claim] = TypeAdapter(Claim)
_EVENT: TypeAdapter[ClaimEvent] = TypeAdapter(ClaimEvent)
_UNANSWERED = "unanswered"
_LONGEST_PERSON = 200


@dataclass(frozen=True, slots=True)
class Label:
    """A person's label of one audited input, by the input's name."""

    input: str
    label: str


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


@dataclass(frozen=True, slots=True)
class ClaimDetails:
    """A claim with everything that its page and `show` print. people: what labels say."""

    claim: Claim
    events: Sequence[ClaimEvent]
    audits: Sequence[Audit]
    periods: Sequence[Period]
    people: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        periods = [period.document() for period in self.periods]
        is_held = self.claim.state is ClaimState.HELD
        return {
            "claim": document(self.claim),
            "events": [_EVENT.dump_python(event, mode="json") for event in self.events],
            "course": periods[-1]["points"] if is_held else [],
            "periods": periods,
            "verdicts": self._verdicts(),
            "people": dict(self.people),
        }

    def _verdicts(self) -> dict[str, int]:
        """Return how many audits ended in each verdict, and how many inputs await a label.

        unanswered: the reference answered and nothing local did, as before the first head.
        """
        judged = {audit.input for audit in self.audits}
        counted = Counter(
            _UNANSWERED if audit.verdict == "different" and audit.loss is None else audit.verdict
            for audit in self.audits
            if audit.verdict != "awaited" or audit.input.removesuffix(AWAITED) not in judged
        )
        return {verdict: counted[verdict] for verdict in (*get_args(Verdict), _UNANSWERED)}


def claim_details(
    store: EvidenceStore, name: str, actor: str, texts: KeptTexts | None = None
) -> ClaimDetails:
    """Return a claim with its events, the course of its error, and people's labels.

    Noted as an act. Raises NotFound.
    """
    claim = require(store, name)
    store.act(actor, "show", name)
    rows = _rows(store, name)
    events = [row for row in rows if isinstance(row, ClaimEvent)]
    audits = [row for row in rows if isinstance(row, Audit)]
    begun = next((item.has_suite for item in store.definitions() if item.id == name), False)
    periods = history("provisional" if begun else "shadow", rows)
    return ClaimDetails(claim, events, audits, periods, _people(claim, audits, texts))


def withdraw(store: EvidenceStore, name: str, reason: str, actor: str) -> None:
    """Withdraw a claim for good. Raises NotFound, and InvalidRequest for one that is withdrawn."""
    claim = require(store, name)
    if claim.state is ClaimState.WITHDRAWN:
        raise InvalidRequest(
            f"the claim {name!r} is withdrawn already",
            field="claim",
            fix="leave it: a withdrawn claim is not in force",
        )
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


def sampled(
    store: EvidenceStore, texts: KeptTexts | None, name: str, person: str, count: int
) -> list[KeptText]:
    """Return a random sample of a claim's kept texts that a person has not labelled.

    Noted as an act, with the number of texts that were read. Raises NotFound, InvalidRequest.
    """
    texts = _require_texts(texts)
    _require_person(person)
    require(store, name)
    found = texts.sample(name, person, count)
    store.act(person, f"read {len(found)} texts", name)
    return found


def label(
    store: EvidenceStore,
    texts: KeptTexts | None,
    name: str,
    labels: Sequence[Label],
    actor: str,
) -> int:
    """Note a person's labels of audited inputs; return how many were new.

    Where people are the reference, the first label of an input is its verdict. Raises NotFound, and
    InvalidRequest where an input's text is not kept or the task has no such label.
    """
    texts = _require_texts(texts)
    _require_person(actor)
    require(store, name)
    known = texts.find(name, (item.input for item in labels))
    now = datetime.now(UTC)
    rows, verdicts = [], []
    for item in labels:
        kept = known.get(item.input)
        if kept is None:
            raise InvalidRequest(
                f"claim {name!r} has no kept text of input {item.input!r}",
                field="input",
                fix="label inputs of an export: narrowgate evidence label CLAIM --export FILE",
            )
        if item.label not in kept.labels:
            raise InvalidRequest(
                f"the task has no label {item.label!r}",
                field="label",
                fix=f"use one of {', '.join(kept.labels)}",
            )
        rows.append(_labelled(kept.audit, item.label, actor, now))
        if kept.is_pending:
            verdicts.append(_verdict(kept, item.label, now))
    # In the order of their inputs: a group of evidence is complete once a later input came.
    verdicts.sort(key=lambda audit: audit.drawn_at)
    count = sum(row.origin == "person" for row in store.append([*rows, *verdicts])
                if isinstance(row, Audit))  # fmt: skip
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


def _require_texts(texts: KeptTexts | None) -> KeptTexts:
    if texts is None:
        raise InvalidRequest(
            "no text is kept, so there is nothing that people could label",
            field="evidence.keep_texts",
            fix="set evidence.keep_texts to a number of days; later audited inputs are kept",
        )
    return texts


def _require_person(person: str) -> None:
    is_readable = person.isprintable() and 0 < len(person) <= _LONGEST_PERSON
    if not is_readable or "/" in person or person == AWAITED.strip("/"):
        raise InvalidRequest(
            f"{person[:60]!r} is not a person's name",
            field="person",
            fix="name a person in up to 200 characters, without a slash and not by a state of an "
            "input",
        )


def _labelled(audit: Audit, label: str, actor: str, now: datetime) -> Audit:
    differs = audit.served != label
    return replace(
        audit,
        input=f"{audit.input}/{actor}",
        origin="person",
        coin=None,
        verdict="different" if differs else "same",
        loss=float(differs),
        reference=PEOPLE,
        candidates=() if audit.reference == PEOPLE else labelled_row_candidates(audit, label),
        label=label,
        cost_usd=None,
        accepted=0,
        judged_at=now,
        sequence=0,
    )


def _verdict(kept: KeptText, label: str, now: datetime) -> Audit:
    """Return the row of an input whose verdict is a person's label."""
    differs = kept.audit.served != label
    candidates = tuple(
        Candidate(found.name, found.confidence, float(not found.valid or found.value != label))
        for found in kept.proposed
    )
    return replace(
        kept.audit,
        verdict="different" if differs else "same",
        loss=float(differs),
        candidates=candidates,
        label=label,
        judged_at=now,
    )


def _most_in_common(labels: Mapping[str, Mapping[str, str]]) -> tuple[str, str] | None:
    """Return the two people who labelled the most inputs in common; None where nobody did.

    Kappa is of two people: labels by who came first would mix what each of them tends to say.
    """
    found, most = None, 0
    for one, other in combinations(sorted(labels), 2):
        common = len(_paired(labels[one], labels[other]))
        if common > most:
            found, most = (one, other), common
    return found


def _paired(one: Mapping[str, str], other: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(one[name], other[name]) for name in sorted(one.keys() & other.keys())]


def _rows(store: EvidenceStore, name: str) -> list[Audit | ClaimEvent]:
    found: list[Audit | ClaimEvent] = []
    while rows := store.rows_after(found[-1].sequence if found else 0, name):
        found += rows
    return found


def _people(claim: Claim, audits: Sequence[Audit], texts: KeptTexts | None) -> dict[str, Any]:
    """Return what people's labels say of served answers, of the reference, and of each other.

    texts: kept now; None where none are.
    """
    labels: dict[str, dict[str, str]] = {}
    rows = [audit for audit in audits if audit.origin == "person"]
    for audit in rows:
        name, _, person = audit.input.rpartition("/")
        # The label of an input that was erased is gone.
        if audit.label is not None:
            labels.setdefault(person, {})[name] = audit.label
    pair = _most_in_common(labels)
    both = None if pair is None else agreement(_paired(*(labels[person] for person in pair)))
    return {
        "labels": len(rows),
        "inputs": len({audit.input.rpartition("/")[0] for audit in rows}),
        "error": None if claim.people is None else claim.people.model_dump(mode="json"),
        "agreement": None
        if both is None
        else {
            "people": pair,
            "inputs": both.inputs,
            "share": both.share.mean,
            "interval": [both.share.low, both.share.high],
            "kappa": both.kappa,
        },
        "texts_kept": None if texts is None else texts.count(claim.id),
    }
