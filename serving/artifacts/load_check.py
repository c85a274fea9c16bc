"""The checks of a replica before it loads a model, and a gateway's grants."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from serving.artifacts.accepted import AcceptedAttestations
from serving.artifacts.checkpoint import Checkpoint
from serving.artifacts.digest_cache import DigestCache, Identity
from serving.artifacts.probes import refuse_other_answers
from serving.artifacts.trust import (
    Attestation,
    TrustPolicy,
    attestation_path,
    model_entries,
    read_attestation,
    refuse_changed_entries,
    refuse_other_arguments,
    refuse_other_engine,
    refuse_other_kernels,
    verify_files,
)
from serving.contracts.attestation import Verdict
from serving.contracts.engine import ScoreOutput
from serving.contracts.engine_arguments import ArgumentValue, refusal_reason, unlisted_arguments
from serving.contracts.errors import (
    AttestationRefused,
    InvalidKey,
    InvalidSettings,
    NarrowgateError,
    TaskNotAttested,
)
from serving.contracts.settings import ModelSettings, Settings
from serving.contracts.task_spec import TaskSpec
from serving.tasks.grant import Grant

logger = logging.getLogger(__name__)

CONFIG_KEY = "narrowgate_load_check"
"""Where an engine replica finds its LoadCheck, in LLMConfig.experimental_configs."""


METRICS_PORT_KEY = "narrowgate_metrics_port"
"""Where an engine replica finds the port of its own /metrics there; None for none."""


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """The engine that loads a model, with all its arguments and its whole environment."""

    name: str
    version: str
    arguments: Mapping[str, ArgumentValue]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class VerifiedModel:
    """A model that matched its attestation. entries: those of its folder before it was read."""

    attestation: Attestation
    folder: Path
    entries: Mapping[Path, Identity]


@dataclass(frozen=True, slots=True)
class LoadCheck:
    """How one model's attestation is checked. envelope: its file, None for the model's folder.

    cache: file of known digests; None reads every byte at every load. accepted: the newest
    attestation that was accepted. allow_older: accept an older one than that. development: a
    refusal is logged and the model is loaded. artifact: digest (hex) of the only model that may be
    loaded; None where the attestation alone decides.
    """

    model_id: str
    checkpoint: Checkpoint
    envelope: Path | None
    policy: TrustPolicy
    cache: Path | None
    accepted: AcceptedAttestations
    allow_older: bool
    development: bool
    artifact: str | None = None

    @classmethod
    def of(
        cls,
        settings: Settings,
        model: ModelSettings,
        checkpoint: Checkpoint,
        artifact: str | None = None,
    ) -> "LoadCheck":
        """Return the check that the settings ask for. artifact: as in the class."""
        rules = settings.attestation
        return cls(
            model_id=model.id,
            checkpoint=checkpoint,
            envelope=model.attestation or checkpoint.envelope,
            policy=TrustPolicy(rules.trusted_keys, rules.max_age_days),
            cache=None if rules.strict else (settings.state / "digests.json").resolve(),
            accepted=AcceptedAttestations((settings.state / "attestations").resolve(), model.id),
            allow_older=rules.allow_older,
            development=rules.development,
            artifact=artifact,
        )

    def attestation(self) -> Attestation | None:
        """Return the verified statement, before any file is looked at.

        None where there is no valid one and development allows it. Blocking, milliseconds; for a
        hub id, fetches the envelope. Raises AttestationRefused, InvalidKey.
        """
        try:
            path = attestation_path(self.checkpoint.folder_of("attestation.json"), self.envelope)
            found = read_attestation(path, self.policy)
            self._refuse_other_artifact(found)
            if not self.allow_older:
                self.accepted.refuse_older(found)
        except (AttestationRefused, InvalidKey) as error:
            self.refused(error)
            return None
        return found

    def verify(self, engine: RunningEngine) -> VerifiedModel | None:
        """Return the model once every file and the engine match its attestation.

        Called before a model is loaded; `accept` is called after it. Blocking: reads the files that
        are not known to be unchanged; for a hub id, fetches them. None where development allows a
        difference. Raises AttestationRefused, InvalidKey, and InvalidSettings for an engine
        argument that is never allowed.
        """
        refuse_unlisted_arguments(engine.arguments)
        found = self.attestation()
        if found is None:
            return None
        try:
            cache = DigestCache(self.cache) if self.cache is not None else None
            refuse_other_engine(found, engine.name, engine.version)
            refuse_other_arguments(found, engine.arguments, engine.environment)
            folder = self.checkpoint.folder()
            entries = model_entries(folder)
            verify_files(folder, found, cache)
        except AttestationRefused as error:
            self.refused(error)
            return None
        return VerifiedModel(found, folder, entries)

    def accept(
        self,
        verified: VerifiedModel,
        kernels: Mapping[str, str],
        outputs: Sequence[ScoreOutput | NarrowgateError],
    ) -> str | None:
        """Return the envelope's digest once the loaded engine's probe answers match the gate's.

        outputs: answers to the attestation's probes (`probe_works`). The attestation is then
        remembered as the newest one. None where development allows a difference. Raises
        AttestationRefused, also where the folder has changed since it was verified, EngineFailure.
        """
        found = verified.attestation
        try:
            refuse_changed_entries(verified.folder, verified.entries)
            refuse_other_kernels(found, kernels)
            refuse_other_answers(found.predicate.probes, outputs)
        except AttestationRefused as error:
            self.refused(error)
            return None
        self.accepted.remember(found)
        return found.digest

    def _refuse_other_artifact(self, found: Attestation) -> None:
        if self.artifact is not None and found.root != self.artifact:
            raise AttestationRefused(
                f"the attestation is of sha256-{found.root}, and this release serves "
                f"sha256-{self.artifact}",
                fix="fetch the release's model, or render the release again for this one",
            )

    def refused(self, error: AttestationRefused | InvalidKey) -> None:
        """Raise the error, or log it in development mode."""
        if not self.development:
            raise error
        logger.warning(
            "DEVELOPMENT: attestation_not_enforced model=%s reason=%s", self.model_id, error.message
        )


@dataclass(frozen=True, slots=True)
class ModelGrants:
    """The grants of one model.

    enforced: digest of the envelope that every replica must have verified; None where development
    lifts it. tasks: a grant for every task, also for those refused. artifact: the model's digest
    (hex), None without an attestation. expires: when the attestation becomes too old, None where
    it does not.
    """

    enforced: str | None
    tasks: Mapping[str, Grant]
    artifact: str | None = None
    expires: datetime | None = None

    @classmethod
    def of(cls, check: LoadCheck, specs: Mapping[str, TaskSpec]) -> "ModelGrants":
        """Return the grants of the model's attestation. Raises AttestationRefused, InvalidKey."""
        found = check.attestation()
        return cls(
            None if found is None or check.development else found.digest,
            {name: _grant(check, found, spec) for name, spec in specs.items()},
            None if found is None else found.root,
            None if found is None else _expiry(found, check.policy),
        )


def _expiry(found: Attestation, policy: TrustPolicy) -> datetime | None:
    days = policy.max_age_days
    return None if days is None else found.predicate.date + timedelta(days=days)


def refuse_unlisted_arguments(arguments: Mapping[str, object]) -> None:
    """Raise InvalidSettings for an engine argument that is not on the list of allowed ones."""
    for name in unlisted_arguments(arguments):
        raise InvalidSettings(
            f"engine argument {name!r} is not allowed: {refusal_reason(name)}",
            field=f"models.engine_args.{name}",
            fix="remove it",
        )


def _grant(check: LoadCheck, found: Attestation | None, spec: TaskSpec) -> Grant:
    result = found.predicate.tasks.get(spec.name) if found is not None else None
    digest = found.digest if found is not None else None
    covered = result is not None and result.spec_digest == spec.digest()
    if result is not None and covered and result.verdict is Verdict.PASS:
        return Grant(result=result, attestation=digest, refusal=None)
    if check.development:
        return Grant(result=None, attestation=None, refusal=None)
    if result is None:
        reason = "no gate has tested it on this task"
    elif not covered:
        reason = "it was tested on another version of this task"
    else:
        reason = f"its verdict is {result.verdict.value}: {'; '.join(result.reasons)}"
    refusal = TaskNotAttested(
        f"model {check.model_id!r} does not serve task {spec.name!r}: {reason}",
        field="task",
        fix="GET /v1/models lists what is attested; narrowgate gate tests a model on a task",
    )
    return Grant(result=result, attestation=digest, refusal=refusal)
