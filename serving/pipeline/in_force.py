"""Whether the model, attestation and claim of a cached answer are still in force."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import uuid4

from serving.cache.entry import AnswerOrigin
from serving.contracts.context import RequestContext
from serving.contracts.errors import LedgerUnavailable
from serving.contracts.evidence import Action, ClaimState
from serving.contracts.exits import HEAD_PREFIX, NO_MODEL
from serving.evidence.rulings import Evidence
from serving.pipeline.exit_recorder import Served
from serving.pipeline.reading_claims import ReadingClaims
from serving.pipeline.runner import BoundTask

_THIS_PROCESS = uuid4().hex
"""Version of a model without an attestation: its files may change before the next start."""
_UNKNOWN = "unknown"
"""In the place of a chat's digest, where its claim could not be told: never in force."""


@dataclass(frozen=True, slots=True)
class InForce:
    """Compares the origin of a cached answer with the models and claims in force now.

    tasks: of the local models, by name. evidence: None where no claims are used. readings: the
    claims on reading chats as tasks; None where there are none.
    """

    tasks: Mapping[str, BoundTask]
    evidence: Evidence | None
    readings: ReadingClaims | None = None

    def origin(
        self,
        served: Served,
        task: str | None,
        text: str | None,
        chat: str | None = None,
        context: RequestContext | None = None,
    ) -> AnswerOrigin:
        """Return what an answer depends on. text: the task's input.

        chat: that was read as the task, None for an input that names it; context: of its request.
        """
        if served.route != "local":
            action = None if served.claim is None else self._action_of(served.claim)
            return AnswerOrigin(
                served.route, served.model, task=task, claim=served.claim, action=action,
                evidence=served.evidence,
            )  # fmt: skip
        action = digest = None
        if served.claim is not None and self.evidence is not None:
            claim = self.evidence.snapshot.find(served.claim)
            action = None if claim is None else _action_name(claim.action)
            digest = None if text is None else self.evidence.text_digest(served.claim, text)
        return AnswerOrigin(
            served.route, served.model, self._version(served.model), task, served.claim, action,
            digest, served.guaranteed, served.evidence, self._read(task, chat, context),
        )  # fmt: skip

    def _read(
        self, task: str | None, chat: str | None, context: RequestContext | None
    ) -> str | None:
        """Return the digest of a chat that was read as a task; None for other answers."""
        if self.readings is None or task is None or chat is None or context is None:
            return None
        try:
            name = self.readings.ruling(task, context).name
        except LedgerUnavailable:
            return _UNKNOWN
        return self.readings.evidence.text_digest(name, chat)

    def _covers_reading(self, task: str, digest: str, context: RequestContext) -> bool:
        """Return whether a chat would still be answered as the task that was read in it."""
        if self.readings is None or digest == _UNKNOWN:
            return False
        try:
            ruling = self.readings.ruling(task, context)
        except LedgerUnavailable:
            return False
        if ruling.standing.mode == "suite":
            return True
        claim = self.readings.evidence.snapshot.find(ruling.name)
        is_held = ruling.standing.mode == "claim" and claim is not None
        return is_held and claim is not None and digest not in claim.escalate

    def covers(self, origin: AnswerOrigin, context: RequestContext) -> bool:
        """Return whether the same answer would still be served to the request."""
        if origin.route != "local":
            return origin.claim is None or self._covers_chat(origin, origin.claim, context)
        if origin.version != self._version(origin.model):
            return False
        return origin.task is None or self._covers_task(origin, origin.task, context)

    def _covers_chat(self, origin: AnswerOrigin, name: str, context: RequestContext) -> bool:
        """Return whether an open-ended answer's claims still hold, and the request takes it."""
        options = context.options
        if options.deterministic or options.quality == "reference":
            return False
        return origin.action is not None and origin.action == self._action_of(name)

    def _action_of(self, names: str) -> str | None:
        """Return what claims allow now; None where one is not held or not known.

        names: of an answer's claims, comma-separated.
        """
        actions = []
        for name in names.split(","):
            claim = None if self.evidence is None else self.evidence.snapshot.find(name)
            if claim is None or claim.state is not ClaimState.HELD or claim.action is None:
                return None
            actions.append(_action_name(claim.action))
        return ",".join(filter(None, actions))

    def _version(self, model: str) -> str:
        """Return the attestations that cover a local model, or this process where there is none."""
        if model.startswith(HEAD_PREFIX):
            # The name of a head holds its version.
            return model
        digests = {
            bound.grant.attestation
            for bound in self.tasks.values()
            if bound.engine.model_id == model and bound.grant.attestation is not None
        }
        return ",".join(sorted(digests)) or _THIS_PROCESS

    def _covers_task(self, origin: AnswerOrigin, task: str, context: RequestContext) -> bool:
        evidence, bound = self.evidence, self.tasks.get(task)
        if bound is None:
            return False
        has_model = bound.grant.refusal is None
        if not has_model and not origin.model.startswith(HEAD_PREFIX):
            return False
        if evidence is None or not evidence.settings.enabled or context.options.deterministic:
            return origin.claim is None
        if origin.reading is not None and not self._covers_reading(task, origin.reading, context):
            return False
        model = bound.engine.model_id if has_model else NO_MODEL
        shortcut = evidence.local_task(bound.task.spec, model, bound.grant)
        try:
            standing = evidence.ruling(shortcut, context).standing
        except LedgerUnavailable:
            return False
        if standing.mode == "suite":
            return origin.claim is None
        if standing.mode != "claim" or standing.claim is None:
            return False
        now = (standing.claim, _action_name(standing.action))
        return (origin.claim, origin.action) == now and not self._is_listed(origin, standing.claim)

    def _is_listed(self, origin: AnswerOrigin, name: str) -> bool:
        """Return whether the claim lists the input as one that is often answered wrongly."""
        assert self.evidence is not None
        claim = self.evidence.snapshot.find(name)
        return claim is not None and origin.text is not None and origin.text in claim.escalate


def _action_name(action: Action | None) -> str | None:
    """Return the name of a claim's action, which changes with its head or threshold."""
    return None if action is None else f"{action.candidate}>={action.threshold!r}"
