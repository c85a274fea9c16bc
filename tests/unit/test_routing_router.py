"""Decisions of the shipped model, on the real encoder."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.contracts.answer import TaskRequest
from serving.contracts.errors import EngineFailure, InvalidSettings
from serving.contracts.requests import ChatRequest, Message
from serving.contracts.routing import Decision, Router, Vectors
from serving.contracts.routing_settings import ComplexityThresholds, RoutingSettings
from serving.contracts.task_spec import TaskSpec
from serving.embedding.embedder import ThreadedEmbedder, build_embedder
from serving.routing.conversation import read
from serving.routing.corpus import Corpus, shipped_corpus
from serving.routing.evaluation.run import Subject
from serving.routing.heads import MODEL_FILE, RouterModel, load_model, save_model
from serving.routing.narrow import embedded_part, most_probable
from serving.routing.router import LearnedRouter, build_router, tier_by_rule, tier_of_score
from serving.routing.training import cues_of, instruction_examples, train, vocabulary_of

from .made_encoder import encoder_state


class Counted:
    def __init__(self) -> None:
        self.failures: list[str] = []

    def router_failed(self, reason: str) -> None:
        self.failures.append(reason)


@pytest.fixture(scope="module")
def embedder() -> Iterator[ThreadedEmbedder]:
    found = build_embedder(encoder_state())
    yield found
    found.close()


def chat(body: Mapping[str, Any]) -> ChatRequest:
    """Return the request of a chat's body: messages, `n`, and other fields."""
    contents = [(message["role"], message["content"]) for message in body["messages"]]
    messages = tuple(
        Message(role, tuple(content) if isinstance(content, list) else content)
        for role, content in contents
    )
    fields = {name: value for name, value in body.items() if name not in {"messages", "n"}}
    return ChatRequest("auto", messages, choices=body.get("n", 1), fields=fields)


class Routed:
    """A router that is asked with a chat's body."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def decide(self, body: dict[str, Any]) -> Decision:
        request = chat(body)
        return self._router.decide(request, await self._router.vectors(request))


@pytest.fixture(scope="module")
def router(embedder: ThreadedEmbedder, specs: dict[str, TaskSpec]) -> Routed:
    return Routed(build_router(RoutingSettings(), specs, embedder, Counted()))


def body(user: object, system: str | None = None, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    return {"messages": [*messages, {"role": "user", "content": user}], **fields}


NARROW = [
    (body('What is the sentiment of this review? "Dull and far too long."'), "sentiment"),
    (body("Is the following tweet positive, neutral or negative?\n\nRain again."), "sentiment"),
    (body("Rain again.", "Classify the sentiment of the user's message."), "sentiment"),
    (body("Bestimme die Stimmung des Textes: Das Essen war kalt."), "sentiment"),
    (body("Classify this news article as World, Sports, Business or Sci/Tech.\n\nShares fell."),
     "topic"),
    (body('Extract the named entities from "Ada met Tim in Rome."'), "ner"),
    (body("Extrais les entités nommées de ce texte : Ada vit à Rome."), "ner"),
    (body("Translate to French: See you on Monday."), "translation"),
    (body("Traduce al inglés: Nos vemos mañana."), "translation"),
    (body([{"type": "text", "text": "Translate to German: See you."}]), "translation"),
]  # fmt: skip

OUT_OF_SCOPE = [
    "Write a positive review of a café.",
    "What is sentiment analysis?",
    'Translate this clause and explain it: "The lessee shall pay."',
    'Is this review spam or ham? "Buy now!"',
    "Who is the president of Chile?",
    'Is this text positive? Answer yes or no: "I like it."',
    'Return the sentiment as JSON: "I like it."',
    'What is the sentiment, and explain why: "I like it."',
    'On a scale of 1 to 5, how positive is this: "I like it."',
    'Classify the sentiment as happy, sad or angry: "I like it."',
    'Classify the sentiment as positive, negative or mixed: "I like it."',
    'Translate to Japanese: "See you."',
    'Translate to German and French: "See you."',
    'Translate to German and summarise: "See you."',
    "Classify the sentiment of each review:\n1. Good.\n2. Bad.",
    "Translate to German: See you.\n\nThen explain your translation.",
    'Extract all dates: "We met on 4 May."',
    "Summarise this: The bridge will close.",
    "def sentiment(text):\n    return 'positive'",
    "Classify the sentiment:\n```python\ngood\n```",
    "hello",
]


@pytest.mark.parametrize(("request_", "task"), NARROW)
async def test_tasks_are_recognised(router: Routed, request_: dict[str, Any], task: str) -> None:
    decision = await router.decide(request_)
    assert decision.task is not None, decision.because
    assert decision.task.task == task
    assert decision.certainty >= 0.9
    assert decision.tier == "economy"


@pytest.mark.parametrize("text", OUT_OF_SCOPE)
async def test_near_misses_are_not_narrow(router: Routed, text: str) -> None:
    decision = await router.decide(body(text))
    assert decision.task is None, decision.because


FORMS: list[dict[str, Any]] = [
    {"tools": [{"type": "function"}]},
    {"tool_choice": "auto"},
    {"functions": [{}]},
    {"n": 2},
    {"logprobs": True},
    {"top_logprobs": 3},
    {"response_format": {"type": "json_object"}},
    {"modalities": ["text", "audio"]},
]


@pytest.mark.parametrize("fields", FORMS)
async def test_fields_that_ask_for_more_are_never_narrow(
    router: Routed, fields: dict[str, Any]
) -> None:
    decision = await router.decide(body("Translate to French: See you on Monday.", **fields))
    assert decision.task is None


async def test_forms_that_are_never_narrow(router: Routed) -> None:
    ask = {"role": "user", "content": "Translate to French: See you on Monday."}
    image = {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}
    for messages in (
        [ask, ask],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}, ask],
        [ask, {"role": "system", "content": "Classify the sentiment."}],
        [{"role": "user", "content": [{"type": "text", "text": ask["content"]}, image]}],
        [],
        [{"role": "user", "content": "Translate to French: " + "so " * 2000}],
    ):
        assert (await router.decide({"messages": messages})).task is None


async def test_translations_carry_their_languages(router: Routed) -> None:
    decision = await router.decide(body("Translate from English to German: See you."))
    assert decision.task == TaskRequest("translation", "See you.", "en", "de")


async def test_labels_come_back_as_the_client_spells_them(router: Routed) -> None:
    decision = await router.decide(body('Is this POSITIVE or NEGATIVE? "I like this review."'))
    if decision.task is not None:
        assert decision.labels == {"positive": "POSITIVE", "negative": "NEGATIVE"}
    details = body("Is the sentiment of this review positive or negative?\n\nI like it.")
    decision = await router.decide(details)
    assert decision.task is not None
    assert decision.labels == {"positive": "positive", "negative": "negative"}


async def test_a_task_that_is_not_served_is_not_narrow(
    embedder: ThreadedEmbedder, specs: dict[str, TaskSpec]
) -> None:
    without = {name: spec for name, spec in specs.items() if name != "translation"}
    router = Routed(build_router(RoutingSettings(), without, embedder, Counted()))
    assert (await router.decide(body("Translate to French: See you."))).task is None


async def test_a_stricter_certainty_never_makes_more_narrow(
    embedder: ThreadedEmbedder, specs: dict[str, TaskSpec]
) -> None:
    narrow: list[set[str]] = []
    for certainty in (0.6, 0.9, 0.99):
        router = Routed(
            build_router(RoutingSettings(narrow_certainty=certainty), specs, embedder, Counted())
        )
        found = [(request_, await router.decide(request_)) for request_, _ in NARROW]
        narrow.append({str(request_) for request_, decision in found if decision.task})
    assert narrow[0] >= narrow[1] >= narrow[2]


class Broken:
    """Fails, or never answers."""

    def __init__(self, *, hangs: bool) -> None:
        self._hangs = hangs

    async def embed(self, text: str) -> NDArray[np.float32]:
        if self._hangs:
            await asyncio.sleep(60)
        raise EngineFailure("broken")

    def embed_all(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise EngineFailure("broken")


@pytest.mark.parametrize(("hangs", "reason"), [(False, "engine_failure"), (True, "timeout")])
async def test_without_vectors_a_rule_decides(
    specs: dict[str, TaskSpec], hangs: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.routing.router.EMBEDDING_TIMEOUT_S", 0.05)
    counted = Counted()
    by_vector = replace(load_model(None), clauses=None)
    broken = Broken(hangs=hangs)
    router = Routed(LearnedRouter(RoutingSettings(), by_vector, specs, broken, counted))
    decision = await router.decide(body("Translate to French: See you on Monday evening, my dear."))
    assert (decision.task, decision.complexity, decision.tier) == (None, None, "standard")
    assert counted.failures == [reason]


async def test_texts_are_embedded_outside_the_event_loops_thread(
    embedder: ThreadedEmbedder, specs: dict[str, TaskSpec]
) -> None:
    threads: list[str] = []

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        threads.append(threading.current_thread().name)
        return embedder.embed_all(texts)

    recorded = ThreadedEmbedder(encode)
    by_vector = replace(load_model(None), clauses=None)
    router = Routed(LearnedRouter(RoutingSettings(), by_vector, specs, recorded, Counted()))
    await asyncio.gather(*(router.decide(request_) for request_, _ in NARROW))
    recorded.close()
    assert set(threads) == {"embedder"}


async def test_a_decision_is_a_function_of_the_request_and_its_vectors(
    embedder: ThreadedEmbedder, specs: dict[str, TaskSpec]
) -> None:
    router = build_router(RoutingSettings(), specs, embedder, Counted())
    for request_, _ in NARROW:
        request = chat(request_)
        vectors = await router.vectors(request)
        assert router.decide(request, vectors) == router.decide(request, vectors)
        assert router.decide(request, Vectors(failure="timeout")).task is None


def decide_tier(text: str, **fields: Any) -> str:
    return tier_by_rule(read(chat(body(text, **fields)), 4000))


def test_the_simple_rule() -> None:
    assert decide_tier("hello there") == "economy"
    assert decide_tier("hello", tools=[{}]) == "standard"
    assert decide_tier("Plan a trip through Norway by train for two weeks.") == "standard"
    assert decide_tier("Prove that the square root of 2 is irrational.") == "frontier"
    assert decide_tier("```python\nx = 1\n```") == "frontier"
    assert decide_tier("word " * 2000) == "frontier"


@pytest.mark.parametrize("white", ["\n", " ", "\u2003", "\r\n\t"])
def test_white_space_does_not_count_toward_the_tier(white: str) -> None:
    assert decide_tier("Write a poem" + white * 8000) == "economy"
    assert decide_tier("Write a long poem" + white * 8000 + "about a train ride") == "standard"


def test_scores_near_a_threshold_take_the_dearer_tier() -> None:
    thresholds = ComplexityThresholds(low=0.3, medium=0.6, margin=0.05)
    tiers = [tier_of_score(score, thresholds) for score in (0.0, 0.24, 0.26, 0.5, 0.56, 1.0)]
    assert tiers == ["economy", "economy", "standard", "standard", "frontier", "frontier"]


async def test_a_trusted_score_decides_the_tier(
    embedder: ThreadedEmbedder, specs: dict[str, TaskSpec]
) -> None:
    model = load_model(None)
    trusted = replace(model, complexity=replace(model.complexity, trusted=True))
    router = Routed(LearnedRouter(RoutingSettings(), trusted, specs, embedder, Counted()))
    easy: Decision = await router.decide(body("What is the capital of Norway?"))
    hard: Decision = await router.decide(
        body("Prove that every finite integral domain is a field and discuss each step.")
    )
    assert easy.complexity is not None
    assert hard.complexity is not None
    assert easy.complexity < hard.complexity
    assert (easy.tier, hard.tier) == ("economy", "frontier")


def test_the_shipped_model_belongs_to_the_shipped_texts() -> None:
    shipped, corpus = load_model(None), shipped_corpus()
    examples = instruction_examples(corpus.part(held_out=False))
    assert shipped.texts_digest == corpus.digest
    assert set(shipped.task.classes) == {example.task for example in examples}
    assert shipped.task.cues == cues_of(corpus)
    assert shipped.vocabulary == vocabulary_of(examples, corpus)


def _every_eighth(corpus: Corpus) -> Corpus:
    """Return a fixed eighth of a corpus, prompts of one origin together."""
    digests = (hashlib.sha256(row.origin.encode()).digest()[-1] for row in corpus.prompts)
    kept = zip(corpus.prompts, digests, strict=True)
    return replace(corpus, prompts=tuple(row for row, digest in kept if digest % 8 == 0))


@dataclass(frozen=True, slots=True)
class Instructions:
    """The training instructions of a corpus with their vectors."""

    texts: list[str]
    vectors: NDArray[np.float32]

    @classmethod
    def of(cls, corpus: Corpus, embedder: ThreadedEmbedder) -> Self:
        texts = [e.instruction for e in instruction_examples(corpus.part(held_out=False))]
        return cls(texts, embedder.embed_all([embedded_part(text) for text in texts]))

    def verdicts(self, model: RouterModel) -> tuple[list[str], NDArray[np.float64]]:
        """Return each instruction's class and the certainty of its likeliest task."""
        found = [
            model.task.probabilities(vector, text)
            for vector, text in zip(self.vectors, self.texts, strict=True)
        ]
        classes = [max(each, key=each.__getitem__) for each in found]
        return classes, np.array([model.task.certainty(most_probable(each)[1]) for each in found])


def test_training_on_a_sample_gives_the_decisions_of_the_shipped_model(
    embedder: ThreadedEmbedder, specs: dict[str, TaskSpec]
) -> None:
    shipped, sample = load_model(None), _every_eighth(shipped_corpus())
    again = train(sample, embedder, specs, clauses_each=2)
    instructions = Instructions.of(sample, embedder)
    expected, _ = instructions.verdicts(shipped)
    found, _ = instructions.verdicts(again)
    assert again.task.classes == shipped.task.classes
    assert len(found) > 90
    assert found == expected


@pytest.mark.slow
def test_training_gives_the_decisions_of_the_shipped_model(
    embedder: ThreadedEmbedder, specs: dict[str, TaskSpec]
) -> None:
    # Vectors differ from processor to processor, and weights with them: by 0.13 between AVX2 and
    # AVX-512. The decisions do not.
    shipped, corpus = load_model(None), shipped_corpus()
    again = train(corpus, embedder, specs)
    instructions = Instructions.of(corpus, embedder)
    expected, expected_certainties = instructions.verdicts(shipped)
    found, certainties = instructions.verdicts(again)
    assert np.mean(np.array(found) == np.array(expected)) >= 0.99
    assert np.abs(certainties - expected_certainties).max() < 0.05
    held_out = [Subject(model, specs, embedder, RoutingSettings()).evaluate(corpus, None).held_out
                for model in (shipped, again)]  # fmt: skip
    assert held_out[1].overall.recall.value == pytest.approx(
        held_out[0].overall.recall.value, abs=0.01
    )


def test_precision_on_texts_that_were_not_trained_on(
    embedder: ThreadedEmbedder, specs: Mapping[str, TaskSpec]
) -> None:
    subject = Subject(load_model(None), specs, embedder, RoutingSettings())
    corpus = shipped_corpus()
    # One of each instruction's four payloads, and a quarter of the other prompts.
    report = subject.evaluate(replace(corpus, prompts=corpus.prompts[::4]), None)
    assert report.held_out.overall.precision.value >= 0.98
    assert report.held_out.overall.recall.value >= 0.85
    assert report.held_out.wrongly_narrow["all"].value <= 0.01


def test_a_saved_model_decides_as_before(tmp_path: Path, embedder: ThreadedEmbedder) -> None:
    model = load_model(None)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert (again.vocabulary, again.texts_digest) == (model.vocabulary, model.texts_digest)
    for text in ("Classify the sentiment", "Translate to French", "Tell me a joke"):
        (vector,) = embedder.embed_all([text])
        assert again.task.probabilities(vector, text) == model.task.probabilities(vector, text)


DAMAGE: list[tuple[str, Any, str]] = [
    ("format", 99, "format 99"),
    ("task", {}, "classes"),
    ("complexity.features", [], "other lexical features"),
    ("task.classes", ["ner", "none"], r"task weights have shape \(5, 388\) and need \(2, 388\)"),
    ("task.bias", [0.0, 0.0, 0.0, 0.0], r"task bias have shape \(4,\)"),
    ("task.bias", [[0.0]] * 5, r"task bias have shape \(5, 1\)"),
    ("task.weights", [[0.0] * 388] * 4, r"task weights have shape \(4, 388\)"),
    ("task.weights", [[0.0] * 387] * 5, r"task weights have shape \(5, 387\)"),
    ("task.weights", [[float("nan")] * 388] * 5, "not finite"),
    ("complexity.weights", [0.0] * 7, r"complexity weights have shape \(7,\)"),
]


@pytest.mark.parametrize(("path", "value", "message"), DAMAGE)
def test_a_damaged_model_is_refused(tmp_path: Path, path: str, value: Any, message: str) -> None:
    save_model(load_model(None), tmp_path)
    content = json.loads((tmp_path / MODEL_FILE).read_text(encoding="utf-8"))
    *parents, name = path.split(".")
    inner = content
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    (tmp_path / MODEL_FILE).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InvalidSettings, match=message) as caught:
        load_model(tmp_path)
    assert caught.value.field == "routing.model"


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="nowhere"):
        load_model(tmp_path / "nowhere")


def test_prompts_made_from_one_instruction_share_an_origin() -> None:
    rows = [row for row in shipped_corpus().prompts if row.payload]
    origins: dict[str, set[str]] = {}
    for row in rows:
        template = row.prompt.text.replace(row.payload or "", "{payload}")
        origins.setdefault(template, set()).add(row.origin)
    assert all(len(found) == 1 for found in origins.values())
    assert len(rows) > 3 * len(origins)


def test_about_a_fifth_of_the_origins_is_held_out() -> None:
    origins = {row.origin: row.held_out for row in shipped_corpus().prompts}
    assert 0.1 < sum(origins.values()) / len(origins) < 0.3
