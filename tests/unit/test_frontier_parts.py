"""Keys, prices, bounds, usage, waits, worst cases: the arithmetic of the frontier."""

import itertools
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts.errors import InvalidRequest, InvalidSettings
from serving.contracts.frontier import OutputBounds
from serving.contracts.frontier_settings import ProviderSettings
from serving.contracts.openai import openai_usage, usage_from_openai
from serving.contracts.prices import PriceStep, TokenPrices, input_tokens
from serving.frontier.bounds import bounded, bounded_tokens, token_limits, worst_case_usd
from serving.frontier.keys import resolve_key
from serving.frontier.provider_data import read_events
from serving.frontier.retry_after import retry_after_s, wait_s
from serving.frontier.usage import usage_from_anthropic
from serving.ledger.pricing.book import PriceBook

from .frontier_kit import SONNET, flat

COUNT = st.integers(0, 10**6)
ODD = st.one_of(st.none(), st.integers(-10, 10**6), st.text(), st.booleans(), st.floats())


def provider(**more: Any) -> ProviderSettings:
    return ProviderSettings(api="openai", **more)


def test_keys_come_from_the_file_then_the_named_then_the_usual_variable(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("  from-file\n", encoding="utf-8")
    environ = {"OPENAI_API_KEY": "usual", "MINE": " named ", "OUR_PROXY_API_KEY": "proxy"}
    for name, settings, expected in [
        ("openai", provider(api_key_file=file, api_key_env="MINE"), "from-file"),
        ("openai", provider(api_key_env="MINE"), "named"),
        ("openai", provider(), "usual"),
        ("our-proxy", provider(), "proxy"),
        ("openai", provider(api_key_env="UNSET"), None),
        ("openai", provider(keyless=True), None),
    ]:
        key = resolve_key(name, settings, environ)
        assert (key.get_secret_value() if key else None) == expected
        assert expected is None or expected not in repr(key)


@pytest.mark.parametrize("content", [None, "", " \n", "two words", "two\nlines", "sch\u00f6n"])
def test_a_named_file_without_a_key_stops_the_start(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidSettings) as caught:
        resolve_key("openai", provider(api_key_file=file), {"OPENAI_API_KEY": "x"})
    assert caught.value.field == "frontier.providers.openai.api_key_file"
    assert not content or not content.strip() or content not in str(caught.value)


def test_a_malformed_key_in_the_environment_stops_the_start() -> None:
    with pytest.raises(InvalidSettings) as caught:
        resolve_key("openai", provider(), {"OPENAI_API_KEY": "secret one"})
    assert "secret" not in str(caught.value)


@given(COUNT, COUNT, COUNT, COUNT, COUNT)
def test_openais_classes_add_up(
    prompt: int, completion: int, read: int, written: int, reasoning: int
) -> None:
    usage = usage_from_openai(
        {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }
    )
    if read + written > prompt or reasoning > completion:
        # Parts exceed their whole: no count of it is believed.
        assert usage is None
        return
    assert usage is not None
    assert input_tokens(usage) == prompt
    assert usage.output_tokens + usage.reasoning_tokens == completion
    assert usage_from_openai(openai_usage(usage)) == usage


@pytest.mark.parametrize(
    ("total", "reasoning", "counted"),
    [(528, None, 500), (28, None, 0), (20, None, 0), (528, 500, 500), (528, 3, 503)],
)
def test_a_total_above_its_parts_shows_reasoning_that_is_not_listed(
    total: int, reasoning: int | None, counted: int
) -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": reasoning}} if reasoning else {}
    usage = usage_from_openai(
        {"prompt_tokens": 20, "completion_tokens": 8, "total_tokens": total, **details}
    )
    assert usage is not None
    assert usage.reasoning_tokens == counted
    assert usage.output_tokens + usage.reasoning_tokens == max(8, total - 20)


def test_cache_writes_by_time_to_live_that_exceed_their_sum_are_not_believed() -> None:
    usage = {
        "input_tokens": 5, "output_tokens": 5, "cache_creation_input_tokens": 100,
        "cache_creation": {"ephemeral_5m_input_tokens": 230, "ephemeral_1h_input_tokens": 230},
    }  # fmt: skip
    assert usage_from_anthropic(usage) is None
    assert usage_from_anthropic({**usage, "cache_creation_input_tokens": 460}) is not None


@given(COUNT, COUNT, COUNT, COUNT, COUNT, COUNT)
def test_anthropics_classes_add_up(
    uncached: int, read: int, short: int, hour: int, output: int, thinking: int
) -> None:
    usage = usage_from_anthropic(
        {
            "input_tokens": uncached,
            "output_tokens": output,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": short + hour,
            "cache_creation": {
                "ephemeral_5m_input_tokens": short,
                "ephemeral_1h_input_tokens": hour,
            },
            "output_tokens_details": {"thinking_tokens": thinking},
        }
    )
    if thinking > output:
        assert usage is None
        return
    assert usage is not None
    assert input_tokens(usage) == uncached + read + short + hour
    assert (usage.cache_write_5m_tokens, usage.cache_write_1h_tokens) == (short, hour)
    assert usage.output_tokens + usage.reasoning_tokens == output
    again = usage_from_openai(openai_usage(usage))
    assert again is not None
    assert input_tokens(again) == input_tokens(usage)


@given(
    st.one_of(
        ODD,
        st.dictionaries(
            st.sampled_from(
                [
                    "prompt_tokens",
                    "completion_tokens",
                    "total_tokens",
                    "prompt_tokens_details",
                    "input_tokens",
                    "output_tokens",
                    "cache_creation",
                    "cache_creation_input_tokens",
                ]
            ),
            st.one_of(ODD, st.dictionaries(st.just("cached_tokens"), ODD)),
        ),
    )
)
def test_no_usage_however_odd_does_harm(data: object) -> None:
    for read in (usage_from_openai, usage_from_anthropic):
        usage = read(data)
        assert usage is None or input_tokens(usage) >= 0


def test_reasoning_beside_the_completion_is_seen_in_the_total() -> None:
    usage = usage_from_openai(
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 115,
            "completion_tokens_details": {"reasoning_tokens": 100},
        }
    )
    assert usage is not None
    assert (usage.output_tokens, usage.reasoning_tokens) == (5, 100)


@given(
    st.one_of(st.none(), st.integers(1, 5000), st.integers(1, 5000).map(float)),
    st.one_of(st.none(), st.integers(1, 5000)),
    st.integers(1, 4096),
)
def test_the_lowest_limit_wins(old: float | None, new: int | None, bound: int) -> None:
    body: dict[str, Any] = {"messages": [], "max_tokens": old, "max_completion_tokens": new}
    limit = bounded_tokens(body, OutputBounds(bound))
    assert 1 <= limit <= bound
    assert type(limit) is int
    assert limit == min(own for own in (old, new, bound) if own is not None)
    result = bounded(body, OutputBounds(bound))
    assert result["max_tokens"] == limit
    assert "max_completion_tokens" not in result


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "5.5", "many", float("nan"), float("inf"), []])
def test_a_malformed_limit_is_refused_and_never_replaced(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        bounded({"messages": [], name: value}, OutputBounds(4096))
    assert caught.value.field == name


@pytest.mark.parametrize("n", [50, 50.0, "50", "50.0"])
def test_choices_count_in_the_worst_case_in_whatever_form(n: object) -> None:
    body = bounded({"messages": [], "n": n, "max_tokens": 10}, OutputBounds(4096))
    assert body["n"] == 50
    assert token_limits({"messages": [], "n": n, "max_tokens": 10}).output_tokens == 500


DIRECTIVE = OutputBounds(9, stop=("END",), directive="Be brief.")


def test_the_directive_stands_at_the_end_of_the_system_prompt() -> None:
    user = {"role": "user", "content": "hi"}
    parts = [{"type": "text", "text": "static"}]
    told = {"type": "text", "text": "Be brief."}
    for before, after in [
        ([user], [{"role": "system", "content": "Be brief."}, user]),
        (
            [{"role": "system", "content": "static"}, user],
            [{"role": "system", "content": "static\n\nBe brief."}, user],
        ),
        (
            [{"role": "system", "content": "a"}, {"role": "developer", "content": parts}, user],
            [
                {"role": "system", "content": "a"},
                {"role": "developer", "content": [*parts, told]},
                user,
            ],
        ),
    ]:
        assert bounded({"messages": before}, DIRECTIVE)["messages"] == after
        assert len(parts) == 1


@pytest.mark.parametrize(
    ("more", "directed"),
    [
        ({}, True),
        ({"response_format": {"type": "text"}}, True),
        ({"response_format": {"type": "json_object"}}, False),
        ({"tools": [{}]}, False),
        ({"tools": []}, True),
    ],
)
def test_formats_and_tools_are_unchanged(more: dict[str, Any], directed: bool) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], **more}
    assert (len(bounded(body, DIRECTIVE)["messages"]) == 2) == directed


def test_the_clients_stop_sequences_win() -> None:
    assert bounded({"messages": []}, DIRECTIVE)["stop"] == ["END"]
    assert bounded({"messages": [], "stop": "MINE"}, DIRECTIVE)["stop"] == "MINE"
    assert "stop" not in bounded({"messages": []}, OutputBounds(9))


NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Mon, 23 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Mon, 23 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2026-11-23T12:00:10Z",
                "anthropic-ratelimit-tokens-remaining": "5",
                "anthropic-ratelimit-tokens-reset": "2026-11-23T13:00:00Z",
            },
            10.0,
        ),
    ],
)
def test_waits_asked_for_by_headers(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers, NOW) == expected


@given(st.text())
def test_no_header_however_odd_does_harm(value: str) -> None:
    headers = {"retry-after": value, "retry-after-ms": value}
    found = retry_after_s(headers, NOW)
    assert found is None or found >= 0


@given(st.integers(0, 50), st.integers(0, 10**6))
def test_waits_grow_and_stay_within_bounds(retry: int, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    assert 0.25 <= wait_s(retry, None, rng) <= 8.0
    assert 3.0 <= wait_s(retry, 3.0, rng) <= 3.3


@given(st.text(max_size=200), st.integers(1, 100), st.integers(1, 3))
def test_the_worst_case_is_at_least_any_case(text: str, limit: int, n: int) -> None:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": limit, "n": n}
    worst = worst_case_usd(body, flat(SONNET))
    dearest = max(SONNET.uncached_input, SONNET.cache_write_1h)
    bytes_of = len(text.encode("utf-8", "surrogatepass"))
    assert worst >= bytes_of * dearest + n * limit * SONNET.output


def test_image_data_is_not_text() -> None:
    url = "data:image/png;base64," + "A" * 10**6
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
    assert worst_case_usd(body, flat(SONNET)) < Decimal("0.1")


def test_tools_and_a_prediction_are_part_of_the_worst_case() -> None:
    plain: dict[str, Any] = {"messages": [], "max_tokens": 10}
    bare = worst_case_usd(plain, flat(SONNET))
    tooled = worst_case_usd({**plain, "tools": [{"type": "function"}]}, flat(SONNET))
    assert tooled >= bare + 1000 * SONNET.highest_input
    told = {**plain, "n": 2, "prediction": {"type": "content", "content": "x" * 100}}
    assert worst_case_usd(told, flat(SONNET)) >= 2 * bare + 200 * SONNET.output


def test_a_tier_that_is_not_capped_counts_at_its_dearest() -> None:
    step = PriceStep(0, TokenPrices(*(3 * getattr(SONNET, name) for name in SONNET.__slots__)))
    prices = replace(flat(SONNET), service_tiers={"priority": (step,)})
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
    standard = worst_case_usd({**body, "service_tier": "default"}, prices)
    assert standard == worst_case_usd(body, flat(SONNET))
    for tier in ("auto", "priority", None, 7):
        assert worst_case_usd({**body, "service_tier": tier}, prices) == 3 * standard


def test_the_documented_break_even_is_that_of_the_price_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "frontier.md").read_text(encoding="utf-8")
    found = PriceBook.load(clock=lambda: NOW).of("anthropic/claude-sonnet-5-5")
    assert found is not None
    prices = found.base
    for ttl, label in [("5m", "5 minutes"), ("1h", "1 hour")]:
        write = prices.cache_write_5m if ttl == "5m" else prices.cache_write_1h
        least = (write - prices.uncached_input) / (prices.uncached_input - prices.cache_read)
        cached = 10_000 * (write + 19 * prices.cache_read)
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {label} ")]
        assert f"= {least:.2f} |" in row
        assert f"= {cached:.3f} | {10_000 * 20 * prices.uncached_input:.3f} |" in row


@given(
    st.lists(st.sampled_from(["one", "zwei ü", ": a comment", "event: ping"]), max_size=6),
    st.sampled_from(["\n", "\r", "\r\n"]),
    st.lists(st.integers(0, 200)),
)
async def test_a_stream_cut_anywhere_has_the_same_events(
    texts: list[str], line_end: str, cuts: list[int]
) -> None:
    fields = [text if ":" in text else f"data: {text}" for text in texts]
    whole = "".join(field + 2 * line_end for field in fields).encode() + b"data: [DONE]"

    async def chunks() -> AsyncIterator[bytes]:
        for begin, end in itertools.pairwise([0, *sorted(cuts), len(whole)]):
            yield whole[begin:end]

    # An empty text says that something has arrived that is no event with data.
    found = [data async for data in read_events(chunks()) if data]
    assert found == [*(text for text in texts if ":" not in text), "[DONE]"]
