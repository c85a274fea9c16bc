"""Clusters fitted anew: compared by judged answers, taken where they pay, and never silently."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.cli import main
from serving.commands import tiers_refit
from serving.commands.tiers_refit import clusters_file, take
from serving.contracts.routing import Tier
from serving.ledger.database import Database
from serving.tiers.clusters import Clustering, read_clustering, read_fitted_at
from serving.tiers.logged_comparisons import LoggedComparisons
from serving.tiers.policy import Prospect
from serving.tiers.refit import Comparison, LoggedChat, Refit, compared, switch

from ..provider.server import ProviderServer
from .tiers_kit import KnownQuality, clusters, embed, tiered

ONE = Clustering.of(np.array([[1.0, 1.0]], np.float32), ["all"])
TWO = Clustering.of(np.eye(2, dtype=np.float32), ["good", "bad"])
TARGET = 0.1


def comparisons(
    nets: Sequence[float], tier: Tier = "economy", start: int = 0, saving: float = 1.0
) -> list[Comparison]:
    """Return one comparison a chat."""
    return [Comparison(n, tier, net, f"g{n}", saving) for n, net in enumerate(nets, start)]


def chats(count: int) -> list[LoggedChat]:
    return [LoggedChat(f"r{n}", "frontier") for n in range(count)]


GOOD, BAD = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
# Of the second half of the chats, a cheaper tier's answers are worse in half of the cases.
VECTORS = np.array([GOOD] * 100 + [BAD] * 100)
NETS = [0.0] * 100 + [float(n % 2) for n in range(100)]


def test_a_split_that_tells_good_from_bad_saves_more() -> None:
    found = compared(VECTORS, chats(200), comparisons(NETS), (ONE, TWO), TARGET)
    assert (found.present.sent, found.present.tiers) == (0.0, {})
    assert found.fitted.tiers == {(0, "frontier"): "economy"}
    assert found.fitted.sent == pytest.approx(0.5)
    assert found.fitted.net_worse == 0.0
    assert 0.0 < found.gain_low_usd < found.gain_usd == pytest.approx(100.0)


def test_the_same_clusters_gain_nothing() -> None:
    found = compared(VECTORS, chats(200), comparisons(NETS), (TWO, TWO), TARGET)
    assert found.gain_usd == found.gain_low_usd == 0.0


def test_chance_among_few_comparisons_gains_nothing() -> None:
    """Worse in 8 %, everywhere: a random split finds one half good now and then, and not twice."""
    gains = []
    for seed in range(8):
        draw = np.random.default_rng(seed)
        vectors = VECTORS[draw.permutation(200)]
        nets = [float(draw.random() < 0.08) for _ in range(200)]
        found = compared(vectors, chats(200), comparisons(nets), (ONE, TWO), TARGET)
        gains.append(found.gain_low_usd)
    assert float(np.mean(gains)) < 25.0


def test_a_comparison_stands_for_the_chats_of_its_cluster() -> None:
    """The bad cluster is explored at a third of the rate, and still is half of the traffic."""
    pairs = [one for one in comparisons(NETS) if one.chat < 100 or one.chat % 3 == 0]
    found = compared(VECTORS, chats(200), pairs, (TWO, ONE), TARGET)
    assert found.present.sent == pytest.approx(0.5)
    # A quarter of all is worse, as with every chat compared.
    every = compared(VECTORS, chats(200), pairs, (TWO, ONE), 0.6)
    assert every.fitted.net_worse == pytest.approx(0.25, abs=0.03)


def test_the_tier_that_saves_most_answers_where_both_are_as_good() -> None:
    pairs = [*comparisons([0.0] * 100, "standard", saving=1.0), *comparisons([0.0] * 100)]
    pairs = [Comparison(p.chat, p.tier, p.net, p.group, 1.0 + (p.tier == "economy")) for p in pairs]
    found = compared(VECTORS[:100], chats(100), pairs, (ONE, TWO), TARGET)
    assert found.fitted.tiers == {(0, "frontier"): "economy"}


def test_nothing_is_compared_without_comparisons() -> None:
    with pytest.raises(ValueError, match="no comparison"):
        compared(VECTORS, chats(200), [], (ONE, TWO), TARGET)


def refit(gain_low_usd: float) -> Refit:
    found = compared(VECTORS, chats(200), comparisons(NETS), (ONE, TWO), TARGET)
    return Refit(found.comparisons, found.present, found.fitted, gain_low_usd, gain_low_usd)


@pytest.mark.parametrize(
    ("gain", "held", "budget", "pays"),
    [
        (100.0, 0.0, 10.0, True),
        # A saving under held claims is lost while all is earned again.
        (100.0, 150.0, 10.0, False),
        # The budget takes longer to earn it than the gain has to pay.
        (100.0, 0.0, 0.1, False),
        (0.0, 0.0, 10.0, False),
    ],
)
def test_a_switch_pays_for_what_it_begins_anew(
    gain: float, held: float, budget: float, *, pays: bool
) -> None:
    earning = Prospect("0", "economy", 100.0, 1.0, 0.1, 200.0, 0.5)
    costs = switch(refit(gain), [earning], held, 10.0, budget, payback_days=30.0)
    assert costs.earning_usd == pytest.approx(20.0)
    assert costs.days == pytest.approx(max(2.0, 20.0 / budget))
    assert costs.pays is pays


async def test_comparisons_of_served_chats_decide(
    provider: ProviderServer, database: Database, state: Path
) -> None:
    provider.script.answer = KnownQuality()
    fine = await clusters()
    async with tiered(provider, database, state) as server:
        coarse = Clustering.of(fine.centres.mean(axis=0, keepdims=True), ["all"])
        server.planner.clustering = coarse
        for number in range(12):
            await server.ask(f"Write about poem {number}")
        await server.settle()
        await server.ask("Write about poem")
        await server.settle()
        audit = server.audits()[0]
        assert audit.request_id in {row["request_id"] for row in server.server.decisions.rows}
        # The cheaper tier is worse in half of the chats about morals, and in none about poems.
        store = server.evidence.store
        store.append(
            [
                replace(
                    audit, input=f"i{n}", group=f"g{n}", request_id=f"r{n}",
                    loss=1.0 if n % 4 == 1 else 0.5,
                )
                for n in range(120)
            ]
        )  # fmt: skip
        logged = LoggedComparisons(server.planner, store)
        start = logged.start("frontier")
        assert start is not None
        topics = [await embed(f"Write about {topic}") for topic in ("poem", "morals")]
        seen = [LoggedChat(f"r{n}", start.tier) for n in range(120)]
        vectors = np.array([topics[n % 2] for n in range(120)])
        found = logged.judged(seen, vectors, fine, 1.0)
        assert found["present_clusters"]["sent"] == 0.0
        assert found["fitted_clusters"]["sent"] == pytest.approx(0.5)
        assert (found["verdict"], found["pays"], found["held_claims"]) == ("taken", True, [])
        assert found["comparisons"] == 120
        # Nothing is known of the clusters that the comparisons were not made under.
        server.planner.clustering = fine
        unknown = LoggedComparisons(server.planner, store)
        assert unknown.judged(seen, vectors, coarse, 1.0)["verdict"] == "kept"


def test_a_taken_file_replaces_the_one_before_and_keeps_it(tmp_path: Path) -> None:
    out = tmp_path / "clusters.json"
    assert take(ONE, out) == {}
    assert take(TWO, out) == {"before": str(tmp_path / f"clusters.{ONE.version}.json")}
    assert read_clustering(out).version == TWO.version
    assert read_clustering(tmp_path / f"clusters.{ONE.version}.json").version == ONE.version
    assert read_fitted_at(out) is not None
    assert read_fitted_at(None) is None


def test_clusters_are_written_through_a_link(
    tmp_path: Path,
    state: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiers_refit, "_compared", lambda *_: ({"verdict": "taken"}, TWO))
    file, link = tmp_path / "clusters.json", tmp_path / "link.json"
    link.symlink_to(file)
    log = _log(tmp_path / "log.jsonl", 4)
    arguments = ["tiers", "refit", str(log), "--out", str(link), "--state", str(state), "--json"]
    status, _, err = _run(capsys, arguments)
    assert (status, link.is_symlink()) == (0, True), err
    assert read_clustering(file).version == TWO.version


def _run(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> tuple[int, str, str]:
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def _log(path: Path, count: int, **changes: object) -> Path:
    rows = [
        {
            "request_id": f"r{n}", "time": f"2026-11-{1 + n // 4:02}T10:00:00+00:00",
            "reason": "out_of_scope", "tier": "frontier",
            "body": {"messages": [{"role": "user", "content": f"{('Rhyme', 'Sort')[n % 2]} {n}"}]},
        } | changes
        for n in range(count)
    ]  # fmt: skip
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_a_log_without_comparisons_keeps_the_present_clusters(
    tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clusters.json"
    log = _log(tmp_path / "log.jsonl", 84)
    arguments = ["tiers", "refit", str(log), "--clusters", "2", "--out", str(out)]
    status, text, err = _run(capsys, [*arguments, "--state", str(state)])
    assert status == 0, err
    assert "KEPT the present clusters: no chat of the log's newer half was compared" in text
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"time": "yesterday"}, "time 'yesterday' is no moment"),
        # Rows of tasks and named models have no cluster.
        ({"reason": "requested"}, "0 requests are too few for 2 clusters"),
    ],
)
def test_a_log_that_cannot_be_used_is_refused(
    tmp_path: Path,
    state: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    says: str,
) -> None:
    log = _log(tmp_path / "log.jsonl", 4, **changes)
    arguments = ["tiers", "refit", str(log), "--clusters", "2", "--state", str(state)]
    status, _, err = _run(capsys, arguments)
    assert status == 2
    assert says in err


def test_clusters_are_fitted_at_most_once_a_week(
    tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    present = tmp_path / "present.json"
    present.write_bytes(clusters_file(read_clustering(None)))
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"tiers: {{clusters_file: {present}}}\n")
    log = _log(tmp_path / "log.jsonl", 4)
    arguments = ["tiers", "refit", str(log), "--config", str(settings), "--state", str(state)]
    status, text, err = _run(capsys, [*arguments, "--json"])
    assert status == 0, err
    assert json.loads(text)["verdict"] == "not_due"
