"""The cache's key: what decides the answer changes it, and what cannot does not."""

import re
import unicodedata
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cache.key import chat_fingerprint, chat_key, normalised, task_key
from serving.contracts.answer import TaskRequest
from serving.contracts.routing import RequestOptions
from serving.contracts.task_spec import TaskSpec
from serving.pipeline.read import read_chat

BODY: dict[str, Any] = {
    "model": "auto",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 10² plus 5?"},
    ],
    "temperature": 0.5,
    "max_tokens": 50,
}
OPTIONS = RequestOptions()
TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=3), min_size=1, max_size=4)


def key(body: dict[str, Any], options: RequestOptions = OPTIONS, **more: str) -> str:
    named = {"namespace": "tenant/acme", "policy": "p", **more}
    return chat_key(read_chat(body, 8), options, **named)


def user(content: Any) -> dict[str, Any]:
    return {**BODY, "messages": [BODY["messages"][0], {"role": "user", "content": content}]}


CHANGES: list[dict[str, Any]] = [
    {"model": "openai/gpt-4.1"},
    {"temperature": 0.6},
    {"temperature": None},
    {"max_tokens": 51},
    {"max_completion_tokens": 40},
    {"n": 2},
    {"seed": 1},
    {"top_p": 0.5},
    {"stop": ["."]},
    {"response_format": {"type": "json_object"}},
    {"logit_bias": {"1": 5}},
    {"frequency_penalty": 0.5},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"reasoning_effort": "low"},
    {"unknown_field": 1},
    {"target_language": "de"},
    {"narrowgate": {"context_mode": "off"}},
    {"narrowgate": {"context_mode": "ratio"}},
    {"narrowgate": {"context_mode": "ratio", "context_ratio": 0.25}},
    {"messages": BODY["messages"][1:]},
    {"messages": list(reversed(BODY["messages"]))},
    {"messages": [{"role": "developer", "content": "Be brief."}, BODY["messages"][1]]},
    {"messages": [*BODY["messages"], {"role": "assistant", "content": "105."}]},
    {"messages": [BODY["messages"][0], {**BODY["messages"][1], "name": "ann"}]},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_decides_the_answer_changes_the_key(change: dict[str, Any]) -> None:
    assert key({**BODY, **change}) != key(BODY)


def test_every_change_has_a_key_of_its_own() -> None:
    assert len({key({**BODY, **change}) for change in CHANGES}) == len(CHANGES)


@pytest.mark.parametrize(
    "change",
    [
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"user": "ann"},
        {"metadata": {"a": "b"}},
        {"store": True},
        {"store": False},
        {"safety_identifier": "ann"},
        {"prompt_cache_key": "k"},
        {"n": 1},
        {"max_completion_tokens": 50, "max_tokens": None},
        {"messages": [BODY["messages"][0], {"role": "user", "content": " What is 10² plus 5?\n"}]},
        {
            "messages": [
                BODY["messages"][0],
                {"role": "user", "content": [{"type": "text", "text": "What is 10² plus 5?"}]},
            ]
        },
    ],
    ids=str,
)
def test_what_cannot_decide_it_does_not(change: dict[str, Any]) -> None:
    assert key({**BODY, **change}) == key(BODY)


@pytest.mark.parametrize(
    "options",
    [
        RequestOptions(route="frontier_only"),
        RequestOptions(route="local_only"),
        RequestOptions(max_cost_usd=Decimal("0.1")),
        RequestOptions(deterministic=True),
    ],
    ids=str,
)
def test_options_that_choose_the_model_change_the_key(options: RequestOptions) -> None:
    assert key(BODY, options) != key(BODY)


@pytest.mark.parametrize(
    "options",
    [
        RequestOptions(cache="refresh"),
        RequestOptions(cache_ttl_s=5.0),
        RequestOptions(end_user="ann"),
        RequestOptions(audit="never"),
    ],
    ids=str,
)
def test_other_options_do_not(options: RequestOptions) -> None:
    assert key(BODY, options) == key(BODY)


def test_the_namespace_and_the_policy_change_the_key() -> None:
    found = {
        key(BODY),
        key(BODY, namespace="tenant/other"),
        key(BODY, namespace="shared/acme"),
        key(BODY, policy="q"),
    }
    assert len(found) == 4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("10² plus 5", "102 plus 5"),
        ("\u00bd cup", "1\u20442 cup"),
        ("Turn it on", "turn it on"),
        ("Turn it on", "Turn it on."),
        ("polish", "Polish"),
        ("a  b", "a b"),
        ("a\nb", "a b"),
        ("a\r\nb", "a\nb"),
        ("№ 5", "No 5"),
        ("\u017f", "s"),
        ("x", ""),
    ],
)
def test_texts_with_different_meanings_stay_apart(one: str, other: str) -> None:
    assert key(user(one)) != key(user(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("\uff35\uff33", "US"),
        ("a\u00a0b", "a b"),
        ("\u3000x\t", "x"),
        ("\ud55c", "\u1112\u1161\u11ab"),
        ("\uff76\uff9e", "ガ"),
    ],
)
def test_other_codes_of_the_same_characters_are_one_text(one: str, other: str) -> None:
    assert key(user(one)) == key(user(other))


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@given(st.text(), st.sampled_from(["", " ", "\n", "\t\u00a0", "\u3000"]))
def test_outer_white_space_is_no_part_of_a_text(text: str, space: str) -> None:
    assert normalised(space + text + space) == normalised(text)


@given(st.text(st.characters(codec="utf-8")))
def test_texts_that_are_one_are_one_in_nfkc(text: str) -> None:
    """The normal form never joins texts that NFKC and outer white space keep apart."""
    full = unicodedata.normalize("NFKC", text).strip()
    assert unicodedata.normalize("NFKC", normalised(text)).strip() == full


VISIBLE = {"role": "system", "content": "x"}
"""Without a visible character a chat is refused."""


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_two_texts_share_a_key_only_if_they_are_one(one: str, other: str) -> None:
    def of(text: str) -> str:
        return key({"model": "auto", "messages": [VISIBLE, {"role": "user", "content": text}]})

    assert (of(one) == of(other)) is (normalised(one) == normalised(other))


@given(TEXTS, TEXTS)
def test_the_borders_of_messages_count(one: list[str], other: list[str]) -> None:
    def of(texts: list[str]) -> str:
        messages = [{"role": "user", "content": text} for text in texts]
        return key({"model": "auto", "messages": [VISIBLE, *messages]})

    assert (of(one) == of(other)) is (list(map(normalised, one)) == list(map(normalised, other)))


def test_an_answer_that_the_client_began_is_compared_to_the_last_character() -> None:
    def begun(text: str) -> str:
        messages = [*BODY["messages"], {"role": "assistant", "content": text}]
        return key({**BODY, "messages": messages})

    assert begun("The sum is ") != begun("The sum is")


def test_numbers_of_one_value_are_one() -> None:
    assert key({**BODY, "temperature": 1}) == key({**BODY, "temperature": 1.0})
    assert key({**BODY, "logprobs": True}) != key({**BODY, "logprobs": False})


def task(specs: dict[str, TaskSpec], name: str, text: str, **more: Any) -> str:
    request = TaskRequest(name, text, **more)
    return task_key(request, specs[name], OPTIONS, "tenant/acme", "p")


def test_a_tasks_key_has_its_spec_its_input_and_its_languages(
    specs: dict[str, TaskSpec],
) -> None:
    changed = specs["topic"].model_copy(update={"instruction": "Another instruction."})
    found = {
        task(specs, "topic", "A text."),
        task({**specs, "topic": changed}, "topic", "A text."),
        task(specs, "topic", "Another text."),
        task(specs, "sentiment", "A text."),
        task(specs, "translation", "A text.", target_language="de"),
        task(specs, "translation", "A text.", target_language="fr"),
    }
    assert len(found) == 6


def test_only_a_classifications_input_is_normalised(specs: dict[str, TaskSpec]) -> None:
    assert task(specs, "topic", " A text.") == task(specs, "topic", "A text.")
    # Entities have positions in the text as it was sent.
    assert task(specs, "ner", " A text.") != task(specs, "ner", "A text.")


def test_half_a_surrogate_pair_has_a_key(specs: dict[str, TaskSpec]) -> None:
    assert task(specs, "topic", "\ud800") != task(specs, "topic", "\udc00")


def test_a_fingerprint_is_of_all_but_the_last_message() -> None:
    def fingerprint(body: dict[str, Any]) -> str:
        return chat_fingerprint(read_chat(body, 8), OPTIONS, "tenant/acme", "p")

    assert fingerprint(user("another question")) == fingerprint(BODY)
    assert fingerprint(BODY) != key(BODY)
    for change in CHANGES:
        assert fingerprint({**BODY, **change}) != fingerprint(BODY)
    longer = [*BODY["messages"], {"role": "user", "content": "And 6?"}]
    assert fingerprint({**BODY, "messages": longer}) != fingerprint(BODY)
    other = replace(OPTIONS, route="local_only")
    assert chat_fingerprint(read_chat(BODY, 8), other, "tenant/acme", "p") != fingerprint(BODY)


@pytest.mark.parametrize("text", ["x", "x" * 100_000, "\x00", "a" * 63 + "b", "{}"])
def test_what_is_kept_by_key_is_kept_by_a_digest(text: str) -> None:
    """No client can choose keys that collide, in the database or in a map in memory."""
    found = key(user(text + "."))
    assert re.fullmatch(r"[0-9a-f]{64}", found)
