"""The guard on the gateway's own cost, and what the soak test counts as a failure."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from benchmarks.check import PATHS, TOLERANCES, Ratios, judged, kept_figures, lines
from benchmarks.soak import Traffic, failures
from benchmarks.soak_provider import SoakProvider
from benchmarks.soak_samples import Samples, Slope

FLAT = Slope(0.0, -1.0, 1.0)
RECORDS = {
    "kinds": {"answered": 3, "slow": 1, "silent": 1, "broken": 1, "failed": 2},
    "input_tokens": 40,
    "output_tokens": 4,
}
LEDGER: dict[str, Any] = {
    "answered": 4,
    "input_tokens": 40,
    "output_tokens": 4,
    "states": {"closed": 6, "unknown": 2},
    "open_exits": 0,
}


def test_a_ratio_fails_only_where_its_whole_interval_is_above_the_limit() -> None:
    (figure, tolerance), *_ = TOLERANCES.items()
    limit = 10 * (1 + tolerance)
    kept = {"auto": {figure: 10.0}}
    for values, is_above_limit in (
        ([limit + 1, limit + 2, limit + 3] * 3, True),
        ([limit - 2, limit - 1, limit + 9] * 3, False),
        ([9.0, 10.0, 11.0], False),
    ):
        (row,) = judged({("auto", figure): Ratios(values)}, kept)
        assert row.is_above_limit is is_above_limit
        assert ("ABOVE" in lines([row])[0]) is is_above_limit


def test_a_ratio_without_a_kept_figure_is_not_judged() -> None:
    (figure, _), *_ = TOLERANCES.items()
    (row,) = judged({("auto", figure): Ratios([1e9])}, {})
    assert row.limit is None
    assert not row.is_above_limit


def test_every_path_has_its_kept_figures() -> None:
    kept = kept_figures()
    assert kept.keys() == {path.name for path in PATHS}
    for figures in kept.values():
        assert figures.keys() == TOLERANCES.keys()
        assert all(value > 1 for value in figures.values())


def test_a_ledger_that_equals_the_records_is_no_failure() -> None:
    assert failures(Traffic(), FLAT, FLAT, RECORDS, LEDGER) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answered": 3}, "answered: the provider billed 4, the ledger has 3"),
        ({"input_tokens": 41}, "input_tokens: the provider billed 40, the ledger has 41"),
        ({"output_tokens": 0}, "output_tokens: the provider billed 4, the ledger has 0"),
        ({"states": {"unknown": 1}}, "2 calls broke off, and 1 are unknown"),
        ({"states": {"unknown": 2, "open": 1}}, "still open"),
        ({"open_exits": 1}, "still open"),
    ],
)
def test_a_ledger_that_differs_is_a_failure(change: dict[str, Any], words: str) -> None:
    (found,) = failures(Traffic(), FLAT, FLAT, RECORDS, {**LEDGER, **change})
    assert words in found


def test_growth_and_unexpected_answers_are_failures() -> None:
    traffic = Traffic()
    traffic.unexpected["auto: HTTP 500"] = 2
    found = failures(traffic, Slope(100, 90, 110), Slope(100, 90, 110), RECORDS, LEDGER)
    assert found == [
        "2 x auto: HTTP 500",
        "memory grows by 100.0 MiB an hour",
        "open files grow by 100.0 an hour",
    ]
    assert failures(Traffic(), Slope(100, 10, 200), FLAT, RECORDS, LEDGER) == []


def test_a_slope_is_of_an_hour_and_leaves_the_warm_up_out() -> None:
    samples = Samples([36.0 * n for n in range(100)])
    values = [1000.0 * n for n in range(20)] + [500.0 + 0.05 * n for n in range(80)]
    slope = samples.slope(values)
    assert slope.per_hour == pytest.approx(5.0)
    assert slope.low <= slope.per_hour <= slope.high


def test_the_provider_keeps_records_of_what_it_answered() -> None:
    provider = SoakProvider(seed=13)

    async def asked() -> tuple[list[dict[str, Any]], dict[str, Any]]:
        transport = httpx.ASGITransport(provider, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://provider") as client:
            usages = []
            for number in range(40):
                body = {"model": "m", "messages": [], "stream": number % 2 == 0}
                response = await client.post("/v1/chat/completions", json=body)
                if response.status_code == 200 and "usage" in response.text:
                    usages.append(_usage(response.text))
            return usages, (await client.get("/records")).json()

    # Of this seed the first 40 neither are silent nor break off, and some are refused or slow.
    usages, records = asyncio.run(asked())
    assert len(usages) == records["kinds"]["answered"] + records["kinds"].get("slow", 0)
    assert sum(usage["prompt_tokens"] for usage in usages) == records["input_tokens"]
    assert sum(usage["completion_tokens"] for usage in usages) == records["output_tokens"]


def _usage(text: str) -> dict[str, Any]:
    if not text.startswith("data:"):
        return dict(json.loads(text)["usage"])
    chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    return dict(chunks[-1]["usage"])
