"""Anthropic's Messages in batches: requests to chat completions, results back."""

from typing import Any

import pytest
from anthropic._models import validate_type
from anthropic.types.messages import MessageBatchIndividualResponse

from serving.contracts.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.messages_request import chat_body
from serving.gateway.messages_result import message_of, result_of

USER = {"role": "user", "content": "What is a narrow gate?"}


def params(**more: Any) -> dict[str, Any]:
    return {"model": "auto", "max_tokens": 64, "messages": [USER], **more}


def test_a_plain_request() -> None:
    assert chat_body(params()) == params()


def test_every_field_that_has_a_counterpart() -> None:
    cached = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
    schema = {"type": "object", "properties": {"place": {"type": "string"}}}
    body = chat_body(
        params(
            system=[cached],
            temperature=0.5,
            top_p=0.9,
            top_k=5,
            stop_sequences=["END"],
            metadata={"user_id": "u-1"},
            service_tier="auto",
            stream=False,
            tools=[{"name": "weather", "description": "Says it.", "input_schema": schema}],
            tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
            route="frontier_only",
        )
    )
    function = {"name": "weather", "description": "Says it.", "parameters": schema}
    assert body == params(
        messages=[{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, USER],
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        stop=["END"],
        user="u-1",
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
        route="frontier_only",
    )


def test_a_conversation_with_tools() -> None:
    turns = [
        USER,
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"place": "Åsen"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "Rain."},
                {"type": "text", "text": "And now?"},
            ],
        },
        {"role": "assistant", "content": "It"},
    ]
    found = chat_body(params(messages=turns, system="Be brief."))["messages"]
    assert found == [
        {"role": "system", "content": "Be brief."},
        USER,
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"place": "Åsen"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "Rain."},
        {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
        {"role": "assistant", "content": "It"},
    ]


@pytest.mark.parametrize(
    ("choice", "wanted"), [("auto", "auto"), ("any", "required"), ("none", "none")]
)
def test_how_tools_are_chosen(choice: str, wanted: str) -> None:
    assert chat_body(params(tool_choice={"type": choice}))["tool_choice"] == wanted


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"thinking": {"type": "enabled"}}, "thinking"),
        ({"output_config": {}}, "output_config"),
        ({"container": "c"}, "container"),
        ({"stream": True}, "stream"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0.type"),
        ({"system": [IMAGE]}, "system.0.type"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools.0.type"),
        ({"tools": [{"name": "w", "input_schema": {}, "defer_loading": True}]},
         "tools.0.defer_loading"),
        ({"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "is_error": True}]}]},
         "messages.0.content.0.is_error"),
        ({"messages": [{"role": "assistant", "content": [
            {"type": "thinking", "thinking": "…", "signature": "s"}]}]},
         "messages.0.content.0.type"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_named(more: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        chat_body(params(**more))
    assert caught.value.field == field
    assert field in caught.value.message


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], None),
        ({"model": "auto", "messages": [USER]}, "max_tokens"),
        ({"max_tokens": 5, "messages": [USER]}, "model"),
        (params(messages="hello"), "messages"),
        (params(messages=["hello"]), "messages.0"),
        (params(messages=[{"role": "system", "content": "x"}]), "messages.0.role"),
        (params(messages=[{"role": "user", "content": 5}]), "messages.0.content"),
        (params(messages=[{"role": "user", "content": [{"type": "text"}]}]),
         "messages.0.content.0.text"),
        (params(tools=[{"name": "w"}]), "tools.0.input_schema"),
        (params(tools=[{"input_schema": {}}]), "tools.0.name"),
        (params(tool_choice={"type": "some"}), "tool_choice.type"),
        (params(tool_choice="auto"), "tool_choice"),
        (params(stop_sequences="END"), "stop_sequences"),
        (params(metadata="u"), "metadata"),
    ],
)  # fmt: skip
def test_a_malformed_request_names_its_field(body: Any, field: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_body(body)
    assert caught.value.field == field


def completion(message: dict[str, Any], finish: str = "stop", **more: Any) -> dict[str, Any]:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 10},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"id": "chatcmpl-1", "model": "openai/gpt", "choices": [choice], "usage": usage, **more}


def line(status: int, body: dict[str, Any]) -> dict[str, Any]:
    response = {"status_code": status, "request_id": "req-1", "body": body}
    return {"id": "batch_req_1", "custom_id": "k1", "response": response, "error": None}


def strict(result: dict[str, Any]) -> Any:
    """Return a line of results as the SDK reads it strictly."""
    return validate_type(type_=MessageBatchIndividualResponse, value=result)


def test_an_answer_is_a_message() -> None:
    found = strict(result_of(line(200, completion({"content": "A few words."}))))
    message = found.result.message
    assert [block.text for block in message.content] == ["A few words."]
    assert (message.stop_reason, message.model) == ("end_turn", "openai/gpt")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (50, 40)
    assert (usage.cache_creation_input_tokens, usage.output_tokens) == (10, 20)
    assert usage.output_tokens_details.thinking_tokens == 5
    assert usage.service_tier == "batch"


def test_calls_of_tools_are_blocks() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    body = completion({"content": "I look.", "tool_calls": [call]}, "tool_calls")
    message = strict(result_of(line(200, body))).result.message
    text, used = message.content
    assert (text.text, used.name, used.input, used.id) == ("I look.", "f", {"a": 1}, "c1")
    assert message.stop_reason == "tool_use"


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("length", "max_tokens"), ("content_filter", "refusal"), (None, "max_tokens")],
)
def test_why_an_answer_ended(finish: Any, reason: str) -> None:
    assert message_of(completion({"content": "x"}, finish))["stop_reason"] == reason


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "not_found_error"),
        (409, "invalid_request_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_errors_have_anthropics_types(status: int, kind: str) -> None:
    body = {"error": {"message": "it failed", "param": "model", "fix": "try auto", "code": "x"}}
    found = strict(result_of(line(status, body)))
    assert found.custom_id == "k1"
    assert found.result.error.error.type == kind
    assert found.result.error.error.message == "model: it failed; try auto"
    assert found.result.error.request_id == "req-1"


@pytest.mark.parametrize(
    ("code", "kind"),
    [("batch_expired", "expired"), ("batch_cancelled", "canceled"), ("other", "errored")],
)
def test_lines_that_did_not_run(code: str, kind: str) -> None:
    row = {"custom_id": "k1", "response": None, "error": {"code": code, "message": "no"}}
    assert strict(result_of(row)).result.type == kind
