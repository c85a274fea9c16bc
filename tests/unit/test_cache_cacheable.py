"""What is never looked up, stored or served, each with its reason."""

from decimal import Decimal
from typing import Any, get_args

import pytest

from serving.cache.cacheable import Reason, unfit_answer, unfit_chat, unfit_document
from serving.contracts.answer import Answer, Usage
from serving.pipeline.read import read_chat

TEXT = [{"role": "user", "content": "Why is the sky blue?"}]
IMAGE = [{"role": "user", "content": [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
]}]  # fmt: skip
CALLED = [
    *TEXT,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "5"},
]  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def request_reason(**body: Any) -> Reason | None:
    sampled = body.pop("sampled", "exact_only")
    return unfit_chat(read_chat({"model": "auto", "messages": TEXT, **body}, 8), sampled)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"tools": TOOLS}, "tools"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tools"),
        ({"messages": CALLED}, "tools"),
        ({"web_search_options": {}}, "tools"),
        ({"messages": IMAGE}, "not_text"),
        ({"modalities": ["text", "audio"], "audio": {"voice": "a", "format": "wav"}}, "not_text"),
        ({"my_field": 1}, "unknown_field"),
        ({"logprobs": True}, "log_probabilities"),
        ({"sampled": "off"}, "sampled"),
        ({"sampled": "off", "temperature": 0.1}, "sampled"),
    ],
    ids=str,
)
def test_requests_that_an_entry_cannot_answer(body: dict[str, Any], reason: Reason) -> None:
    assert request_reason(**body) == reason


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"temperature": 0, "sampled": "off"},
        {"model": "task/topic", "sampled": "off"},
        {"response_format": {"type": "json_object"}, "seed": 5, "stop": ["x"]},
        {"messages": [{"role": "system", "content": "Today is Monday."}, *TEXT]},
        {"tools": []},
        {"messages": [*TEXT, {"role": "assistant", "content": "Because."}, *TEXT]},
    ],
    ids=str,
)
def test_requests_that_an_entry_can_answer(body: dict[str, Any]) -> None:
    assert request_reason(**body) is None


def test_the_words_of_every_turn_count_but_those_of_the_application() -> None:
    for text, reason in (("the latest iPhone", "time_dependent"), ("SSN 078-05-1120", "personal")):
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}, *TEXT]
        assert request_reason(messages=turns) == reason
        assert request_reason(messages=[{"role": "developer", "content": text}, *TEXT]) is None


@pytest.mark.parametrize("before", [0, 16_370, 16_380, 16_383, 16_384, 16_390, 50_000])
def test_a_long_text_is_searched_to_its_end_and_words_stay_whole(before: int) -> None:
    filler = "word " * 20_000
    for text, reason in (
        ("the nowhere land", None), ("what is new today", "time_dependent"),
        ("IBAN DE89 3704 0044 0532 0130 00", "personal"), ("ann.lee+x@example.org", "personal"),
    ):  # fmt: skip
        content = f"{filler[:before]} {text} {filler}"
        assert request_reason(messages=[{"role": "user", "content": content}]) == reason


def document(**changes: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "Because of scattering."}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **changes}
    choice["message"] = {**message, **changes.get("message", {})}
    return {"choices": [choice], "usage": {"prompt_tokens": 5}}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (document(finish_reason="length"), "cut"),
        (document(finish_reason="content_filter"), "cut"),
        (document(finish_reason=None), "cut"),
        (document(finish_reason="tool_calls", message={"tool_calls": [{}]}), "tool_call"),
        (document(message={"function_call": {"name": "f"}}), "tool_call"),
        (document(message={"refusal": "I cannot."}), "refusal"),
        (document(message={"content": "I'm sorry, but I can't help with that."}), "refusal"),
        (document(message={"content": "Es tut mir leid, das geht nicht."}), "refusal"),
        (document(message={"content": "Je ne peux pas répondre."}), "refusal"),
        (document(message={"content": "Lo siento, no puedo."}), "refusal"),
        (document(message={"content": " \n"}), "empty"),
        (document(message={"content": None}), "empty"),
        ({**document(), "usage": None}, "empty"),
        ({**document(), "choices": []}, "empty"),
        ({**document(), "choices": document()["choices"] + document(finish_reason="length")[
            "choices"]}, "cut"),
    ],
    ids=str,
)  # fmt: skip
def test_answers_that_are_not_stored(answer: dict[str, Any], reason: Reason) -> None:
    assert unfit_document(answer) == reason


def test_a_complete_answer_is_stored() -> None:
    assert unfit_document(document()) is None
    assert unfit_document(document(message={"content": "Sorry is a word."})) is None


def test_a_tasks_answer_is_stored_where_it_is_whole_and_was_read() -> None:
    answer = Answer(
        task="topic", value="sports", label_probabilities=None, confidence=0.9, valid=True,
        notes=(), route="local", reason="narrow", model="m", request_id="r",
        usage=Usage(uncached_input_tokens=1, output_tokens=1),
    )  # fmt: skip
    assert unfit_answer(answer, "stop") is None
    # An amount under a millionth of a dollar has every digit, as in the reports.
    cheap = answer.model_copy(update={"cost_usd": Decimal("1.639E-9")})
    assert cheap.model_dump(mode="json")["cost_usd"] == "0.000000001639"
    assert Answer.model_validate(cheap.model_dump(mode="json")).cost_usd == cheap.cost_usd
    assert unfit_answer(answer, "length") == "cut"
    assert unfit_answer(answer.model_copy(update={"valid": False}), "stop") == "invalid"


def test_no_reason_is_unused() -> None:
    tested = {"tools", "not_text", "unknown_field", "log_probabilities", "sampled",
              "time_dependent", "random", "personal", "cut", "tool_call", "refusal", "empty",
              "invalid"}  # fmt: skip
    # The others need the settings or the whole request: tests/unit/test_cache_http.py.
    assert set(get_args(Reason)) - tested == {"asked", "excluded", "oversized"}
