"""`narrowgate tiers`: what it shows of a ledger, and clusters that are fitted to a file."""

import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from serving.cli import main
from serving.ledger.database import Database
from serving.tiers.clusters import Clustering, read_clustering
from serving.tiers.logged_comparisons import LoggedComparisons
from serving.tiers.summary import held_elsewhere, summary

from ..provider.server import ProviderServer
from .tiers_kit import ON, KnownQuality, TierServer, tiered


async def _asked(server: TierServer, count: int, text: str = "Write a poem {}") -> None:
    for number in range(count):
        await server.ask(text.format(number))
        if number % 12 == 11:
            await server.settle()
    await server.settle()


async def test_a_summary_has_the_tier_the_claim_the_saving_and_no_text(
    provider: ProviderServer, database: Database, state: Path
) -> None:
    provider.script.answer = KnownQuality()
    # Without audits, so that the saving is known.
    settings = ON.model_copy(update={"audit_floor": 1e-9, "audit_high": 1e-9})
    async with tiered(provider, database, state, settings) as server:
        await _asked(server, 12, "Write code SECRET {}")
        before = summary(server.planner, database)
        assert [(one.topic, one.present) for one in before] == [("code", "frontier")]
        assert before[0].next is not None
        assert (before[0].next.tier, before[0].next.share) == ("economy", 1.0)
        await _asked(server, 140)
        poem = next(one for one in summary(server.planner, database) if one.topic == "poem")
        saved_a_day, held = LoggedComparisons(
            server.planner, server.evidence.store
        ).held_usd_a_day()
        assert held_elsewhere(server.planner) == {}
        first = server.planner.clustering
        server.planner.clustering = Clustering.of(first.centres[:2], first.names[:2])
        # A claim of other clusters answers nothing, and is shown.
        assert held_elsewhere(server.planner) == {first.version: held}
        assert LoggedComparisons(server.planner, server.evidence.store).held_usd_a_day()[1] == []
    assert len(held) == 1
    assert saved_a_day > 0.0
    assert (poem.tenants, poem.reference, poem.present) == ("default", "openai/large", "economy")
    assert poem.next is None
    economy = next(tier for tier in poem.tiers if tier.tier == "economy")
    assert (economy.state, economy.progress) == ("held", 1.0)
    # The last rows may still be on their way to the disk.
    assert 0 < poem.answered_cheaper < poem.answered <= 140
    saved = Decimal(poem.reference_usd) - Decimal(poem.paid_usd) - Decimal(poem.own_usd)
    assert Decimal(poem.saved_usd) == pytest.approx(saved, abs=Decimal("0.0002"))
    assert Decimal(poem.own_usd) > 0
    # The reference's own mean cost, and not the price of the wordier model's tokens.
    assert Decimal(poem.reference_usd) > Decimal(poem.paid_usd)
    assert "SECRET" not in json.dumps([one.document() for one in before])


def run(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> tuple[int, str, str]:
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def test_show_says_that_nothing_was_clustered(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, ["tiers", "show", "--state", str(state)])
    assert status == 0
    assert "mode off" in out
    assert "no open-ended chat was clustered" in out
    status, out, _ = run(capsys, ["tiers", "show", "--json", "--state", str(state)])
    assert json.loads(out) == {"mode": "off", "clusters": [], "held_by_other_clusters": {}}


def chats(file: Path, rows: Sequence[Any]) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def test_fit_writes_clusters_that_the_setting_takes(
    tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topics = ("Write a poem about {}", "Write a Python function that sorts {}")
    rows = [
        {"body": {"messages": [{"role": "user", "content": topic.format(f"{thing} {number}")}]}}
        for topic in topics
        for thing in ("rain", "lists", "birds", "names")
        for number in range(6)
    ]
    out_file = tmp_path / "clusters.json"
    file = chats(tmp_path / "log.jsonl", rows)
    arguments = ["tiers", "fit", str(file), "--clusters", "2", "--out", str(out_file), "--json"]
    status, out, err = run(capsys, [*arguments, "--state", str(state)])
    assert status == 0, err
    found = json.loads(out)
    assert sorted(found["clusters"].values()) == [24, 24]
    assert read_clustering(out_file).version == found["version"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "x"}], "chat 1: it has no messages"),
        ([{"messages": {"role": "user"}}], "chat 1: it has no messages"),
        ([{"messages": [{"role": "user"}]}], "chat 1: messages.0.content is missing"),
        ([{"messages": [{"role": "user", "content": 5}]}], "chat 1: messages.0.content"),
        *(
            (
                [{"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]}],
                "chat 1: messages.0.content.0.text",
            )
            for text in (5, None)
        ),
        ([{"messages": [{"role": "user", "content": [5]}]}], "chat 1: messages.0.content.0"),
        ([{"messages": [{"role": 5, "content": "hi"}]}], "chat 1: messages.0.role"),
        ([{"messages": [{"role": "user", "content": "hi"}]}], "1 requests are too few"),
    ],
)
def test_fit_refuses_a_file_that_it_cannot_use(
    tmp_path: Path,
    state: Path,
    capsys: pytest.CaptureFixture[str],
    rows: Sequence[Any],
    says: str,
) -> None:
    file = chats(tmp_path / "log.jsonl", rows)
    status, _, err = run(
        capsys, ["tiers", "fit", str(file), "--clusters", "2", "--state", str(state)]
    )
    assert status == 2
    assert says in err
