"""Loads a tokenizer and chat template from the very bytes that the attestation covers."""

import hashlib
import tempfile
from pathlib import Path

from serving.artifacts.checkpoint import WEIGHT_SUFFIXES
from serving.artifacts.load_check import LoadCheck
from serving.artifacts.manifest import model_files
from serving.artifacts.trust import Attestation
from serving.contracts.errors import AttestationRefused, UnsuitableModel
from serving.tasks.prompt import CheckpointTokenizer


def load_tokenizer(check: LoadCheck) -> CheckpointTokenizer:
    """Return the model's tokenizer, from files that the attestation covers. Blocking, seconds.

    The files are read once, compared, and written into a private folder from which transformers
    loads them: a change of the model's folder in between has no effect. Where development allows a
    model without a valid attestation, the folder itself is loaded.
    Raises AttestationRefused, InvalidKey, and ConfigurationError without a chat template.
    """
    found = check.attestation()
    if found is not None:
        with tempfile.TemporaryDirectory(prefix="narrowgate-tokenizer-") as private:
            try:
                _copy_verified(check.checkpoint.folder_without_weights(), found, Path(private))
            except AttestationRefused as error:
                check.refused(error)
            else:
                return CheckpointTokenizer.load(private)
    return CheckpointTokenizer.load(check.checkpoint.source, check.checkpoint.revision)


def _copy_verified(folder: Path, attestation: Attestation, private: Path) -> None:
    expected = attestation.predicate.artifact.files
    try:
        present = {path.relative_to(folder).as_posix() for path in model_files(folder)}
        _refuse_other_names(folder, expected, present)
        for name, digest in expected.items():
            if name.endswith(WEIGHT_SUFFIXES):
                continue
            content = (folder / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                raise AttestationRefused(
                    f"{str(folder)!r} is not the model that was attested: changed {name}",
                    fix="restore the files, or gate this model as it is",
                )
            copy = private / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
    except UnsuitableModel as error:
        raise AttestationRefused(error.message, fix=error.fix) from error
    except OSError as error:
        raise AttestationRefused(
            f"{str(folder)!r} cannot be read: {error}", fix="restore the model's files"
        ) from error


def _refuse_other_names(folder: Path, expected: dict[str, str], present: set[str]) -> None:
    # An added file could be loaded: additional_chat_templates/*, added_tokens.json.
    other = sorted(name for name in present ^ expected.keys() if not name.endswith(WEIGHT_SUFFIXES))
    if other:
        raise AttestationRefused(
            f"{str(folder)!r} is not the model that was attested: added or missing "
            + ", ".join(other[:5]),
            fix="restore the files, or gate this model as it is",
        )
