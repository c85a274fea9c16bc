"""Records the newest attestation that each model was loaded with; an older one is refused.

The signed date decides which is newer. The record is one file for each model in the state
folder; deleting the file, or `attestation.allow_older`, permits an older attestation.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from serving.artifacts.guarded_file import WritableByOthers, read_guarded
from serving.artifacts.trust import Attestation
from serving.contracts.errors import AttestationRefused
from serving.contracts.plain_file import unread_because
from serving.host.safe_write import replace_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AcceptedAttestations:
    """One model's record. folder: of the file, made on the first write."""

    folder: Path
    model_id: str

    @property
    def file(self) -> Path:
        """Return the file. Its name is a digest: a model's id may hold slashes."""
        name = hashlib.sha256(self.model_id.encode()).hexdigest()[:16]
        return self.folder / f"{name}.json"

    def refuse_older(self, found: Attestation) -> None:
        """Raise AttestationRefused where a newer attestation was accepted before."""
        newest = self._newest()
        if newest is not None and found.predicate.date < newest:
            raise AttestationRefused(
                f"the attestation of model {self.model_id!r} is dated "
                f"{found.predicate.date:%F %T}, and a newer one, dated {newest:%F %T}, was "
                "accepted before",
                field="attestation.allow_older",
                fix="restore the newer attestation, or set attestation.allow_older: true for a "
                "deliberate return to an older one",
            )

    def remember(self, found: Attestation) -> None:
        """Record an accepted attestation. A state folder that cannot be written is logged."""
        document = {
            "model": self.model_id,
            "date": found.predicate.date.isoformat(),
            "attestation": found.digest,
        }
        content = json.dumps(document).encode()
        try:
            if self.file.is_file() and self.file.read_bytes() == content:
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self.file, content)
        except OSError as error:
            logger.warning(
                "attestation_not_remembered model=%s file=%s error=%s",
                self.model_id, self.file, type(error).__name__,
            )  # fmt: skip

    def _newest(self) -> datetime | None:
        try:
            document = json.loads(read_guarded(self.file))
            # A date without a time zone counts as UTC.
            date = datetime.fromisoformat(document["date"])
            return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        except FileNotFoundError:
            return None
        except WritableByOthers as error:
            raise AttestationRefused(
                str(error), fix="check what wrote it, then run chmod 600 on it or delete it"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AttestationRefused(
                f"{str(self.file)!r} cannot be read: {unread_because(error)}",
                fix="delete it to accept the present attestation as the newest one",
            ) from error
