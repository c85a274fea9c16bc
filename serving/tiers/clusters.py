"""Groups open-ended requests by what they are about: the nearest of a few frozen centres.

A clustering is frozen and has a version, which is a part of the scope of every claim that rests on
it. Cluster ids are stable: the position of a centre in its clustering.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.contracts.errors import InvalidRequest, InvalidSettings
from serving.contracts.plain_file import read_plain_text
from serving.contracts.requests import INSTRUCTING_ROLES, Message

Vectors = NDArray[np.float32]

MAX_CLUSTERS = 30
"""A claim needs some hundred judged pairs, so that clusters must be few and large."""

_SYSTEM_CHARS = 300
_TURN_CHARS = 1_200
_MIN_ROWS = 20
"""Texts that a cluster needs on average to be fitted."""

_NAME_CHARS = 40


@dataclass(frozen=True, slots=True)
class Clustering:
    """Frozen centres. centres: (clusters, dimensions) float32, rows of unit length.

    The values are those of 16-bit floats, as files hold them: what is written is read as the same.
    names: a topic for each, which holds no word of a client's text. version: digest of the centres.
    """

    centres: Vectors
    names: tuple[str, ...]
    version: str

    @classmethod
    def of(cls, centres: Vectors, names: Sequence[str]) -> "Clustering":
        """Return the clustering of some centres. Raises ValueError for a shape without meaning."""
        if centres.ndim != 2 or not 1 <= len(centres) <= MAX_CLUSTERS:
            raise ValueError(f"centres have the shape {centres.shape}, not (1 to 30, dimensions)")
        if len(names) != len(centres) or not all(0 < len(n) <= _NAME_CHARS for n in names):
            raise ValueError(f"{len(names)} names for {len(centres)} centres, 1 to 40 characters")
        lengths = np.linalg.norm(centres, axis=1)
        if not np.isfinite(lengths).all() or not (lengths > 0.0).all():
            raise ValueError("a centre is zero or not finite")
        # Those of a file are of unit length but for rounding, and stay as they are.
        is_unit = np.allclose(lengths, 1.0, atol=0.01)
        kept = (centres if is_unit else centres / lengths[:, None]).astype("<f2")
        version = hashlib.sha256(kept.tobytes()).hexdigest()[:12]
        return cls(kept.astype(np.float32), tuple(names), version)

    def nearest(self, vector: Vectors) -> int:
        """Return the cluster of a vector. Ties go to the lower id. Takes microseconds."""
        return int(np.argmax(self.centres @ vector))

    def document(self) -> dict[str, object]:
        """Return it as JSON."""
        return {
            "dimensions": int(self.centres.shape[1]),
            "names": list(self.names),
            "centres": base64.b64encode(self.centres.astype("<f2").tobytes()).decode(),
        }


def clustered_text(messages: Sequence[Message]) -> str:
    """Return the text by which a conversation is clustered: system prompt and first user turn.

    The first, not the last: a conversation keeps its cluster. Empty where it has no text.
    """
    systems = " ".join(m.text for m in messages if m.role in INSTRUCTING_ROLES)
    turn = next((m.text for m in messages if m.role == "user" and m.text.strip()), "")
    if not turn.strip():
        return ""
    return f"{systems[:_SYSTEM_CHARS]}\n{turn[:_TURN_CHARS]}".strip()


def read_clustering(path: Path | None) -> Clustering:
    """Return the clustering of a file, or the shipped one. Blocking. Raises InvalidSettings."""
    if path is None:
        text = (resources.files("serving.tiers") / "centres.json").read_text("utf-8")
        return _parsed(json.loads(text))
    try:
        return _parsed(json.loads(read_plain_text(path)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidSettings(
            f"the clustering {str(path)!r} cannot be read: {error}",
            field="tiers.clusters_file",
            fix="write one with `narrowgate tiers fit FILE --out FILE`, or leave it out",
        ) from error


def read_fitted_at(path: Path | None) -> datetime | None:
    """Return when the clusters of a file were fitted; None for the shipped ones, or unknown.

    path: of a file that `read_clustering` takes. Blocking.
    """
    if path is None:
        return None
    try:
        found = json.loads(read_plain_text(path)).get("fitted_at")
        return datetime.fromisoformat(str(found)).astimezone(UTC)
    except ValueError:
        return None


def fitted(vectors: Vectors, clusters: int, start: Clustering, seed: int = 0) -> Clustering:
    """Return a clustering of vectors by k-means. Blocking; equal vectors give equal centres.

    vectors: (n, dimensions) of unit length. start: names each new centre by its nearest one.
    Raises InvalidRequest for too few vectors or too many clusters.
    """
    from sklearn.cluster import KMeans  # takes 1 s to import

    if not 2 <= clusters <= MAX_CLUSTERS:
        raise InvalidRequest(
            f"{clusters} clusters", field="--clusters", fix=f"use 2 to {MAX_CLUSTERS}"
        )
    if len(vectors) < clusters * _MIN_ROWS:
        raise InvalidRequest(
            f"{len(vectors)} requests are too few for {clusters} clusters",
            field="FILE",
            fix=f"give at least {clusters * _MIN_ROWS} requests, or fewer clusters",
        )
    model = KMeans(clusters, n_init=4, random_state=seed).fit(vectors.astype(np.float64))
    centres = model.cluster_centers_.astype(np.float32)
    names, seen = [], dict.fromkeys(start.names, 0)
    for centre in centres:
        name = start.names[start.nearest(centre)]
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return Clustering.of(centres, names)


def _parsed(document: dict[str, object]) -> Clustering:
    dimensions, names, encoded = (document[k] for k in ("dimensions", "names", "centres"))
    if not isinstance(dimensions, int) or not isinstance(names, list):
        raise TypeError("dimensions must be a number and names a list")
    flat = np.frombuffer(base64.b64decode(str(encoded), validate=True), "<f2")
    return Clustering.of(
        flat.reshape(-1, dimensions).astype(np.float32), [str(name) for name in names]
    )
