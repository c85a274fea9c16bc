"""Clusters: frozen, bounded, with stable ids and versions, and read with errors that help."""

import json
from pathlib import Path

import numpy as np
import pytest

from serving.contracts.errors import InvalidRequest, InvalidSettings
from serving.contracts.requests import Message
from serving.tiers.clusters import (
    MAX_CLUSTERS,
    Clustering,
    clustered_text,
    fitted,
    read_clustering,
)


def test_the_shipped_clustering_is_small_named_and_stable() -> None:
    shipped = read_clustering(None)
    assert 8 <= len(shipped.centres) <= MAX_CLUSTERS
    assert len(set(shipped.names)) == len(shipped.names)
    assert np.allclose(np.linalg.norm(shipped.centres, axis=1), 1.0, atol=0.01)
    assert all(shipped.nearest(centre) == n for n, centre in enumerate(shipped.centres))
    # Claims of users rest on this version: another one begins them anew.
    assert shipped.version == "019c7db24b72"


def test_what_is_written_is_read_as_the_same_version(tmp_path: Path) -> None:
    shipped = read_clustering(None)
    path = tmp_path / "clusters.json"
    path.write_text(json.dumps(shipped.document()))
    assert read_clustering(path).version == shipped.version


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "Expecting"),
        ("[]", "list indices"),
        ('{"dimensions": 2, "names": ["a"], "centres": "!"}', "cannot be read"),
        ('{"dimensions": 2, "names": ["a", "b"], "centres": "ADwAAA=="}', "2 names for 1"),
        ('{"dimensions": 2, "names": ["a"], "centres": "AAAAAA=="}', "zero or not finite"),
        ('{"dimensions": 0, "names": ["a"], "centres": ""}', "shape|reshape"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_the_setting_and_the_fix(
    tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "clusters.json"
    path.write_text(content)
    with pytest.raises(InvalidSettings, match=says) as caught:
        read_clustering(path)
    assert caught.value.field == "tiers.clusters_file"
    assert "narrowgate tiers fit" in str(caught.value.fix)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="No such file"):
        read_clustering(tmp_path / "none.json")


def test_more_clusters_than_the_limit_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        Clustering.of(np.ones((MAX_CLUSTERS + 1, 4), np.float32), ["a"] * (MAX_CLUSTERS + 1))


def test_fitting_finds_the_groups_and_is_reproducible() -> None:
    rng = np.random.default_rng(1)
    groups = np.eye(6)[rng.integers(0, 3, 90)] + rng.normal(0.0, 0.05, (90, 6))
    vectors = (groups / np.linalg.norm(groups, axis=1)[:, None]).astype(np.float32)
    start = Clustering.of(np.eye(6, dtype=np.float32)[:2], ["alpha", "beta"])
    one, two = fitted(vectors, 3, start), fitted(vectors, 3, start)
    assert one.version == two.version != start.version
    assert len({one.nearest(v) for v in vectors}) == 3
    assert len(set(one.names)) == 3
    assert set(one.names) <= {"alpha", "beta", "alpha 2", "beta 2"}


@pytest.mark.parametrize(("count", "clusters", "says"), [(30, 3, "too few"), (900, 31, "31 cl")])
def test_fitting_refuses_what_cannot_earn_claims(count: int, clusters: int, says: str) -> None:
    start = Clustering.of(np.eye(4, dtype=np.float32), list("abcd"))
    with pytest.raises(InvalidRequest, match=says):
        fitted(np.ones((count, 4), np.float32), clusters, start)


def test_a_conversation_is_clustered_by_its_system_prompt_and_first_turn() -> None:
    first = (Message("system", "You help."), Message("user", "Fix my code"))
    later = (*first, Message("assistant", "Done."), Message("user", "Thanks, now a poem"))
    assert clustered_text(first) == clustered_text(later) == "You help.\nFix my code"
    assert clustered_text((Message("user", " "),)) == ""
    assert clustered_text((Message("system", "only"),)) == ""
    assert len(clustered_text((Message("user", "x" * 10**6),))) < 2_000
