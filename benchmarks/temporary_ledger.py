"""A temporary ledger, so that a benchmark writes no rows into the user's ledger."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.commands.serve import CheckedSettings
    from serving.contracts.settings import Settings

_LEDGER = "ledger"


def without_keys(settings: "Settings") -> "Settings":
    """Return the settings without API keys, audits and cache, with the ledger in the state folder.

    Without evidence, attested thresholds decide from the first request on, as in steady operation.
    """
    from serving.contracts.cache_settings import CacheSettings
    from serving.contracts.evidence_settings import EvidenceSettings
    from serving.contracts.ledger_settings import AuthSettings

    ledger = settings.ledger.model_copy(update={"url": None})
    changed = {
        "auth": AuthSettings(mode="off"),
        "ledger": ledger,
        "evidence": EvidenceSettings(enabled=False),
        # A repeated text would measure the cache and no model.
        "cache": CacheSettings(enabled=False),
    }
    return settings.model_copy(update=changed)


def link_state(state: Path, folder: Path) -> None:
    """Link the files of a state folder, without its ledger, into an empty folder."""
    for item in state.resolve().iterdir():
        if item.name != _LEDGER:
            (folder / item.name).symlink_to(item)


@contextmanager
def temporary_ledger(checked: "CheckedSettings") -> Iterator["CheckedSettings"]:
    """Yield `checked` with a temporary state folder: links to its files, and a new ledger."""
    with tempfile.TemporaryDirectory(prefix="narrowgate-") as name:
        state = Path(name)
        link_state(checked.settings.state, state)
        settings = checked.settings.model_copy(update={"state": state})
        yield replace(checked, settings=settings)
