"""Context pruning over HTTP: what the provider receives, what the client is told."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.context.lazy import LazyPruner
from serving.context.pruning import MARKER, Pruner
from serving.contracts.context_settings import ContextSettings
from serving.contracts.errors import EngineFailure, InvalidSettings
from serving.gateway.metrics import Metrics
from serving.pipeline import context_pruning
from serving.pipeline.context_pruning import ContextPruning
from serving.pipeline.pruned import Pruning

from ..provider.server import ProviderServer
from .chat_kit import CHAT
from .frontier_kit import ANTHROPIC, OPENAI, PRICES, frontier, settings
from .scripted import Server

MARK = "---CACHE_BREAK---"
FACTS = (
    "The quay is 410 metres long. A cold store keeps herring. The harbour master is Ragna Tveit. "
    "Boats were pulled up the beach by oxen. The council postponed its decision in March. "
) * 6
ANSWER = "The loaf is done when its core has reached 97 degrees."
QUESTION = "What core temperature must the loaf reach?"
CONTEXT = f"{FACTS}{ANSWER} {FACTS}"
LAZY = LazyPruner(ContextSettings())


@asynccontextmanager
async def server(
    provider: ProviderServer, load: Callable[[], Pruner] = LAZY.get, **fields: Any
) -> AsyncIterator[Server]:
    def pruning(metrics: Metrics) -> Pruning:
        return Pruning(ContextPruning(ContextSettings(**fields), load, PRICES, MARK, metrics))

    async with frontier(settings(provider)) as stack:
        yield Server({}, frontier=stack, pruning=pruning)


def parts(*texts: dict[str, Any] | str) -> list[dict[str, Any]]:
    whole = [{"text": text} if isinstance(text, str) else text for text in texts]
    return [{"type": "text", **text} for text in whole]


def body(content: Any, model: str = OPENAI, **options: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": f"Instructions. {FACTS}"}]
    messages.append({"role": "user", "content": content})
    return {"model": model, "messages": messages, **({"narrowgate": options} if options else {})}


async def asked(server: Server, document: dict[str, Any]) -> dict[str, Any]:
    response = await server.client.post(CHAT, json=document)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def sent(provider: ProviderServer) -> str:
    return json.dumps(provider.script.seen[-1].body)


BLOCK = f"Use this.\n<context>\n{CONTEXT}\n</context>\n{QUESTION}"
MARKED = parts({"text": CONTEXT, "narrowgate_context": True}, QUESTION)


@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize("content", [BLOCK, MARKED], ids=["element", "part"])
async def test_the_provider_gets_the_answer_and_less_of_the_context(
    provider: ProviderServer, model: str, content: Any
) -> None:
    async with server(provider) as one:
        answer = await asked(one, body(content, model, context_mode="ratio", context_ratio=0.2))
    received = sent(provider)
    assert ANSWER in received
    assert QUESTION in received
    assert MARKER in received
    # Instructions stay whole, and no extension reaches the provider.
    assert f"Instructions. {FACTS.strip()}" in received
    assert "narrowgate" not in received
    stated = answer["narrowgate"]["context"]
    assert stated["outcome"] == "pruned"
    assert stated["guarantee"]["evidence"] == "none"
    assert stated["tokens_after"] < 0.35 * stated["tokens_before"]


async def test_a_reference_marks_a_part(provider: ProviderServer) -> None:
    options = {"context_mode": "threshold", "context": [{"message": 1, "part": 0}]}
    async with server(provider) as one:
        await asked(one, body(parts(CONTEXT, QUESTION), **options))
    assert ANSWER in sent(provider)
    assert MARKER in sent(provider)


async def test_by_default_contexts_are_sent_whole_and_without_marks(
    provider: ProviderServer,
) -> None:
    async with server(provider) as one:
        answer = await asked(one, body(MARKED))
    assert CONTEXT in sent(provider)
    assert "narrowgate" not in sent(provider)
    assert "narrowgate" not in answer


async def test_the_operator_turns_it_on_and_a_request_off(provider: ProviderServer) -> None:
    async with server(provider, mode="threshold") as one:
        await asked(one, body(BLOCK))
        assert MARKER in sent(provider)
        await asked(one, body(BLOCK, context_mode="off"))
        assert CONTEXT in sent(provider)


async def test_results_of_named_tools_are_context(provider: ProviderServer) -> None:
    calls = [
             {"id": "c1", "type": "function", "function": {"name": "search", "arguments": "{}"}},
             {"id": "c2", "type": "function", "function": {"name": "fetch", "arguments": "{}"}},
    ]  # fmt: skip
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": CONTEXT},
        {"role": "tool", "tool_call_id": "c2", "content": CONTEXT},
    ]
    async with server(provider, mode="ratio", ratio=0.2, tools=("search",)) as one:
        await asked(one, {"model": OPENAI, "messages": messages})
    texts = [message["content"] for message in provider.script.seen[-1].body["messages"][-2:]]
    assert MARKER in str(texts[0])
    assert texts[1] == CONTEXT


async def test_a_stream_states_the_tokens_in_its_first_event(provider: ProviderServer) -> None:
    document = body(BLOCK, context_mode="ratio") | {"stream": True}
    async with server(provider) as one:
        response = await one.client.post(CHAT, json=document)
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    assert events[0]["narrowgate"]["context"]["outcome"] == "pruned"
    assert not any("narrowgate" in event for event in events[1:])


async def test_a_prefix_to_cache_stays_whole_where_the_cache_is_cheaper(
    provider: ProviderServer,
) -> None:
    long = f"{FACTS * 8}{ANSWER} {FACTS}"
    content = parts({"text": long, "narrowgate_context": True}, f"{MARK}\n", QUESTION)
    async with server(provider) as one:
        document = body(content, ANTHROPIC, context_mode="ratio", context_ratio=0.5)
        answer = await asked(one, document)
    assert answer["narrowgate"]["context"]["outcome"] == "no_saving"
    assert MARKER not in sent(provider)


async def test_every_one_of_many_contexts_is_replaced_at_its_place(
    provider: ProviderServer,
) -> None:
    element = f"<context>{CONTEXT}</context> \u0130 "
    texts = [f"{element * 3}One.", f"{element}Two."]
    content = [{"type": "text", "text": text} for text in [*texts, QUESTION]]
    async with server(provider) as one:
        await asked(one, body(content, context_mode="ratio", context_ratio=0.3))
    got = [part["text"] for part in provider.script.seen[-1].body["messages"][-1]["content"]]
    assert [text.count("</context>") for text in got[:2]] == [3, 1]
    assert all(len(text) < len(whole) for text, whole in zip(got, texts, strict=False))
    for text, end in zip(got, ("\u0130 One.", "\u0130 Two."), strict=False):
        assert text.endswith(end)


async def test_few_contexts_are_pruned_at_once_and_the_others_go_whole(
    provider: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_pruning, "_LONGEST_WAIT_S", 0.05)
    entered, released = [], threading.Event()

    def slow() -> Pruner:
        entered.append(1)
        assert released.wait(60)
        return LAZY.get()

    async with server(provider, slow, mode="threshold") as one:
        first = [asyncio.create_task(asked(one, body(BLOCK))) for _ in range(2)]
        while len(entered) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        third = await asked(one, body(BLOCK))
        assert third["narrowgate"]["context"]["outcome"] == "failed"
        assert len(entered) == 2
        # A chat without a context waits for nobody.
        await asked(one, body("A question?"))
        released.set()
        for answer in await asyncio.gather(*first):
            assert answer["narrowgate"]["context"]["outcome"] == "pruned"


async def test_a_pruner_that_fails_sends_the_context_whole(provider: ProviderServer) -> None:
    def broken() -> Pruner:
        raise EngineFailure("no vectors")

    async with server(provider, broken, mode="threshold") as one:
        answer = await asked(one, body(BLOCK))
    assert answer["narrowgate"]["context"]["outcome"] == "failed"
    assert CONTEXT in sent(provider)


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        (f"<context>{CONTEXT}</context>", "no_question"),
        (f"<context>{ANSWER}</context> {QUESTION}", "too_short"),
    ],
)
async def test_a_context_that_cannot_be_pruned_is_sent_whole(
    provider: ProviderServer, content: str, outcome: str
) -> None:
    async with server(provider, mode="threshold") as one:
        answer = await asked(one, body(content))
    assert answer["narrowgate"]["context"]["outcome"] == outcome
    assert MARKER not in sent(provider)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"context_mode": "always"}, "narrowgate.context_mode"),
        ({"context_mode": ["off"]}, "narrowgate.context_mode"),
        ({"context_ratio": 2}, "narrowgate.context_ratio"),
        ({"context_ratio": True}, "narrowgate.context_ratio"),
        ({"context": "all"}, "narrowgate.context"),
        ({"context": [{"message": 9}]}, "narrowgate.context.0.message"),
        ({"context": [{"message": 0}]}, "messages.0"),
        ({"context": [{"message": 1, "part": 5}]}, "messages.1.content.5"),
        ({"compress": 1}, "narrowgate.compress"),
        ([1], "narrowgate"),
    ],
)
async def test_wrong_options_are_refused_with_their_field(
    provider: ProviderServer, options: Any, field: str
) -> None:
    async with server(provider) as one:
        document = {**body(BLOCK), "narrowgate": options}
        response = await one.client.post(CHAT, json=document)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert provider.script.seen == []


async def test_a_mark_on_instructions_is_refused(provider: ProviderServer) -> None:
    content = parts({"text": CONTEXT, "narrowgate_context": True})
    document = {"model": OPENAI, "messages": [{"role": "system", "content": content},
                                              {"role": "user", "content": "x"}]}  # fmt: skip
    async with server(provider) as one:
        response = await one.client.post(CHAT, json=document)
    assert response.json()["error"]["param"] == "messages.0.content.0"


async def test_metrics_count_contexts_and_tokens(provider: ProviderServer) -> None:
    async with server(provider, mode="ratio") as one:
        await asked(one, body(BLOCK))
        registry = one.context.metrics.registry
    pruned = registry.get_sample_value("narrowgate_contexts_total", {"outcome": "pruned"})
    before, after = (
        registry.get_sample_value("narrowgate_context_tokens_total", {"when": when})
        for when in ("before", "after")
    )
    assert pruned == 1
    assert before is not None
    assert after is not None
    assert 0 < after < before


def test_a_model_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"context model|unreadable"):
        LazyPruner(ContextSettings(model=tmp_path / "absent.json"))
