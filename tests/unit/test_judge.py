"""A model as judge: both orders, delimiters, verdicts of the schema alone, rules first."""

import asyncio
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts.errors import FrontierInvalidResponse, FrontierTimeout, NarrowgateError
from serving.evidence.judge import (
    JudgedAnswers,
    Judgement,
    JudgePrompt,
    JudgeReply,
    agreement_of,
    judge,
    prompt_of,
    read_verdict,
)

from .patience import GUARD_S

ANSWERS = JudgedAnswers("Where is the Louvre?", "It is in Paris.", "The Louvre stands in Lyon.")


def parts_of(prompt: JudgePrompt) -> dict[str, str]:
    """Return the parts of a prompt, as a reader that trusts only the delimiter finds them."""
    text = prompt.body["messages"][-1]["content"]
    delimiter, _, rest = text.partition("\n")
    found = {}
    for name in ("QUESTION", "FIRST", "SECOND"):
        _, _, rest = rest.partition(f"{delimiter} {name}\n")
        found[name], _, rest = rest.partition(f"\n{delimiter} END {name}")
    return found


def judging(verdict: Callable[[dict[str, str]], str]) -> Any:
    """Return a judge that looks at the parts."""

    async def ask(prompt: JudgePrompt) -> JudgeReply:
        await asyncio.sleep(0)
        return JudgeReply(json.dumps({"verdict": verdict(parts_of(prompt))}), Decimal("0.001"))

    return ask


def says(text: str) -> Any:
    async def ask(prompt: JudgePrompt) -> JudgeReply:
        return JudgeReply(text)

    return ask


def by_content(parts: dict[str, str]) -> str:
    """Find every answer with `Paris` wrong."""
    if "Paris" in parts["FIRST"]:
        return "first_is_wrong"
    return "second_is_wrong" if "Paris" in parts["SECOND"] else "equal"


async def test_a_wrong_answer_is_wrong_in_both_orders() -> None:
    found = await judge(ANSWERS, judging(by_content))
    assert found.pair is not None
    assert (found.pair.loss, found.pair.badly_worse) == (1.0, 1.0)
    assert (found.decided_by, found.cost_usd) == ("judge", Decimal("0.002"))


async def test_a_better_answer_is_no_loss() -> None:
    other = JudgedAnswers(ANSWERS.question, ANSWERS.reference, ANSWERS.shortcut)
    found = await judge(other, judging(by_content))
    assert found.pair is not None
    assert (found.pair.loss, found.pair.badly_worse) == (0.0, 0.0)


@pytest.mark.parametrize("place", ["first", "second"])
@pytest.mark.parametrize("how", ["weaker", "wrong"])
async def test_a_judge_that_follows_the_place_alone_finds_a_tie(place: str, how: str) -> None:
    found = await judge(ANSWERS, judging(lambda parts: f"{place}_is_{how}"))
    assert found.pair is not None
    assert found.pair.loss == 0.5
    # What is badly worse in one order alone counts half.
    assert found.pair.badly_worse == (0.5 if how == "wrong" else 0.0)


@pytest.mark.parametrize(
    "text",
    [
        "", "equal", "null", "[]", "{}", '{"verdict": "shortcut"}', '{"verdict": ["equal"]}',
        '{"verdict": "equal", "because": "x"}', 'Sure: {"verdict": "equal"}',
        '{"verdict": "equal"} {"verdict": "first_is_wrong"}', "[" * 100_000,
        '{"verdict": "equal", "verdict": "second_is_wrong"}',
    ],
)  # fmt: skip
async def test_nonsense_is_no_verdict(text: str) -> None:
    assert await judge(ANSWERS, says(text)) == Judgement(None, "judge", None)
    with pytest.raises(FrontierInvalidResponse, match="schema"):
        read_verdict(text, shortcut_first=True)


def test_a_code_fence_is_left_out() -> None:
    assert read_verdict('```json\n{"verdict": "equal"}\n```', shortcut_first=True) == "same"


async def test_what_rules_tell_is_not_asked() -> None:
    async def ask(prompt: JudgePrompt) -> JudgeReply:
        raise AssertionError

    same = await judge(JudgedAnswers("Where?", "In Paris.", "In Paris"), ask)
    assert same.pair is not None
    assert (same.pair.badly_worse, same.decided_by, same.cost_usd) == (0.0, "rule", Decimal(0))
    other = await judge(JudgedAnswers("How far?", "300 km", "500 km"), ask)
    assert other.pair is not None
    assert other.pair.badly_worse == 1.0


async def test_an_error_of_one_call_is_raised_as_it_is() -> None:
    async def ask(prompt: JudgePrompt) -> JudgeReply:
        if parts_of(prompt)["FIRST"] == ANSWERS.shortcut:
            raise FrontierTimeout("the provider is silent")
        await asyncio.sleep(600)
        return JudgeReply("")

    with pytest.raises(NarrowgateError) as caught:
        await asyncio.wait_for(judge(ANSWERS, ask), GUARD_S)
    assert isinstance(caught.value, FrontierTimeout)


@given(st.text(), st.text(), st.text(), st.booleans())
def test_no_text_breaks_out_of_its_part(
    question: str, shortcut: str, reference: str, first: bool
) -> None:
    answers = JudgedAnswers(question, shortcut, reference)
    prompt = prompt_of(answers, shortcut_first=first)
    order = (shortcut, reference) if first else (reference, shortcut)
    assert parts_of(prompt) == {"QUESTION": question, "FIRST": order[0], "SECOND": order[1]}


def test_the_system_part_holds_no_word_of_the_data_and_delimiters_differ() -> None:
    marked = JudgedAnswers("MARKER-Q", "MARKER-S", "MARKER-R")
    one, other = (prompt_of(marked, shortcut_first=True) for _ in range(2))
    assert one.body["messages"][0] == other.body["messages"][0]
    assert "MARKER" not in one.body["messages"][0]["content"]
    assert one.body["messages"][1] != other.body["messages"][1]


@given(st.text(max_size=200), st.text(max_size=200))
def test_rules_are_symmetric(one: str, other: str) -> None:
    assert agreement_of(one, other) == agreement_of(other, one)
    assert agreement_of(one, one) == "same"


@pytest.mark.parametrize(
    ("stored", "fresh", "expected"),
    [
        ("It is Paris.", "It is Paris", "same"),
        ("It is Paris.\r\n", "  It is Paris", "same"),
        ("\u22125", "-5", "same"),
        ("About 300 km.", "About 500 km.", "different"),
        ("It is Paris.", "It is Lyon.", "undecided"),
        ("-5", "5", "different"),
        ("It takes 5 days.", "It takes 7 days", "different"),
        ("3 of 4", "4 of 3", "different"),
        ("3.1", "3.2", "different"),
        ("It was 1998.", "It was 1999.", "different"),
        ("x > 1", "x < 1", "undecided"),
    ]
    + [
        (*pair, "undecided")
        for pair in [
            ("x ≥ 3", "x ≤ 3"), ("✅", "❌"), ("👍", "👎"), ("a && b", "a || b"), ("C#", "C"),
            ("if (!x) return;", "if (x) return;"), ("arr[1:]", "arr[:1]"), ("5!", "5"),
            ("A → B", "A ← B"), ("∀x P(x)", "∃x P(x)"), ("p ∧ q", "p \u2228 q"), ("x ∈ A", "x ∉ A"),
            ("~x", "x"), ("☑ done", "☐ done"), ("Increase ↑ 5", "Increase ↓ 5"), ("[^a]", "[a]"),
            (r"\d", r"\D"), ("√2", "2"), ("∞", "∅"), ("rm -rf ./", "rm -rf /"), ("US", "us"),
            ("(a+b)*c", "a+(b*c)"), ("5 mW", "5 MW"), ("", "🙂"), ("Yes.", "Yes?"), ("a/.", "a/"),
            ("Polish", "polish"), ("x = {1}", "x = [1]"), ("no, stop", "no stop"), ("pH", "PH"),
            ("if a:\n  b\nc", "if a:\n  b\n  c"), ("½", "¼"), ("5°", "5'"), ("a_b", "a b"),
            # Numbers of one value, or of one that rules cannot tell.
            ("1,000", "1000"), ("5", "5.0"), ("3.14", "3.1416"), ("3.14", "3"), ("1/2", "0.5"),
            ("50%", "0.5"), ("$1,200", "1200 dollars"), ("10:30", "10.30"), ("07", "7"),
            ("1.000", "1000"), ("1e3", "1000"), ("2,5 km", "2.5 km"), ("1990s", "1990"),
            ("100°C", "212°F"), ("3 or 4", "4 or 5 or 6"), ("version 1.2.3", "version 1.2.4"),
            ("5 of 7 days", "5 of 9 days"),
        ]
    ],
)  # fmt: skip
def test_answers_are_compared_by_rule_first(stored: str, fresh: str, expected: str) -> None:
    assert agreement_of(stored, fresh) == expected
    assert agreement_of(fresh, stored) == expected
