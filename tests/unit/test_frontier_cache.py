"""Markers, breakpoints, break-even, and prefixes that change."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.contracts.errors import FrontierRejected
from serving.contracts.frontier_settings import PromptCacheSettings
from serving.contracts.prices import MIN_CACHED_TOKENS
from serving.frontier.anthropic_request import anthropic_request, cache_control
from serving.frontier.cache_policy import CachePolicy, break_even_reuses
from serving.frontier.prefix_lint import PrefixLinter, differing_span, looks_like
from serving.frontier.prompt_cache import (
    MAX_BREAKPOINTS,
    Prefix,
    SplitPrompt,
    split_prompt,
    with_breakpoints,
)

from .frontier_kit import SONNET, dollars_a_million

MARKER = "---CACHE_BREAK---"
PIECES = st.lists(
    st.sampled_from(["a", "b ", "\n", MARKER, "---CACHE_", "BREAK---", "---", f"\n{MARKER}\n"]),
    max_size=9,
).map("".join)
PARTS = st.lists(
    st.one_of(
        PIECES.map(lambda text: {"type": "text", "text": text}),
        PIECES.map(lambda text: {"type": "image_url", "image_url": {"url": f"https://x/{text}"}}),
    ),
    max_size=3,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "developer", "user", "assistant"]),
            "content": st.one_of(PIECES, PARTS),
        }
    ),
    max_size=6,
)


def user(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def placed(split: SplitPrompt) -> dict[str, Any]:
    ends = [(prefix, cache_control("5m")) for prefix in split.prefixes]
    return with_breakpoints(split.body, ends)


def strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in inner for text in strings(item)]


@settings(deadline=None)
@given(MESSAGES, PIECES, PIECES)
def test_no_marker_ever_leaves(messages: Any, stop: str, told: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": told}}
    # Anthropic takes no stop sequence without a visible character.
    body = {"messages": messages, "stop": [f"{stop}."], "tools": [tool], "max_tokens": 1}
    split = split_prompt(body, MARKER)
    assert not [text for text in strings(split.body) if MARKER in text]
    assert len(split.prefixes) <= MAX_BREAKPOINTS
    cut = placed(split)
    assert not [text for text in strings(cut) if MARKER in text]
    for before, after in zip(split.body["messages"], cut["messages"], strict=True):
        assert text_of(after) == text_of(before)
    sent = anthropic_request(cut, "m")
    assert not [text for text in strings(sent) if MARKER in text]
    breakpoints = json.dumps(sent).count('"cache_control"')
    assert breakpoints == len(split.prefixes)


HALVES = MARKER[:9], MARKER[9:]


def test_markers_inside_markers_are_kept_apart() -> None:
    for depth in (2, 3):
        nested = HALVES[0] * depth + HALVES[1] * depth
        (text,) = [m["content"] for m in split_prompt(user(nested), MARKER).body["messages"]]
        assert MARKER not in text
        assert text.replace(" ", MARKER) == nested


@pytest.mark.parametrize(
    "text",
    [
        HALVES[0] * 40_000 + HALVES[1] * 40_000,
        f"a{MARKER}" * 40_000,
        f" {MARKER}" * 40_000,
        f"\n{MARKER}" * 40_000,
        MARKER * 40_000,
    ],
    ids=["nested", "words", "spaces", "lines", "markers"],
)
@pytest.mark.parametrize("where", ["user", "assistant", "tool"])
async def test_markers_take_time_linear_in_the_texts_length(text: str, where: str) -> None:
    # The blocked-loop detector fails this test where it takes longer.
    tool = {"type": "function", "function": {"name": "f", "description": text}}
    body = {"messages": [{"role": where, "content": text}]} if where != "tool" else user("a")
    split = split_prompt({**body, "tools": [tool] if where == "tool" else []}, MARKER)
    assert not [text for text in strings(split.body) if MARKER in text]


@pytest.mark.parametrize("stop", [MARKER, [MARKER], [MARKER, "END"]])
def test_a_stop_sequence_that_is_a_marker_is_left_out(stop: str | list[str]) -> None:
    split = split_prompt({**user("hi"), "stop": stop, "max_tokens": 1}, MARKER)
    sent = anthropic_request(split.body, "m")
    assert sent.get("stop_sequences", []) == (["END"] if "END" in stop else [])


@pytest.mark.parametrize("stop", ["\n", f"\n{MARKER}\n"])
def test_a_stop_sequence_without_a_visible_character_is_refused(stop: str) -> None:
    split = split_prompt({**user("hi"), "stop": [stop], "max_tokens": 1}, MARKER)
    with pytest.raises(FrontierRejected, match="has no visible character"):
        anthropic_request(split.body, "m")


def text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    parts = [{"text": content}] if isinstance(content, str) else content
    return "".join(
        part.get("text") or part["image_url"]["url"]
        for part in parts
        if any(part.get(name) for name in ("text", "image_url"))
    ).strip()


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (f"static\n{MARKER}\ndynamic", ["static\n", "dynamic"]),
        (f"static\r\n  {MARKER} \r\ndynamic", ["static\r\n", "dynamic"]),
        (f"static {MARKER} dynamic", ["static ", " dynamic"]),
        (f"static{MARKER}", ["static"]),
        (f"a{MARKER}b{MARKER}c", ["a", "b", "c"]),
        (f"a{MARKER}{MARKER}b", ["a", "b"]),
        (f"{MARKER}b", ["b"]),
        ("no marker", ["no marker"]),
    ],
)
def test_where_a_text_is_cut(text: str, pieces: list[str]) -> None:
    cut = placed(split_prompt(user(text), MARKER))["messages"][0]["content"]
    found = [cut] if isinstance(cut, str) else [part["text"] for part in cut]
    assert found == pieces


def test_a_marker_at_the_start_ends_what_came_before() -> None:
    body = {
        "messages": [
            {"role": "system", "content": "static"},
            {"role": "user", "content": f"{MARKER}\nask"},
        ]
    }
    system, user = placed(split_prompt(body, MARKER))["messages"]
    assert system["content"][0]["cache_control"] == {"type": "ephemeral"}
    assert user["content"] == "ask"


def test_of_many_markers_the_first_count() -> None:
    text = MARKER.join("abcdefgh")
    split = split_prompt(user(text), MARKER)
    assert [prefix.end for prefix in split.prefixes] == [1, 2, 3, 4]
    assert split.body["messages"][0]["content"] == "abcdefgh"


def test_the_digest_covers_all_before_the_marker_and_nothing_after() -> None:
    def digest(system: str, tools: Any, rest: str) -> str:
        body = {
            "tools": tools,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": f"static{MARKER}{rest}"},
            ],
        }
        return split_prompt(body, MARKER).prefixes[0].digest

    tool = [{"name": "f", "x": 1}]
    same = digest("s", tool, "one")
    assert digest("s", tool, "two") == same
    assert digest("s", [{"x": 1, "name": "f"}], "one") == same
    assert digest("t", tool, "one") != same
    assert digest("s", [], "one") != same
    two = [{"name": "f"}, {"name": "g"}]
    assert digest("s", two, "one") != digest("s", two[::-1], "one")


def prefix(name: str = "a", tokens: int = 5000) -> Prefix:
    return Prefix(0, None, 1, name * 64, tokens, "text")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def policy(clock: Clock | None = None, **more: Any) -> CachePolicy:
    return CachePolicy(PromptCacheSettings(**more), clock or Clock())


def test_break_even_of_real_prices() -> None:
    assert break_even_reuses(SONNET, "5m") == Decimal("0.5") / Decimal("1.9")
    assert break_even_reuses(SONNET, "1h") == Decimal(2) / Decimal("1.9")


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 200), st.integers(0, 50))
def test_caching_pays_beyond_the_break_even_and_not_below(
    i: int, r: int, w: int, reuses: int
) -> None:
    prices = dollars_a_million(str(i), str(r), str(w), str(w), "1")
    least = break_even_reuses(prices, "5m")
    cached, plain = w + reuses * r, (1 + reuses) * i
    if least is None:
        assert r >= i
    elif reuses > least:
        assert cached <= plain
    elif reuses < least:
        assert cached >= plain


def test_why_a_prefix_is_cached_or_not() -> None:
    dear = dollars_a_million("2", "2", "2.5", "4", "10")
    for decision, reason, ttl in [
        (policy().decide(prefix(), SONNET), "pays", "5m"),
        (policy(expected_reuses=0.2).decide(prefix(), SONNET), "too_rare", None),
        (policy().decide(prefix(tokens=MIN_CACHED_TOKENS - 1), SONNET), "too_short", None),
        (policy().decide(prefix(), dear), "reads_not_cheaper", None),
        (policy(enabled=False).decide(prefix(), SONNET), "disabled", None),
    ]:
        assert (decision.reason, decision.ttl) == (reason, ttl)


def test_observed_prefixes_override_the_setting() -> None:
    clock = Clock()
    seen = policy(clock, expected_reuses=1.0)
    for _ in range(5):
        seen.observe([prefix()])
        clock.now += 1200
    assert seen.expected_reuses(prefix(), "5m") == 0
    assert seen.expected_reuses(prefix(), "1h") == 4
    assert seen.decide(prefix(), SONNET).ttl == "1h"
    for _ in range(40):
        seen.observe([prefix()])
        clock.now += 10
    assert seen.decide(prefix(), SONNET).ttl == "5m"
    for _ in range(40):
        seen.observe([prefix()])
        clock.now += 7200
    assert seen.decide(prefix(), SONNET).reason == "too_rare"


def test_memory_and_labels_are_bounded() -> None:
    seen = policy(tracked_prefixes=2)
    for name in "abcabcc":
        seen.observe([prefix(name)])
    assert len(seen._seen) == 2
    labels = {seen.label(prefix(name)) for name in "abcdefg"}
    assert len(labels - {"other"}) <= 2
    assert "other" in labels


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("now 2026-11-09T12:00:01Z ok", "now 2026-11-09T12:00:02Z ok", "timestamp"),
        ("now 2026-11-09 12:00:01 ok", "now 2026-11-09 12:00:59 ok", "timestamp"),
        ("on 2026-11-09, say", "on 2026-11-10, say", "date"),
        (
            "id 123e4567-e89b-12d3-a456-426614174000 x",
            "id 123e4567-e89b-12d3-a456-426614174fff x",
            "uuid",
        ),
        ("req ab12cd34ef x", "req ab12cd34ee x", "id"),
        ("page 41 of", "page 42 of", "number"),
        ("Dear Anna, hello", "Dear Bertha, hello", "name"),
        ("the cat sat", "the dog sat", "text"),
    ],
)
def test_a_change_of_a_prefix_is_described(before: str, after: str, kind: str) -> None:
    span = differing_span(before, after)
    assert looks_like(span.after) == kind


@given(st.text(), st.text(), st.text(), st.text())
def test_the_span_is_where_texts_differ(head: str, a: str, b: str, tail: str) -> None:
    before, after = head + a + tail, head + b + tail
    span = differing_span(before, after)
    assert before[: span.start] == after[: span.start]
    assert 0 <= span.shared <= 1
    assert (before == after) == (span.shared == 1 or not before + after)


def test_a_changing_prefix_is_told_once_and_counted_always() -> None:
    linter = PrefixLinter(2)
    static = "A long and stable instruction. " * 20
    found = [
        linter.observe("chat", 0, "p", f"{static} Now: 12:00:{second:02d}. {static}")
        for second in range(10, 16)
    ]
    assert [unstable for _, unstable in found] == [False, False, True, True, True, True]
    (warning,) = linter.warnings
    assert (warning.kind, warning.before, warning.after)[0] == "timestamp"
    assert linter.observe("chat", 0, "p", "something else entirely") == (None, False)
    assert linter.observe("chat", 0, "p", "something else entirely") == (None, False)


def test_prefixes_with_nothing_in_common_are_different_prompts() -> None:
    linter = PrefixLinter(2)
    texts = ["one prompt", "quite another", "a third of its kind", "1234567890"] * 3
    assert not any(linter.observe("chat", 0, "p", text)[1] for text in texts)
    for purpose in "abcdef":
        linter.observe(purpose, 0, "p", "text")
    assert len(linter._last) == 2
