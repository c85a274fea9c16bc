"""The cost benchmark: its mix, its arithmetic, its report."""

import argparse
import json
from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cost import models_of_tiers, with_fake_provider
from benchmarks.cost_arms import Arm, ChatResult, require_answers, run_arm
from benchmarks.cost_figures import (
    LedgerTotals,
    break_even_per_s,
    by_kind,
    costs_of,
    saved_at_equal_length,
    saved_bounds,
)
from benchmarks.cost_mix import KINDS, Text, counts, load_texts, replay
from benchmarks.cost_report import document, lines
from benchmarks.fake_provider import server_command
from serving.contracts.answer import Usage
from serving.contracts.errors import EngineFailure, InvalidRequest
from serving.contracts.settings import Settings

from ..provider.server import ProviderServer

TOTALS = LedgerTotals(
    Decimal("0.002"), Decimal("0.0005"), Decimal("0.001"), Decimal("0.0001"), 0.5, 0
)
ARGS = argparse.Namespace(clients=2, seed=1)


def result(kind: str = "narrow", **more: object) -> ChatResult:
    usage = Usage(uncached_input_tokens=100, output_tokens=10)
    return ChatResult(**{"kind": kind, "repeat": False, "latency_s": 1.0, "usage": usage, **more})  # type: ignore[arg-type]


def test_the_shipped_texts_are_enough_for_a_run() -> None:
    texts = load_texts()
    assert len({text.text for text in texts}) == len(texts)
    mix = replay(texts, 100, seed=1)
    assert Counter(chat.text.kind for chat in mix) == {"narrow": 60, "medium": 15, "open": 25}
    assert sum(chat.repeat for chat in mix) == 30
    assert mix == replay(texts, 100, seed=1)
    assert mix != replay(texts, 100, seed=2)
    with pytest.raises(InvalidRequest, match="texts"):
        replay(texts, 200, seed=1)


@given(requests=st.integers(1, 60), seed=st.integers(0, 5))
def test_a_repeat_follows_its_original_and_nothing_else_is_asked_twice(
    requests: int, seed: int
) -> None:
    texts = [Text(kind, f"{kind} {number}") for kind in KINDS for number in range(60)]
    mix = replay(texts, requests, seed)
    assert len(mix) == requests == sum(counts(requests).values())
    seen: set[int] = set()
    for chat in mix:
        assert chat.repeat == (chat.number in seen)
        assert texts[chat.number] == chat.text
        seen.add(chat.number)


def test_a_system_message_comes_first() -> None:
    assert [m["role"] for m in Text("open", "Hi", "Be kind.").messages()] == ["system", "user"]


def test_savings_are_net_of_holds_and_local_time() -> None:
    costs = costs_of(Decimal("0.01"), TOTALS, Decimal("0.1"), elapsed_s=72.0)
    assert costs.saved == pytest.approx(1 - 0.0035 / 0.01)
    # 72 s of $0.1 an hour are $0.002, half of which requests were charged.
    assert costs.idle_usd == Decimal("0.001")
    assert costs.saved_with_idle == pytest.approx(1 - 0.0045 / 0.01)


def test_busy_replicas_are_not_idle_and_no_requests_save_zero() -> None:
    costs = costs_of(Decimal(0), TOTALS, Decimal("0.1"), elapsed_s=1.0)
    assert costs.idle_usd == 0
    assert costs.saved is None
    assert break_even_per_s(costs, 10, Decimal(1)) is None


@given(
    direct=st.decimals("0.01", "1", places=6),
    hour=st.decimals("0.01", "10", places=4),
    requests=st.integers(1, 1000),
)
def test_at_the_break_even_rate_an_hour_saves_its_price(
    direct: Decimal, hour: Decimal, requests: int
) -> None:
    costs = costs_of(direct, TOTALS, hour, elapsed_s=60.0)
    rate = break_even_per_s(costs, requests, hour)
    assert rate is not None
    saved_each = (direct - TOTALS.provider_usd - TOTALS.held_usd) / requests
    assert rate * 3600 * float(saved_each) == pytest.approx(float(hour))


def test_the_saving_has_bounds_over_chats() -> None:
    direct = [result(cost_usd=Decimal(1)) for _ in range(20)]
    half = [result(cost_usd=Decimal("0.5")) for _ in range(20)]
    assert saved_bounds(direct, half) == pytest.approx((0.5, 0.5))
    mixed = [result(cost_usd=Decimal(number % 2)) for number in range(20)]
    bounds = saved_bounds(direct, mixed)
    assert bounds is not None
    assert bounds[0] < 0.5 < bounds[1]
    assert saved_bounds([result()], [result()]) is None


def test_the_length_of_answers_may_be_left_out() -> None:
    direct = [result(cost_usd=Decimal(3)), result(cost_usd=Decimal(1))]
    routed = [
        result(cost_usd=Decimal(0), route="local"),
        result(cost_usd=Decimal(5), route="frontier"),
    ]
    # The reference would have cost 3 for what the local model answered, and 7 for the other.
    assert saved_at_equal_length(direct, routed, lambda _: Decimal(7)) == pytest.approx(0.5)
    assert saved_at_equal_length([result()], [result()], lambda _: Decimal(7)) is None


def test_kinds_tell_their_routes_apart() -> None:
    routed = Arm((result(route="local", reason="narrow", cost_usd=Decimal("0.1")),
                  result(route="frontier", reason="below_threshold", cost_usd=Decimal("0.2")),
                  result("open", usage=None, error="budget_exceeded")), 3.0)  # fmt: skip
    direct = Arm((result(), result(), result("open")), 6.0)
    narrow, medium, opened = by_kind(direct, routed)
    assert narrow["routes"] == {"frontier": 1, "local": 1}
    assert narrow["routed_usd"] == "0.3"
    assert narrow["direct_tokens"] == {"input": 200, "output": 20}
    assert medium["requests"] == 0
    assert opened["reasons"] == {"budget_exceeded": 1}
    assert opened["routed_ms"] == {}


def test_the_report_prices_the_direct_arm_and_names_what_is_assumed() -> None:
    arm = Arm((result(), result("open")), 36.0)
    found = document(Settings(), arm, arm, TOTALS, ARGS)
    # 200 tokens in at $2 a million, 20 out at $10.
    assert Decimal(found["costs"]["direct_usd"]) == Decimal("0.0006")
    assert Decimal(found["costs"]["idle_usd"]) == 0
    assert Decimal(found["kinds"][0]["direct_usd"]) == Decimal("0.0003")
    assert found["costs"]["saved_bounds"] == (1.0, 1.0)
    json.dumps(found)
    text = "\n".join(lines(found))
    assert "answered from the cache in the routed arm" in text
    assert "$0.000600" in text
    assert "never" in text


def test_the_fake_provider_is_behind_every_provider_of_the_tiers() -> None:
    settings = with_fake_provider(Settings(), 1234)
    assert set(settings.frontier.providers) == {"anthropic", "openai"}
    names = models_of_tiers(settings)
    assert names[0] == settings.ledger.reference_model
    assert {name.partition("/")[0] for name in names} <= set(settings.frontier.providers)
    for provider in settings.frontier.providers.values():
        assert provider.base_url == "http://127.0.0.1:1234/v1"
    command = server_command("/m", 1234, ["a", "b"])
    assert command[command.index("--served-model-name") + 1 :][:2] == ["a", "b"]


async def test_both_arms_are_asked_the_same_and_answers_are_counted(
    keyless_provider: ProviderServer,
) -> None:
    chats = replay(load_texts(), 6, seed=1)
    keyless_provider.script.answer = lambda seen: "word " * 7
    arm = await run_arm(keyless_provider.url, "m", chats, clients=2)
    sent = [seen.body for seen in keyless_provider.script.seen]
    assert {body["max_tokens"] for body in sent} == {512}
    assert sorted(body["messages"][-1]["content"] for body in sent) == sorted(
        chat.text.text for chat in chats
    )
    assert [item.kind for item in arm.results] == [chat.text.kind for chat in chats]
    assert all(item.usage is not None and item.usage.output_tokens > 0 for item in arm.results)
    require_answers(arm)


def test_a_direct_request_without_an_answer_ends_the_run() -> None:
    with pytest.raises(EngineFailure, match="overloaded"):
        require_answers(Arm((result(error="overloaded"),), 1.0))
