"""Reading a request clause by clause, on the shipped model and the held-out phrasings."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serving.contracts.errors import InvalidSettings
from serving.contracts.requests import ChatRequest, Message
from serving.contracts.routing_settings import RoutingSettings
from serving.contracts.task_spec import ClassificationSpec, TaskSpec
from serving.embedding.embedder import ThreadedEmbedder, build_embedder
from serving.routing.clause_rules import clause_obstacle
from serving.routing.clauses import Normaliser, without_personas
from serving.routing.conversation import read
from serving.routing.evaluation.held_out import held_out_samples
from serving.routing.evaluation.run import Subject
from serving.routing.grammar import BENIGN, FOREIGN, LANGUAGES, clauses, read_grammar
from serving.routing.heads import MODEL_FILE, load_model, save_model
from serving.routing.narrow import Detection, NarrowDetector
from serving.routing.payload import further_splits

from .made_encoder import encoder_state

TEXT = "We left at nine, and nobody said a word about it."


@pytest.fixture(scope="module")
def embedder() -> Iterator[ThreadedEmbedder]:
    found = build_embedder(encoder_state())
    yield found
    found.close()


@pytest.fixture(scope="module")
def detector(embedder: ThreadedEmbedder, specs: dict[str, TaskSpec]) -> NarrowDetector:
    return NarrowDetector(load_model(None), specs, embedder, 0.9)


def found(detector: NarrowDetector, user: str, system: str = "") -> Detection:
    messages = (Message("system", system),) if system else ()
    form = read(ChatRequest("auto", (*messages, Message("user", user))), 4000)
    assert form.obstacle is None
    return detector.by_clauses(form.prompt)


@pytest.mark.parametrize(
    ("user", "task"),
    [
        (f"Gauge whether this review is positive, neutral or negative.\n\n{TEXT}", "sentiment"),
        (f"Pigeonhole this item: World, Sports, Business, Sci-Tech.\n\n{TEXT}", "topic"),
        (f"Which sentiment?\n{TEXT}\nOPTIONS:\n- negative\n- neutral\n- positive", "sentiment"),
        (f"Translate this into French.\n```\n{TEXT}\n```", "translation"),
        (f"### Task\nExtract the named entities\n### Text\n{TEXT}", "ner"),
        (f"Dime si esta opinión es positiva, negativa o neutra.\n\n{TEXT}", "sentiment"),
        (f"Ordne die Meldung einem Ressort zu: World, Sports, Business oder Sci-Tech.\n\n{TEXT}",
         "topic"),
        (f"Relève les entités nommées du texte suivant.\n\n{TEXT}", "ner"),
        (f"translate to german please {TEXT}", "translation"),
        (f"Is it possible to translate the following into German?\n\n{TEXT}", "translation"),
        (f"Translate only the following text into German.\n\n{TEXT}", "translation"),
        (f"Read the note and say positive, negative or neutral.\n\n{TEXT}", "sentiment"),
    ],
)  # fmt: skip
def test_a_request_is_read_with_its_exact_text(
    detector: NarrowDetector, user: str, task: str
) -> None:
    detection = found(detector, user)
    assert detection.request is not None, detection.because
    assert (detection.request.task, detection.request.text) == (task, TEXT)


@pytest.mark.parametrize(
    "user",
    [
        f"Is this review positive, neutral or negative? Explain your choice.\n\n{TEXT}",
        f"Is this review positive, neutral or negative, and who wrote it?\n\n{TEXT}",
        f"Put this into German: {TEXT}\n\nQuote the words that led you there.",
        f"Sort this into World, Sports, Business, Sci-Tech or Entertainment: {TEXT}",
        f"Classify this review as very positive, positive, neutral or negative.\n\n{TEXT}",
        f"Do not classify the sentiment of this text. Just proofread it.\n\n{TEXT}",
        f"How good is this German translation of the sentence? {TEXT}",
        f"List the named entities and their dates of birth.\n\n{TEXT}",
        f"Translate this into French and give the sentiment.\n\n{TEXT}",
        f"Übersetze das ins Italienische: {TEXT}",
        f"Translate only the verbs into German.\n\n{TEXT}",
        f"Übersetze nur die Überschrift ins Englische.\n\n{TEXT}",
        f"¿Es difícil traducir esto al inglés? {TEXT}",
        f"List the named entities and the relations between them.\n\n{TEXT}",
        f"Put this into German: {TEXT}\n\nthen do the same for a text of your own",
        f"Entities in this sentence, please: {TEXT}\n\nand shorten the text first",
        f"How does sentiment analysis work? For example on: {TEXT}",
        "Positive, neutral or negative: what do these words mean in electrical engineering?",
    ],
)
def test_a_request_for_more_or_other_is_refused(detector: NarrowDetector, user: str) -> None:
    assert found(detector, user).request is None


@pytest.mark.parametrize(
    ("user", "task", "labels"),
    [
        (f"Review: Nice.\nSentiment: positive\n\nReview: Bad.\nSentiment: negative\n\n"
         f"Review: {TEXT}\nSentiment:", "sentiment", {"positive", "negative"}),
        (f"Classify as World, Sports, Business or Sci-Tech.\n\nText: Goal!\nTopic: Sports\n\n"
         f"Text: {TEXT}\nTopic:", "topic", {"World", "Sports", "Business", "Sci-Tech"}),
        (f"Text: Prima.\nStimmung: positiv\nText: Nie wieder.\nStimmung: negativ\n"
         f"Text: {TEXT}\nStimmung:", "sentiment", {"positiv", "negativ"}),
        (f"Label each text.\n\nExample 1:\nText: Nice.\nSentiment: positive\n\n"
         f"Example 2:\nText: Bad.\nSentiment: negative\n\n"
         f"Text: \"{TEXT}\"\nSentiment:", "sentiment",
         {"positive", "negative"}),
        (f"Nice. -> positive\nBad. -> negative\n{TEXT} ->", "sentiment", {"positive", "negative"}),
        (f"English: Hello.\nFrench: Bonjour.\nEnglish: {TEXT}\nFrench:", "translation", set()),
    ],
)  # fmt: skip
def test_the_last_of_several_worked_examples_is_the_text(
    detector: NarrowDetector, user: str, task: str, labels: set[str]
) -> None:
    detection = found(detector, user)
    assert detection.request is not None, detection.because
    assert (detection.request.task, detection.request.text) == (task, TEXT)
    assert set((detection.labels or {}).values()) == labels


@pytest.mark.parametrize(
    "user",
    [
        # Other labels, another question, two answers, and answers in a form that no task gives.
        f"Review: Nice.\nSentiment: sarcastic\nReview: Bad.\nSentiment: sincere\nReview: {TEXT}\n"
        "Sentiment:",
        f"Review: Nice.\nSentiment: positive\nReview: Bad.\nSentiment: negative\nAnd say why.\n"
        f"Review: {TEXT}\nSentiment:",
        f"Nice. -> Schön.\nBad. -> Schlecht.\n{TEXT} ->",
        f"Review: Nice.\nReply: Thank you!\nReview: {TEXT}\nReply:",
        f"Explain each label.\n\nReview: Nice.\nSentiment: positive\nReview: Bad.\n"
        f"Sentiment: negative\nReview: {TEXT}\nSentiment:",
        f"Review: Nice.\nSentiment: positive\nReason: praise\nReview: {TEXT}\nSentiment:",
        f"Text: Ann left.\nEntities: Ann=PER\nText: {TEXT}\nEntities:",
        f"English: Hello.\nFrench: Bonjour.\nItalian: Ciao.\nEnglish: {TEXT}\nItalian:",
    ],
)
def test_worked_examples_of_another_answer_are_refused(detector: NarrowDetector, user: str) -> None:
    assert found(detector, user).request is None


@pytest.mark.parametrize(
    ("user", "labels"),
    [
        (f'Reply with JSON like {{"sentiment": "positive|negative|neutral"}}.\n\n"{TEXT}"',
         {"positive": '{"sentiment": "positive"}', "negative": '{"sentiment": "negative"}',
          "neutral": '{"sentiment": "neutral"}'}),
        (f"Sentiment as 0 = negative, 1 = positive. Answer with the number.\n\nText: {TEXT}",
         {"negative": "0", "positive": "1"}),
        (f"Pick a topic: 1) World 2) Sports 3) Business 4) Sci-Tech. Reply with the number only."
         f'\n\n"{TEXT}"', {"World": "1", "Sports": "2", "Business": "3", "Sci-Tech": "4"}),
        (f"Sentiment: positive = 1, negative = 0\n\nText: {TEXT}",
         {"negative": "0", "positive": "1"}),
        (f'Give the topic as JSON, key "topic", out of World, Sports, Business, Sci-Tech.\n\n'
         f'"{TEXT}"',
         {name: f'{{"topic": "{name}"}}' for name in ("World", "Sports", "Business", "Sci-Tech")}),
    ],
)  # fmt: skip
def test_a_label_is_given_in_the_form_that_the_client_wants(
    detector: NarrowDetector, user: str, labels: dict[str, str]
) -> None:
    detection = found(detector, user)
    assert detection.request is not None, detection.because
    assert detection.request.text == TEXT
    assert detection.labels == labels


@pytest.mark.parametrize(
    "user",
    [
        f'Reply with JSON like {{"sentiment": "positive|negative", "reason": "..."}}.\n\n"{TEXT}"',
        f'Reply with JSON like {{"summary": "..."}}: positive or negative?\n\n"{TEXT}"',
        f'Sentiment as JSON with the keys "sentiment" and "confidence".\n\n"{TEXT}"',
        f'Sentiment (positive, negative) as JSON, please.\n\n"{TEXT}"',
        f"Sentiment as 1 = negative, 1 = positive. Answer with the number.\n\nText: {TEXT}",
        f'Translate to French and return {{"translation": "..."}}.\n\n"{TEXT}"',
    ],
)
def test_a_form_with_more_than_a_label_is_refused(detector: NarrowDetector, user: str) -> None:
    assert found(detector, user).request is None


@pytest.mark.parametrize(
    ("user", "task"),
    [
        (f"Rate it as positive or negative.\n\nComment: {TEXT}\n\nOnly the label, please.",
         "sentiment"),
        (f"The topic is one of these:\n- World\n- Sports\n- Business\n- Sci-Tech\n\n{TEXT}",
         "topic"),
        (f"SYSTEM: You label news as World, Sports, Business or Sci-Tech.\nUSER: {TEXT}", "topic"),
        (f"Here is a comment from a plumber: {TEXT} Is it positive or negative? One word.",
         "sentiment"),
        (f"{TEXT} Is it positive or negative? One word, please.", "sentiment"),
        (f'Text: "{TEXT}"\nQuestion: Is the sentiment positive or negative?\nAnswer:',
         "sentiment"),
        (f'Input: "{TEXT}" Sentiment (positive/negative):', "sentiment"),
        (f"how do you say in german {TEXT}", "translation"),
        (f"Act as an English-to-French translator. Text: {TEXT}", "translation"),
        (f"List each person, each place and each company.\n\n{TEXT}", "ner"),
        (f"sports, politics, economy or tech?\n{TEXT}", "topic"),
    ],
)  # fmt: skip
def test_a_layout_shows_where_the_text_is(detector: NarrowDetector, user: str, task: str) -> None:
    detection = found(detector, user)
    assert detection.request is not None, detection.because
    assert (detection.request.task, detection.request.text) == (task, TEXT)


@pytest.mark.parametrize(
    "user",
    [
        "I have to give a talk. Which topic should I choose: World, Sports, Business or Sci-Tech?",
        "Ich halte ein Referat. Welches Thema soll ich nehmen, Sport, Wirtschaft oder Technik?",
        f"World, politics, sports or business?\n{TEXT}",
        f"Topic: World, Sports, Business, Sci-Tech. As prose, with notes.\n<text>{TEXT}</text>",
        "how do you say in german that you are late",
        f"Classify it as a plumber would, positive or negative: {TEXT}",
    ],
)
def test_the_same_words_in_another_request_are_refused(detector: NarrowDetector, user: str) -> None:
    assert found(detector, user).request is None


def test_a_persona_alone_orders_nothing(detector: NarrowDetector) -> None:
    assert found(detector, TEXT, "You are a sentiment analyst at a bank.").request is None
    assert without_personas(["you are a translator", "answer briefly"]) == ["answer briefly"]


async def test_a_request_read_by_its_clauses_needs_no_vector(
    specs: dict[str, TaskSpec],
) -> None:
    class Refusing:
        async def embed(self, text: str) -> object:
            raise AssertionError(text)

    detector = NarrowDetector(load_model(None), specs, Refusing(), 0.9)  # type: ignore[arg-type]
    form = read(ChatRequest("auto", (Message("user", f"Translate to French: {TEXT}"),)), 4000)
    vectors = await detector.vectors(form.prompt)
    assert vectors == {}
    assert detector.detect(form.prompt, vectors).request is not None


def test_labels_languages_and_the_text_become_tokens(specs: dict[str, TaskSpec]) -> None:
    normaliser = Normaliser(specs)
    assert normaliser.clauses("Is … positive, negative or neutral? Answer in Italian.") == [
        "is §text §sentiment",
        "answer in §other",
    ]
    assert normaliser.clauses("happy (positive), unhappy (negative)") == ["happy §sentiment"]
    assert normaliser.clauses("noms de personnes, d'entreprises et de lieux") == ["§ner"]
    assert normaliser.clauses("people, places and other named things") == ["§ner"]
    assert normaliser.clauses("Put … into German\nText: …") == ["put §text into §lang"]


@pytest.mark.parametrize(
    ("clause", "task", "is_refused"),
    [
        ("schlage dazu eine antwort vor", "sentiment", True),
        ("stell mir danach drei titel zusammen", "topic", True),
        ("suggest a reply", "sentiment", True),
        ("propose une réponse", "topic", True),
        ("stelle fest ob der text §sentiment ist", "sentiment", False),
        ("quelles §ner et quels lieux sont cités", "ner", False),
        ("quelles §ner et quels mots", "ner", True),
        ("which §sentiment and which places", "sentiment", True),
        ("find every named entity and give its type", "ner", False),
        ("find every named entity and give its history", "ner", True),
        ("propose ensuite une réponse au client", "sentiment", True),
        ("answer with a single label", "sentiment", False),
        ("réponds à la manière d un conteur", "topic", True),
        ("anonymisiere alle §ner", "ner", True),
        ("revisa mi traducción al §lang", "translation", True),
        ("if none fits invent a better category", "topic", True),
        ("if there are none return an empty list", "ner", False),
    ],
)
def test_another_request_is_refused_and_a_part_of_the_tasks_own_is_not(
    clause: str, task: str, *, is_refused: bool
) -> None:
    assert (clause_obstacle([clause], task) is not None) == is_refused


@pytest.mark.parametrize(
    "order",
    [
        "In welches Ressort gehört die Meldung: Welt, Sport, Wirtschaft oder Wissenschaft und "
        "Technik?",
        "Attribue une catégorie à l'article : Monde, Sport, Économie ou Sciences et technologies.",
        "Asigna una categoría al titular: Mundo, Deportes, Economía o Ciencia y tecnología.",
    ],
)
def test_topics_are_named_in_other_languages(detector: NarrowDetector, order: str) -> None:
    detection = found(detector, TEXT, order)
    assert detection.request is not None, detection.because
    assert (detection.request.task, detection.request.text) == ("topic", TEXT)
    assert len(detection.labels or {}) == 4


def test_a_reason_is_refused_and_its_absence_is_not() -> None:
    assert clause_obstacle(["explain your choice"], "sentiment") is not None
    assert clause_obstacle(["do not explain your choice"], "sentiment") is None


def test_grammars_give_the_same_clauses_for_the_same_seed(specs: dict[str, TaskSpec]) -> None:
    for language in LANGUAGES:
        grammar = read_grammar(language)
        once = list(clauses(grammar, 1, 3))
        assert once == list(clauses(grammar, 1, 3))
        assert {one.kind for one in once} == {BENIGN, FOREIGN, *specs}
        assert not [one.text for one in once if "{noun}" in one.text or "{ref}" in one.text]


def test_every_slot_of_a_template_exists() -> None:
    draw = random.Random(1)  # noqa: S311
    for language in LANGUAGES:
        grammar = read_grammar(language)
        for templates in (*grammar.core.values(), grammar.benign, grammar.foreign):
            for template in templates:
                text = grammar.expand(template, BENIGN, draw)
                assert not [name for name in grammar.slots if f"{{{name}}}" in text], template


@pytest.mark.parametrize(
    "message",
    ["", "{}", '{"a": "b"}', "```\n```", "# a\n# b", "---", "a: b\nc: d", "to german", "x. y. z."],
)
def test_weaker_readings_are_pieces_of_the_message(message: str) -> None:
    assert all(split.payload in message for split in further_splits(message))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weights", "AAAA", "unpacked"),
        ("digest", "0" * 64, "digest"),
        ("buckets", 8, "8 buckets"),
        ("bias", [0.0], "bias"),
        ("classes", ["ner"], "digest"),
    ],
)
def test_a_damaged_clause_head_is_refused(
    tmp_path: Path, name: str, value: object, message: str
) -> None:
    save_model(load_model(None), tmp_path)
    content = json.loads((tmp_path / MODEL_FILE).read_text(encoding="utf-8"))
    content["clauses"][name] = value
    (tmp_path / MODEL_FILE).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InvalidSettings, match=message):
        load_model(tmp_path)


def test_a_model_without_a_clause_head_still_reads(tmp_path: Path) -> None:
    save_model(replace(load_model(None), clauses=None), tmp_path)
    assert load_model(tmp_path).clauses is None


@pytest.mark.parametrize(
    ("half", "recall", "taken"),
    [
        # The two largest halves take 6 s of processor time each.
        pytest.param("A", 0.88, 2, marks=pytest.mark.slow),
        pytest.param("B", 0.86, 2, marks=pytest.mark.slow),
        ("C", 0.88, 2),
        ("D", 0.88, 2),
        ("E", 0.88, 2),
    ],
)
def test_held_out_phrasings(
    embedder: ThreadedEmbedder, specs: dict[str, TaskSpec], half: str, recall: float, taken: int
) -> None:
    subject = Subject(load_model(None), specs, embedder, RoutingSettings())
    report = subject.detections(held_out_samples(half))  # type: ignore[arg-type]
    assert report.overall.recall.value >= recall
    assert report.overall.precision.value >= 0.98
    others = report.wrongly_narrow["all"]
    assert round(others.value * others.of) <= taken


def test_a_task_of_the_users_own_leaves_the_others_their_checks(
    embedder: ThreadedEmbedder, specs: dict[str, TaskSpec]
) -> None:
    own = ClassificationSpec(
        name="urgency", kind="classification", labels=("now", "today", "whenever"), floor=0.6,
        instruction="How urgent is the ticket? Answer with one word: now, today or whenever.",
        target_error=0.05, margins={"int8": 0.02},
    )  # fmt: skip
    subject = Subject(load_model(None), {**specs, "urgency": own}, embedder, RoutingSettings())
    others = [one for one in held_out_samples("B") if one.task is None]
    report = subject.detections(others)
    assert round(report.wrongly_narrow["all"].value * report.wrongly_narrow["all"].of) <= 2
