"""Do clusters by vector tell where a cheaper model is as good? On questions with known answers."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.embedding.embedder import build_embedder
from serving.tiers.clusters import Clustering, fitted, read_clustering

_LARGEST_NET = 0.05
_LEAST_ROWS = 15
_CLUSTERS = 16


@dataclass(frozen=True, slots=True)
class Sent:
    """Means over splits of the rows into halves, with their standard deviations.

    share: of the second half that goes to the cheap model, by the record of the first half. lost:
    of all its answers, the share that is wrong for that. at_random: lost by the same share.
    """

    share: tuple[float, float]
    lost: tuple[float, float]
    at_random: tuple[float, float]


def measured(file: Path, state: Path, splits: int) -> dict[str, Sent]:
    """Return what shipped, fitted and named clusters tell.

    file: JSON Lines with prompt, subject, cheap and dear (whether each model is right). Blocking.
    """
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    net = np.array([float(row["dear"]) - float(row["cheap"]) for row in rows])
    vectors = build_embedder(state).embed_all([row["prompt"][:1200] for row in rows])
    shipped = read_clustering(None)
    names = sorted({row["subject"] for row in rows})
    subjects = np.array([names.index(row["subject"]) for row in rows])

    def nearest(clustering: Clustering) -> NDArray[np.int64]:
        return np.array([clustering.nearest(vector) for vector in vectors])

    known = nearest(shipped)

    def refitted(half: NDArray[np.int64]) -> NDArray[np.int64]:
        return nearest(fitted(vectors[half], _CLUSTERS, shipped))

    return {
        "shipped": _sent(net, splits, lambda _: known),
        f"fitted to the first half, {_CLUSTERS}": _sent(net, max(1, splits // 4), refitted),
        "subject": _sent(net, splits, lambda _: subjects),
    }


def _sent(
    net: NDArray[np.float64],
    splits: int,
    clusters_of: Callable[[NDArray[np.int64]], NDArray[np.int64]],
) -> Sent:
    found = []
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(net))
        first, second = np.split(order, [len(net) // 2])
        clusters = clusters_of(first)
        good = [
            cluster
            for cluster in np.unique(clusters[first])
            if (chosen := net[first][clusters[first] == cluster]).size >= _LEAST_ROWS
            and chosen.mean() <= _LARGEST_NET
        ]
        sent = np.isin(clusters[second], good)
        lost = net[second][sent].sum() / len(second)
        found.append((sent.mean(), lost, net.mean() * sent.mean()))
    return Sent(*(_spread([row[n] for row in found]) for n in range(3)))


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return round(float(np.mean(values)), 4), round(float(np.std(values)), 4)
