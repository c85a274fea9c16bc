"""Fields that the endpoints accept, ignore and refuse, over the ASGI app."""

import json
from typing import Any

import pytest

from serving.contracts.frontier_settings import FrontierSettings
from serving.contracts.requests import IGNORED_FIELDS
from serving.contracts.task_spec import TaskSpec
from serving.pipeline.read import MAX_MESSAGES

from ..provider.script import Fault
from ..provider.server import ProviderServer
from .chat_kit import CHAT, chat_body, replying
from .frontier_kit import OPENAI, SONNET, FlatPrices, frontier, settings
from .scripted import MODEL, WINDOW, Server, assert_error

PROVIDER = "openai/gpt-6-luna"
TASK = "task/topic"
COMPLETIONS = "/v1/completions"


@pytest.fixture
async def server(specs: dict[str, TaskSpec]) -> Server:
    """A local model, tasks, and a provider that answers."""
    server = await Server(specs).ready()
    server.frontier.reply = replying("An answer.")
    return server


def untouched(server: Server) -> bool:
    """Return whether neither engine nor provider was asked."""
    return not server.engine.bodies and not server.frontier.calls


NUMBERS: list[tuple[str, Any]] = [
    *(("max_tokens", value) for value in (0, -1, "5", 5.0, True, "lots", [], {}, 2**40)),
    *(("max_completion_tokens", value) for value in (0, -1, "5", True)),
    *(("n", value) for value in (0, -2, True, "1000", "50", 50.0, 129, [2])),
    *(("temperature", value) for value in ("hot", -0.1, 2.1, True, [])),
    *(("top_p", value) for value in ("1", -1, 1.5)),
    *(("seed", value) for value in ("1", 1.5, 2**70)),
    ("stop", ""),
    ("stop", [""]),
    ("stop", ["a", 5]),
    ("stop", 5),
    ("stop", ["x"] * 17),
    ("stream", "yes"),
    ("stream", 1),
    ("frequency_penalty", 3),
    ("logprobs", "x"),
    ("top_logprobs", "3"),
    ("top_logprobs", 99),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {"1": 200}),
    ("user", 5),
    ("metadata", "x"),
    ("metadata", {"a": {"b": ["c"]}}),
    *(("reasoning_effort", value) for value in ("", "NaN", "High", 1, ["low"], {})),
    *(("verbosity", value) for value in ("", "1", "LOW", True, {})),
    *(("service_tier", value) for value in ("", "1", "Priority", "batch", [], {})),
    *(("prompt_cache_retention", value) for value in ("", "0x1", "24H", 24, {})),
    *(("modalities", value) for value in ("text", ["video"], [1])),
    ("prediction", {"type": "x", "content": "y"}),
    ("prediction", {"type": "content", "content": 5}),
    ("response_format", "json"),
    *(("tool_choice", value) for value in (5, ["auto"], True, "", "NaN", "any")),
    *(("function_call", value) for value in (5, "", "required", {"name": 5})),
    *(("logit_bias", {token: 1}) for token in ("\u0663", "-1", "", "1.0")),
    ("tools.0.function", [{"type": "function"}]),
    ("tools.0.function", [{"type": "function", "function": 5}]),
    ("tools.0.function.name", [{"type": "function", "function": {"name": 5}}]),
    (
        "tools.0.function.parameters",
        [{"type": "function", "function": {"name": "f", "parameters": 7}}],
    ),
    ("functions.0.name", [{}]),
    ("response_format.type", {"type": "xml"}),
    ("response_format.json_schema", {"type": "json_schema"}),
]


@pytest.mark.parametrize("model", [MODEL, TASK, PROVIDER, "auto"])
async def test_a_value_that_is_not_valid_is_a_400_with_its_name_on_every_route(
    server: Server, model: str
) -> None:
    for param, value in NUMBERS:
        body = chat_body(model, **{param.partition(".")[0]: value})
        error = assert_error(await server.post(CHAT, json=body), 400, "invalid_request")
        assert error["param"].startswith(param), (param, value)
    assert untouched(server)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": "x"}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
    ],
)
async def test_fields_that_need_another_one_are_refused_without_it(
    server: Server, fields: dict[str, Any], param: str
) -> None:
    for model in (MODEL, PROVIDER):
        response = await server.post(CHAT, json=chat_body(model, **fields))
        assert assert_error(response, 400, "invalid_request")["param"] == param
    assert untouched(server)


LIKE_NOTHING: dict[str, list[Any]] = {
    "best_of": [True, 1.0, "1"],
    "echo": [0, "", True],
    "min_tokens": [False, 0.0],
    "top_k": [False, 0.0, -1.0],
    "top_logprobs": [False, 0.0],
    "min_p": [False],
    "frequency_penalty": [False],
    "repetition_penalty": [True],
    "ignore_eos": [0],
    "store": [0],
    "logprobs": [0],
}


@pytest.mark.parametrize("model", [MODEL, TASK, PROVIDER])
async def test_a_value_that_python_takes_for_a_default_is_not_absent(
    specs: dict[str, TaskSpec], provider: ProviderServer, model: str
) -> None:
    async with frontier(settings(provider)) as stack:
        server = await Server(specs, frontier=stack).ready()
        for name, values in LIKE_NOTHING.items():
            for value in values:
                body = chat_body(model if model != PROVIDER else OPENAI, "A text.", **{name: value})
                response = await server.post(CHAT, json=body)
                assert response.status_code == 400, (name, value, response.text)
                assert response.json()["error"]["param"] == name
    assert provider.script.seen == []
    assert server.engine.bodies == []


@pytest.mark.parametrize(
    ("fields", "param", "fix"),
    [
        ({"top_p": 0}, "top_p", "temperature: 0"),
        ({"top_p": 0.0}, "top_p", "temperature: 0"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "up to max_tokens"),
    ],
)
async def test_a_value_that_only_the_engine_does_not_take_is_refused_with_a_fix(
    server: Server, fields: dict[str, Any], param: str, fix: str
) -> None:
    for path, text in ((CHAT, chat_body(MODEL)), (COMPLETIONS, {"model": MODEL, "prompt": "x"})):
        error = assert_error(
            await server.post(path, json={**text, **fields}), 400, "invalid_request"
        )
        assert (error["param"], fix in error["fix"]) == (param, True)
        assert str(fields[param]) in error["message"]
    assert untouched(server)


@pytest.mark.parametrize(
    ("turn", "param"),
    [
        ({"role": "user", "content": "x", "plugins": [1]}, "messages.0.plugins"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]},
         "messages.0.content.0.y"),
        ({"role": "user", "content": "x", "name": {"a": 1}}, "messages.0.name"),
    ],
)  # fmt: skip
async def test_an_unknown_field_inside_a_message_is_not_ignored_by_a_local_model(
    server: Server, turn: dict[str, Any], param: str
) -> None:
    for model in (MODEL, "auto"):
        body = {"model": model, "messages": [turn], "route": "local_only"}
        response = await server.post(CHAT, json=body)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == param
        assert response.json()["error"]["fix"]
    assert untouched(server)


async def test_a_suffix_is_refused_before_the_engine_is_asked(server: Server) -> None:
    body = {"model": MODEL, "prompt": "x", "suffix": "1"}
    error = assert_error(await server.post(COMPLETIONS, json=body), 400, "unsupported_parameter")
    assert error["param"] == "suffix"
    assert error["fix"].startswith("remove it")
    assert (await server.post(COMPLETIONS, json={**body, "suffix": ""})).status_code == 200


NOTHING: dict[str, list[Any]] = {
    "tools": [None, []],
    "tool_choice": [None, "none", "auto"],
    "functions": [None, []],
    "function_call": [None, "none"],
    "audio": [None, {}],
    "modalities": [None, ["text"]],
    "prediction": [None, {}],
    "reasoning_effort": [None],
    "web_search_options": [None],
    "stop": [None, []],
    "response_format": [None, {"type": "text"}],
    "logprobs": [None, False],
    "top_logprobs": [None, 0],
    "top_k": [None, -1],
    "min_p": [None, 0],
    "min_tokens": [0],
    "repetition_penalty": [1, 1.0],
    "ignore_eos": [False],
    "skip_special_tokens": [True],
    "best_of": [None, 1],
    "logit_bias": [None, {}],
    "n": [None, 1],
    "stream_options": [None, {}, {"include_usage": False}],
    "stream": [None, False],
    "max_tokens": [None],
    "frequency_penalty": [None, 0],
    "presence_penalty": [None, 0.0],
    "parallel_tool_calls": [None, True, False],
    "store": [None, False, True],
    "service_tier": [None, "auto"],
    "user": [None, "u"],
    "metadata": [None, {}, {"a": "b"}],
    "source_language": [None],
    "anything_new": [None, [], {}],
}


@pytest.mark.parametrize("model", [MODEL, TASK, PROVIDER, "auto"])
async def test_a_field_without_an_effect_is_absent_on_every_route(
    server: Server, model: str
) -> None:
    for name, values in NOTHING.items():
        for value in values:
            response = await server.post(CHAT, json=chat_body(model, "A text.", **{name: value}))
            assert response.status_code == 200, (name, value, response.text)
    everything = {name: values[-1] for name, values in NOTHING.items()}
    response = await server.post(CHAT, json=chat_body(model, "A text.", **everything))
    assert response.status_code == 200, response.text


async def test_ignored_fields_reach_providers_and_nobody_else(server: Server) -> None:
    fields: dict[str, Any] = dict.fromkeys(IGNORED_FIELDS, "x")
    fields |= {"metadata": {"a": "b"}, "store": True, "parallel_tool_calls": True}
    fields |= {"service_tier": "flex", "prompt_cache_retention": "24h", "verbosity": "low"}
    for model in (MODEL, TASK, PROVIDER):
        assert (await server.post(CHAT, json=chat_body(model, **fields))).status_code == 200
    assert set(server.engine.bodies[0]) == {"model", "messages"}
    (call,) = server.frontier.calls
    assert set(call.body) >= IGNORED_FIELDS


async def test_tools_are_refused_where_no_model_calls_them(server: Server) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    for model in (MODEL, TASK):
        response = await server.post(CHAT, json=chat_body(model, tools=[tool], tool_choice="auto"))
        assert_error(response, 400, "unsupported_parameter")
    assert (await server.post(CHAT, json=chat_body(PROVIDER, tools=[tool]))).status_code == 200
    assert server.frontier.calls[0].body["tools"] == [tool]


async def test_a_choice_of_tools_of_any_shape_is_read(server: Server) -> None:
    choices: list[Any] = [{"type": "function", "function": {"name": "f"}}, {"type": "none"}, {}]
    for model in (MODEL, TASK, PROVIDER, "auto"):
        for choice in choices:
            for tools in ([], None):
                body = chat_body(model, tools=tools, tool_choice=choice, function_call=choice)
                assert (await server.post(CHAT, json=body)).status_code in (200, 400)
        refused = await server.post(CHAT, json=chat_body(model, tool_choice=choices[0]))
        error = assert_error(refused, 400, "invalid_request")
        assert error["param"] == "tool_choice"
        assert error["fix"] == "send tools, or remove tool_choice"


@pytest.mark.parametrize("model", [MODEL, TASK, PROVIDER, "auto"])
async def test_roles_are_read_in_one_way(server: Server, model: str) -> None:
    turns = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "A text."}]
    response = await server.post(CHAT, json={"model": model, "messages": turns})
    assert response.status_code == 200, response.text
    for role in ("banana", "", "User", None, 5, ["user"]):
        turns = [{"role": "user", "content": "x"}, {"role": role, "content": "x"}]
        refused = await server.post(CHAT, json={"model": model, "messages": turns})
        assert assert_error(refused, 400, "invalid_request")["param"] == "messages.1.role"


MESSAGES: list[tuple[Any, str]] = [
    ("hi", "messages"),
    ([], "messages"),
    (["hi"], "messages.0"),
    ([{"role": "user"}], "messages.0.content"),
    ([{"role": "user", "content": None}], "messages.0.content"),
    ([{"role": "user", "content": 5}], "messages.0.content"),
    ([{"role": "user", "content": {"text": "hi"}}], "messages.0.content"),
    ([{"role": "user", "content": []}], "messages.0.content"),
    ([{"role": "user", "content": ["hi"]}], "messages.0.content.0"),
    ([{"role": "user", "content": [{"text": "hi"}]}], "messages.0.content.0.type"),
    ([{"role": "user", "content": [{"type": "hologram"}]}], "messages.0.content.0.type"),
    ([{"role": "user", "content": [{"type": "text", "text": None}]}], "messages.0.content.0.text"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "messages.0.content.0.image_url"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}],
     "messages.0.content.0.image_url.url"),
    ([{"role": "assistant", "content": None, "tool_calls": "x"}], "messages.0.tool_calls"),
    ([{"role": "assistant", "content": None, "tool_calls": [5]}], "messages.0.tool_calls.0"),
    ([{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}],
     "messages.0.tool_calls.0.function"),
    ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}],
     "messages.0.tool_calls.0.function.arguments"),
    ([{"role": "user", "content": "\ud83d"}], "messages.0.content"),
    ([{"role": "user", "content": [{"type": "text", "text": "\ude00"}]}],
     "messages.0.content.0.text"),
    ([{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1), "messages"),
]  # fmt: skip


@pytest.mark.parametrize("model", [MODEL, TASK, PROVIDER, "auto"])
async def test_a_message_at_fault_is_named_by_the_path_that_the_client_wrote(
    server: Server, model: str
) -> None:
    headers = {"content-type": "application/json"}
    for messages, param in MESSAGES:
        for stream in (False, True):
            content = json.dumps({"model": model, "messages": messages, "stream": stream})
            response = await server.post(CHAT, content=content, headers=headers)
            error = assert_error(response, 400, "invalid_request")
            assert error["param"] == param
            for inside in ("pydantic", "Validator", "Param", "vllm", "http"):
                assert inside not in error["message"]
    assert untouched(server)


async def test_an_assistant_may_have_no_content_where_it_called_a_tool(server: Server) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "1"},
    ]
    assert (await server.post(CHAT, json={"model": PROVIDER, "messages": turns})).status_code == 200
    assert server.frontier.calls[0].body["messages"][1:] == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": "c"},
    ]
    del turns[1]["tool_calls"]
    refused = await server.post(CHAT, json={"model": PROVIDER, "messages": turns})
    assert assert_error(refused, 400, "invalid_request")["param"] == "messages.1.content"


async def test_text_parts_are_joined_with_a_separator(server: Server) -> None:
    parts = [{"type": "text", "text": "The striker"}, {"type": "text", "text": "signed."}]
    body = {"model": TASK, "messages": [{"role": "user", "content": parts}]}
    seen: list[str] = []
    task = server.context.tasks["topic"].task
    plan = task.plan
    task.plan = lambda request: seen.append(request.text) or plan(request)  # type: ignore[method-assign, assignment, func-returns-value]
    assert (await server.post(CHAT, json=body)).status_code == 200
    assert seen == ["The striker\nsigned."]


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"$ref": "#"}, ""),
        ({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#"}]}}}, ""),
        ({"$ref": "#/$defs/none"}, ".$ref"),
        ({"$ref": "http://example.org/x"}, ".$ref"),
        ({"$ref": 5}, ".$ref"),
        ({"type": "nonsense"}, ".type"),
        ({"type": []}, ".type"),
        ({"properties": []}, ".properties"),
        ({"properties": {"a": 5}}, ".properties.a"),
        ({"anyOf": []}, ".anyOf"),
        ({"enum": []}, ".enum"),
        ({"required": "a"}, ".required"),
        ({"items": "x"}, ".items"),
        ({"anyOf": [{}] * 10_001}, ""),
        ({"enum": [0] * 10_001}, ""),
        ({"$ref": "#/$defs/0", "$defs": {
            **{f"{n}": {"$ref": f"#/$defs/{n + 1}"} for n in range(2000)}, "2000": {}}}, ""),
    ],
)  # fmt: skip
async def test_a_schema_that_describes_no_value_is_refused_before_a_model_gets_it(
    server: Server, schema: Any, param: str
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    for model in (MODEL, PROVIDER):
        response = await server.post(CHAT, json=chat_body(model, response_format=form))
        error = assert_error(response, 400, "invalid_request")
        assert error["param"].startswith(f"response_format.json_schema.schema{param}")
    assert untouched(server)


async def test_a_schema_may_refer_to_itself_inside_a_property(server: Server) -> None:
    tree = {"type": "object", "properties": {"children": {"items": {"$ref": "#"}}}}
    form = {"type": "json_schema", "json_schema": {"name": "tree", "schema": tree}}
    assert (await server.post(CHAT, json=chat_body(MODEL, response_format=form))).status_code == 200


async def test_auto_kept_local_is_answered_by_the_local_model(server: Server) -> None:
    response = await server.post(CHAT, json=chat_body("auto", "Write a poem.", route="local_only"))
    assert response.status_code == 200
    assert response.headers["x-narrowgate-model"] == MODEL
    assert server.engine.bodies[0]["model"] == MODEL


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [""]}, 400, "prompt.0"),
        ({"prompt": [1, 2, 3]}, 400, "prompt"),
        ({"prompt": [[1, 2]]}, 400, "prompt"),
        ({"prompt": 5}, 400, "prompt"),
        ({"prompt": "\ud83d"}, 400, "prompt"),
        ({"prompt": ["a"] * 257}, 413, "prompt"),
        ({"prompt": ["a"] * 1500}, 413, "prompt"),
        ({"prompt": ["a"] * 100, "n": 3}, 413, "n"),
        ({"logprobs": "x"}, 400, "logprobs"),
        ({"logprobs": 99}, 400, "logprobs"),
        ({"stream_options": "x"}, 400, "stream_options"),
        ({"best_of": 3}, 400, "best_of"),
        ({"echo": "yes"}, 400, "echo"),
        ({"max_tokens": "4"}, 400, "max_tokens"),
    ],
)
async def test_a_completion_at_fault_is_named(
    server: Server, fields: dict[str, Any], status: int, param: str
) -> None:
    content = json.dumps({"model": MODEL, "prompt": "x", **fields})
    response = await server.post(
        COMPLETIONS, content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == param
    assert server.engine.bodies == []


async def test_prompts_and_choices_take_a_place_each(specs: dict[str, TaskSpec]) -> None:
    server = await Server(specs, max_concurrent_inputs=8, max_inputs=8).ready()
    seen: list[int] = []
    original = server.engine.openai

    async def watched(*args: Any) -> Any:
        seen.append(server.context.local_admission.active)
        return await original(*args)

    server.engine.openai = watched  # type: ignore[method-assign]
    await server.post(COMPLETIONS, json={"model": MODEL, "prompt": ["a", "b", "c"], "n": 2})
    await server.post(CHAT, json=chat_body(MODEL, n=3))
    assert seen == [6, 3]
    refused = await server.post(CHAT, json=chat_body(MODEL, n=9))
    assert assert_error(refused, 413, "too_many_inputs")["param"] == "n"
    assert server.context.local_admission.active == 0


@pytest.mark.parametrize(
    "option",
    [
        {"deadline_s": True}, {"deadline_s": 0}, {"deadline_s": "inf"}, {"deadline_s": "1_0"},
        {"deadline_s": []}, {"max_cost_usd": True}, {"max_cost_usd": "1e999999999"},
        {"max_cost_usd": "NaN"}, {"max_cost_usd": -1}, {"max_cost_usd": {}}, {"route": "LOCAL"},
        {"route": []},
    ],
)  # fmt: skip
async def test_an_option_at_fault_is_named_in_the_requests_words(
    server: Server, option: dict[str, Any]
) -> None:
    ((name, value),) = option.items()
    sent = [{"json": {"input": "A text.", name: value}}]
    if isinstance(value, str):
        header = "x-narrowgate-" + name.replace("_", "-")
        sent.append({"json": {"input": "A text."}, "headers": {header: value}})
    for request in sent:
        error = assert_error(
            await server.post("/v1/tasks/topic", **request), 400, "invalid_request"
        )
        assert error["param"] in (name, "x-narrowgate-" + name.replace("_", "-"))
        for inside in ("Decimal", "Input should", "parse", "None"):
            assert inside not in error["message"]


async def test_a_language_is_refused_where_the_task_has_none(server: Server) -> None:
    for name in ("source_language", "target_language"):
        whole = await server.post("/v1/tasks/topic", json={"input": "x", name: "fr"})
        assert assert_error(whole, 400, "unsupported_parameter")["param"] == name
        for model in (TASK, MODEL, PROVIDER, "auto"):
            chat = await server.post(CHAT, json=chat_body(model, **{name: "fr"}))
            assert assert_error(chat, 400, "unsupported_parameter")["param"] == name


@pytest.mark.parametrize("model", [MODEL, "auto"])
async def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(
    server: Server, model: str
) -> None:
    long = "x" * (4 * WINDOW + 1)
    body = chat_body(model, long, route="local_only")
    error = assert_error(await server.post(CHAT, json=body), 400, "context_length_exceeded")
    assert error["param"] == "messages"
    body = {"model": MODEL, "prompt": ["short", long]}
    error = assert_error(await server.post(COMPLETIONS, json=body), 400, "context_length_exceeded")
    assert error["param"] == "prompt"
    assert server.engine.bodies == []


async def test_a_long_input_of_a_task_is_refused_before_it_is_tokenized(
    specs: dict[str, TaskSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await Server(specs).ready()

    def tokenized(self: Any, text: str) -> list[int]:
        raise AssertionError("the text was tokenized")

    monkeypatch.setattr("tests.unit.character_tokenizer.CharacterTokenizer.encode", tokenized)
    for task in specs:
        body = {"input": "x" * (4 * WINDOW + 1)}
        if task == "translation":
            body |= {"source_language": "en", "target_language": "de"}
        response = await server.post(f"/v1/tasks/{task}", json=body)
        assert_error(response, 400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("name", "value"),
    [("deadline_s", "5"), ("max_cost_usd", "1"), ("deterministic", 1), ("deterministic", "true")],
)
async def test_an_option_in_a_body_is_not_converted(server: Server, name: str, value: Any) -> None:
    for path, body in (("/v1/tasks/topic", {"input": "A text."}), (CHAT, chat_body(MODEL))):
        refused = await server.post(path, json={**body, name: value})
        assert assert_error(refused, 400, "invalid_request")["param"] == name


async def test_an_option_in_a_header_is_text(server: Server) -> None:
    headers = {
        "x-narrowgate-deadline-s": "5",
        "x-narrowgate-max-cost-usd": "1",
        "x-narrowgate-deterministic": "true",
    }
    body = {"input": "A text.", "deadline_s": 1e9}
    answered = await server.post("/v1/tasks/topic", json=body, headers=headers)
    assert answered.status_code == 200


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "\u200b\u2060"}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": [{"type": "text", "text": " \u3164"}], "name": "ann"}],
        [{"role": "system", "content": " "}, {"role": "user", "content": "\n\ufeff"}],
    ],
)
async def test_a_chat_without_a_visible_character_is_refused_before_it_is_paid(
    specs: dict[str, TaskSpec], provider: ProviderServer, messages: list[Any]
) -> None:
    async with frontier(settings(provider)) as stack:
        server = await Server(specs, frontier=stack).ready()
        for model in (OPENAI, MODEL, "auto"):
            body = {"model": model, "messages": messages}
            error = assert_error(await server.post(CHAT, json=body), 400, "empty_input")
            assert error["param"] == "messages"
        visible = [*messages, {"role": "user", "content": "Hello."}]
        answered = await server.post(CHAT, json={"model": OPENAI, "messages": visible})
        assert answered.status_code == 200
    assert len(provider.script.seen) == 1


TASK_ANSWERS: list[tuple[str, dict[str, Any], str, int, Any]] = [
    # (task, body, the provider's message, status, value)
    ("topic", {"input": "A goal."}, '"```json\\n{\\"label\\": \\"Sports\\"}\\n```"', 200, "Sports"),
    ("topic", {"input": "A goal."}, '"Sure! {\\"label\\": \\" sports \\"}"', 200, "Sports"),
    ("topic", {"input": "A goal."}, '[{"type": "text", "text": "Sports"}]', 200, "Sports"),
    ("topic", {"input": "A goal."}, '"I cannot say."', 502, None),
    (
        "ner",
        {"input": "Annual report by Ann."},
        '"[{\\"text\\": \\"Ann\\", \\"type\\": \\"Person\\"}]"',
        200,
        [("Ann", 17, 20)],
    ),
    (
        "translation",
        {"input": "Hello", "source_language": "EN", "target_language": "FR"},
        '[{"type": "text", "text": "Bonjour"}]',
        200,
        "Bonjour",
    ),
    ("topic", {"input": "A goal.", "target_language": "fr"}, '"Sports"', 400, None),
    ("topic", {"input": "\u200b\u00ad"}, '"Sports"', 400, None),
    ("translation", {"input": "\u2800", "target_language": "fr"}, '"Bonjour"', 400, None),
]


@pytest.mark.parametrize(("task", "body", "message", "status", "value"), TASK_ANSWERS)
async def test_a_task_is_answered_over_http_with_what_the_provider_meant(
    specs: dict[str, TaskSpec], provider: ProviderServer, task: str, body: dict[str, Any],
    message: str, status: int, value: Any,
) -> None:  # fmt: skip
    document = f'{{"choices": [{{"message": {{"content": {message}}}, "finish_reason": "stop"}}]}}'
    provider.script.on("*", Fault("raw", 200, body=(document.encode(),)))
    prices = FlatPrices(dict.fromkeys(FrontierSettings().tiers["economy"], SONNET))
    own = settings(provider).providers["openai"]
    config = FrontierSettings(providers=dict.fromkeys(("openai", "anthropic"), own))
    async with frontier(config, prices=prices) as stack:
        server = await Server(specs, frontier=stack).ready()
        asked = {**body, "route": "frontier_only"}
        response = await server.post(f"/v1/tasks/{task}", json=asked)
    assert response.status_code == status, response.text
    # What is refused was not paid for.
    assert bool(provider.script.seen) == (status != 400)
    if status != 200:
        assert response.json()["error"]["fix"]
        return
    found = response.json()["value"]
    if task == "ner":
        found = [(one["text"], one["start"], one["end"]) for one in found]
    elif task == "translation":
        found = found["text"]
    assert found == value
