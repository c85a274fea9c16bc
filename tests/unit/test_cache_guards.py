"""Guards refuse what changes an answer, in both directions, and let paraphrases pass."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cache.eligible import ineligible_text
from serving.cache.guards.refusal import GUARDS, MODIFIER_MARGIN, refusal, refusal_at
from serving.cache.guards.sentences import compare_sentences
from serving.cache.guards.substitution import compare_modifiers
from serving.cache.guards.words import Words

from .guard_kit import refused, shipped

NAMES = ("Paris", "Lisbon", "Nairobi", "Toyota", "Mozart", "Kafka", "Docker", "Iceland")
VERBS = ("reach", "visit", "leave", "describe")


def test_no_changed_pair_passes() -> None:
    pairs = shipped("changed_pairs.jsonl")
    assert len(pairs) >= 1000
    assert {pair["language"] for pair in pairs} == {"en", "de", "fr", "es"}
    passed = [
        (pair["a"], pair["b"])
        for pair in pairs
        if refusal(Words(pair["a"]), Words(pair["b"])) is None
    ]
    assert passed == []


def test_most_paraphrases_pass() -> None:
    pairs = shipped("paraphrases.jsonl")
    assert len(pairs) >= 500
    passed = [
        pair
        for pair in pairs
        if not (ineligible_text(pair["a"]) or ineligible_text(pair["b"]))
        and refusal(Words(pair["a"]), Words(pair["b"])) is None
    ]
    assert len(passed) / len(pairs) >= 0.8


def test_no_pair_that_was_written_before_the_guards_were_read_is_served() -> None:
    pairs = shipped("unseen_changed_pairs.jsonl")
    assert len(pairs) >= 300
    assert {pair["language"] for pair in pairs} == {"en", "de", "fr", "es"}
    for pair in pairs:
        a, b = Words(pair["a"]), Words(pair["b"])
        assert (refusal(a, b) or compare_modifiers(a, b)) is not None, pair


@pytest.mark.parametrize(
    "polite",
    ["{} Thank you.", "Thanks! {}", "Hi, {} Thanks in advance!", "Question: {}", "Please: {}"],
)
def test_politeness_is_no_name(polite: str) -> None:
    text = "How do I reverse a linked list in Python?"
    assert refusal(Words(text), Words(polite.format(text))) is None


def test_most_paraphrases_that_were_written_before_pass() -> None:
    pairs = shipped("unseen_paraphrases.jsonl")
    passed = [p for p in pairs if refusal(Words(p["a"]), Words(p["b"])) is None]
    assert len(passed) / len(pairs) >= 0.7


def test_no_everyday_pair_is_served() -> None:
    pairs = shipped("unseen_everyday_pairs.jsonl")
    assert len(pairs) >= 300
    assert {pair["language"] for pair in pairs} == {"en", "de", "fr", "es"}
    for pair in pairs:
        a, b = Words(pair["a"]), Words(pair["b"])
        assert (refusal(a, b) or compare_modifiers(a, b)) is not None, pair


def test_most_everyday_paraphrases_pass_the_guards() -> None:
    pairs = shipped("unseen_everyday_paraphrases.jsonl")
    assert len(pairs) >= 150
    passed = [p for p in pairs if refusal(Words(p["a"]), Words(p["b"])) is None]
    assert len(passed) / len(pairs) >= 0.6


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ("Which rows are comments?", "Which rows are anything but comments?", "negation"),
        ("Welche Zeilen sind Kommentare?", "Welche Zeilen außer Kommentaren?", "negation"),
        ("Quels fichiers garder ?", "Quels fichiers garder, hormis les journaux ?", "negation"),
        ("Is it legal with consent?", "Is it legal absent consent?", "antonyms"),
        ("Who directed the film Speed?", "Who directed the film Speeds?", "names"),
        ("¿Cuándo se usa por?", "¿Cuándo se usa para?", "question_kind"),
        ("Wann benutzt man dass?", "Wann benutzt man wenn?", "question_kind"),
    ],
)
def test_kinds_of_change_that_were_found_in_unseen_pairs(a: str, b: str, reason: str) -> None:
    assert refused(a, b) == reason


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("How big is a blue whale?", "What is the size of a blue whale?"),
        ("How old is the universe?", "What is the age of the universe?"),
        ("How fast does light travel?", "What is the speed light travels at?"),
        ("What is the capital of Chad?", "Which city is the capital of Chad?"),
        ("Was ist die Hauptstadt von Finnland?", "Welche Stadt ist die Hauptstadt von Finnland?"),
        ("¿Cuál es la capital de Italia?", "¿Qué ciudad es la capital de Italia?"),
    ],
)
def test_a_measure_and_its_noun_ask_the_same(a: str, b: str) -> None:
    assert refused(a, b) is None


def test_a_text_is_never_refused_against_itself() -> None:
    for pair in shipped("paraphrases.jsonl")[::5]:
        if Words(pair["a"]).language is not None:
            assert refusal(Words(pair["a"]), Words(pair["a"])) is None, pair["a"]


@given(st.text(max_size=80), st.text(max_size=80))
def test_every_guard_is_symmetric_on_any_text(a: str, b: str) -> None:
    for guard in GUARDS:
        assert guard(Words(a), Words(b)) == guard(Words(b), Words(a))


@given(st.sampled_from([pair["a"] for pair in shipped("paraphrases.jsonl")]),
       st.sampled_from([pair["b"] for pair in shipped("changed_pairs.jsonl")]))  # fmt: skip
def test_every_guard_is_symmetric_on_questions(a: str, b: str) -> None:
    for guard in GUARDS:
        assert guard(Words(a), Words(b)) == guard(Words(b), Words(a))


@given(st.integers(-9999, 99_999), st.integers(-9999, 99_999))
def test_another_number_isrefused(one: int, other: int) -> None:
    reason = refused(f"What is {one} times the speed?", f"What is {other} times the speed?")
    assert (reason is None) == (one == other)


@given(st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from(VERBS))
def test_another_name_isrefused(one: str, other: str, verb: str) -> None:
    reason = refused(f"How do people {verb} {one}?", f"How do people {verb} {other}?")
    assert (reason is None) == (one == other)


@given(st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from(VERBS))
def test_exchanged_arguments_arerefused(one: str, other: str, verb: str) -> None:
    reason = refused(f"Does {one} {verb} {other}?", f"Does {other} {verb} {one}?")
    assert (reason is None) == (one == other)
    reason = refused(f"How do I get from {one} to {other}?", f"How do I get from {other} to {one}?")
    assert (reason is None) == (one == other)
    moved = f"How do I get to {other} from {one}?"
    assert refused(f"How do I get from {one} to {other}?", moved) is None


@given(st.sampled_from(("km", "miles", "feet", "hours", "days", "weeks", "euros", "dollars", "kg")),
       st.sampled_from(("km", "miles", "feet", "hours", "days", "weeks", "euros", "dollars", "kg")),
       st.integers(2, 99))  # fmt: skip
def test_another_unit_isrefused(one: str, other: str, count: int) -> None:
    reason = refused(f"What can I do with {count} {one}?", f"What can I do with {count} {other}?")
    assert (reason is None) == (one == other)


MONTHS = ("January", "March", "May", "July", "December", "Monday", "Friday")


@given(st.sampled_from(MONTHS), st.sampled_from(MONTHS))
def test_another_date_isrefused(one: str, other: str) -> None:
    reason = refused(f"What is celebrated in {one} 2020?", f"What is celebrated in {other} 2020?")
    assert (reason is None) == (one == other)


@pytest.mark.parametrize(
    ("text", "word", "negation"),
    [
        ("Which birds can fly?", "fly", "not fly"),
        ("Can I travel with a passport?", "with", "without"),
        ("Which drinks have sugar?", "sugar", "no sugar"),
        ("Welche Vögel können fliegen?", "fliegen", "nicht fliegen"),
        ("Kann ich mit Pass reisen?", "mit", "ohne"),
        ("Quels oiseaux peuvent voler ?", "peuvent", "ne peuvent pas"),
        ("Peut-on voyager avec un visa ?", "avec", "sans"),
        ("¿Qué aves pueden volar?", "pueden", "no pueden"),
        ("¿Puedo viajar con pasaporte?", "con", "sin"),
    ],
)
def test_a_negation_isrefused(text: str, word: str, negation: str) -> None:
    assert refused(text, text.replace(word, negation)) is not None


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ("How do I turn on Bluetooth?", "How do I turn off Bluetooth?", "antonyms"),
        ("Is this mushroom edible?", "Is this mushroom inedible?", "antonyms"),
        ("Do I have to vote?", "Should I vote?", "modals"),
        ("Who built the tower?", "When was the tower built?", "question_kind"),
        ("Who is the mayor of Bonn?", "Who was the mayor of Bonn?", "tense"),
        ("Which apps are good for dogs?", "Which apps are good for cats?", "antonyms"),
        ("What is 10² in words?", "What is 102 in words?", "numbers"),
        ("What is a good wine?", "Was ist ein guter Wein?", "language"),
        ("How do I feed a parrot?", "How do I feed a turtle?", "siblings"),
        ("What changed in Python 3.1?", "What changed in Python 3.10?", "numbers"),
        ("What is the US army?", "What is the us army?", "names"),
        ("What does the picture above show?", "What does the picture above show us?", "deictic"),
    ],
)
def test_the_reason_names_what_differs(a: str, b: str, reason: str) -> None:
    found = refused(a, b)
    assert found == reason or (reason == "antonyms" and found in {"siblings", "scope"})


@pytest.mark.parametrize("number", ["1,000", "1000"])
def test_separators_of_thousands_do_not_count(number: str) -> None:
    assert (
        refused("How far is 1000 feet in metres?", f"How far is {number} feet in metres?") is None
    )


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What are some good books on chess?", "Which are the best books on chess?"),
        ("What are all the causes of rust?", "What are the causes of rust?"),
        ("What are the different types of cheese?", "What are the types of cheese?"),
        ("How should I boil an egg?", "How can I boil an egg?"),
        ("How long must I boil an egg?", "How long do I boil an egg?"),
        ("Which books should I read on chess?", "Which books do I read on chess?"),
        ("How can I become more confident?", "How can I become confident?"),
        ("What is the best way to boil an egg?", "How do I boil an egg?"),
        ("Does anyone really need a fork?", "Does somebody need a fork?"),
        ("Which colour has a ripe lemon?", "Which color has a ripe lemon?"),
        ("How do I organise a theatre?", "How do I organize a theater?"),
        ("What is anaemia?", "What is anemia?"),
        ("What is the importance of sleep in sport?", "What is important about sleep in sport?"),
        ("How do chess and go differ?", "How do go and chess differ?"),
        ("How do I rename my Facebook page?", "How do I rename my page on Facebook?"),
        ("What are the five largest lakes?", "What are the 5 largest lakes?"),
        ("What is the third law of motion?", "What is the 3rd law of motion?"),
        ("How do I paint with no brush?", "How do I paint without a brush?"),
        ("How much time does a flight to Rome take?", "How long does a flight to Rome take?"),
        ("What makes the sky blue?", "Why is the sky blue?"),
        ("How do you reset your phone?", "How can I reset my phone?"),
        ("What should you do if you hate your job?", "What should I do if I hate my job?"),
        ("Does 'justice' exist?", "Does justice exist?"),
        ("What are Dum-Dum bullets?", "What are dum dum bullets?"),
        ("Wie lange muss man ein Ei kochen?", "Wie lange kocht man ein Ei?"),
        ("Was kostet ein Reisepass?", "Wie viel kostet ein Reisepass?"),
        ("Comment marche un vaccin ?", "Comment fonctionne un vaccin ?"),
        ("¿Me puedes decir qué es un vector?", "¿Qué es un vector?"),
        ("I would like to know this. What is a vector?", "What is a vector?"),
        ("Please help: what is a vector?", "What is a vector?"),
    ],
)
def test_another_wording_passes(a: str, b: str) -> None:
    assert refused(a, b) is None
    assert compare_modifiers(Words(a), Words(b)) is None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Hello! I have a quick question. What is a lever? Thanks a lot!", "What is a lever?"),
        ("Hallo, kurze Frage: Wie wirkt ein Hebel? Vielen Dank!", "Wie wirkt ein Hebel?"),
        ("Bonjour, j'ai une question. Comment marche un vaccin ?", "Comment marche un vaccin ?"),
        ("¡Hola! Quisiera saber esto: ¿qué es un vector? Muchas gracias.", "¿Qué es un vector?"),
        ("How do I reset my phone, and why?", "How do I reset my phone? And why?"),
    ],
)
def test_courtesy_and_another_full_stop_are_no_sentence_more(a: str, b: str) -> None:
    assert compare_sentences(Words(a), Words(b)) is None
    assert compare_sentences(Words(b), Words(a)) is None


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ("What is stainless steel?", "How is stainless steel made?", "question_kind"),
        ("What does the spleen do?", "What is the spleen?", "question_kind"),
        ("What are the oldest universities?", "What are the best universities?", "scope"),
        ("How do I find a good writer?", "How can I become a good writer?", "substitution"),
        ("How do I make soap at home?", "How do I use soap at home?", "substitution"),
        ("How do I zoom the screen?", "How do I zoom out on the screen?", "antonyms"),
        ("How do I sign up for Zoom?", "How do I sign out of Zoom?", "antonyms"),
        ("Who built this bridge in Rome?", "Who built this bridge in Rome, please?", "deictic"),
        ("What is your name, please?", "What is my name, please?", "persons"),
        ("What do I call you?", "What do you call me?", "persons"),
        ("Was ist dein Ziel, bitte?", "Was ist mein Ziel, bitte?", "persons"),
        ("How long can I park here?", "How long must I park here?", "modals"),
        ("Do some birds migrate?", "Do all birds migrate?", "quantifiers"),
        ("How do I delete a photo?", "How do I delete all photos?", "quantifiers"),
        ("Wann geht die Sonne auf?", "Wann geht die Sonne unter?", "antonyms"),
        (
            "Wie melde ich mich bei der Kasse an?",
            "Wie melde ich mich bei der Kasse ab?",
            "antonyms",
        ),
        ("¿Qué le regalo a mi suegra?", "¿Qué le regalo a mi suegro?", "antonyms"),
        ("¿Con qué se limpia la plata?", "¿Por qué se limpia la plata?", "question_kind"),
        ("Comment fabrique-t-on le papier ?", "Comment fabriquait-on le papier ?", "tense"),
        ("Comment passer d'Orange à Free ?", "Comment passer de Free à Orange ?", "order"),
        ("What is the offside rule?", "What is the offside rule? Give an example.", "sentence"),
        ("Explain a lever to me.", "Explain a lever to me. Explain it to an expert.", "sentence"),
        ("Wie wirkt ein Hebel?", "Wie wirkt ein Hebel? Gib ein Beispiel.", "sentence"),
        (
            "Dis comment marche le levier.",
            "Dis comment marche le levier. Donne un exemple.",
            "sentence",
        ),
        ("¿Qué es un vector?", "¿Qué es un vector? Da un ejemplo.", "sentence"),
    ],
)
def test_what_only_looks_like_another_wording_isrefused(a: str, b: str, reason: str) -> None:
    assert refused(a, b) == reason


_ADDED = {
    "numbers": ("twice", "42", "three", "4.2", "third"),
    "units": ("in kilometres", "in dollars", "per week"),
    "dates": ("in March 2020", "on Friday", "at midnight"),
    "names": ("in Paris", "with Docker", "of Kafka"),
    "negation": ("without help", "for no reason"),
}


@given(
    st.sampled_from([pair["a"] for pair in shipped("unseen_paraphrases.jsonl")
                     if pair["language"] == "en"]),
    st.sampled_from([word for words in _ADDED.values() for word in words]),
)  # fmt: skip
def test_an_added_number_unit_date_name_or_negation_isrefused(text: str, added: str) -> None:
    longer = f"{text.rstrip('?.')} {added}?"
    assert refused(text, longer) is not None


@given(st.sampled_from(shipped("unseen_changed_pairs.jsonl")), st.floats(0.8, 1),
       st.sampled_from((0.88, 0.9, 0.95)))  # fmt: skip
def test_a_higher_threshold_never_serves_more(
    pair: dict[str, Any], similarity: float, threshold: float
) -> None:
    a, b = Words(pair["a"]), Words(pair["b"])
    reason = refusal_at(a, b, similarity, threshold)
    assert reason == refusal_at(b, a, similarity, threshold)
    if reason is not None:
        assert refusal_at(a, b, similarity, threshold + 0.02) is not None
    elif similarity < threshold + MODIFIER_MARGIN:
        assert compare_modifiers(a, b) is None


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ("What does the emoji \U0001f600 mean?", "What does the emoji \U0001f621 mean?", "symbols"),
        ("What does \u2200 mean in logic?", "What does \u2203 mean in logic?", "symbols"),
        ("What does the sign ! mean?", "What does the sign ? mean?", "symbols"),
        ("What is 5 + 3 - 2 equal to?", "What is 5 - 3 + 2 equal to?", "symbols"),
        ("What happens at 5 am in Tokyo?", "What happens at 5 p.m. in Tokyo?", "dates"),
        ("What is TCP used for?", "What is TCPS used for?", "names"),
        ("What is the capital of Georgia?", "What is the capital of Georgia state?", "names"),
        ("What is iPhone 12 battery life?", "What is iPhone 12 mini battery life?", "names"),
        ("What is china made of?", "What is China made of?", "names"),
        ("What does schon mean in English?",
         "What does sch\u00f6n mean in English?", "question_kind"),
        ("How do you spell accommodate?", "How do you spell accommodation?", "question_kind"),
        ("How do I say you love me in French?",
         "How do I say I love you in French?", "question_kind"),
        ("What is the best time to exercise?",
         "What is the best place to exercise?", "question_kind"),
        ("What should I do if I lose my keys?", "What should I do if I find my keys?", "antonyms"),
        ("How do I get into a locked car?", "How do I get out of a locked car?", "antonyms"),
        ("Whom does a landlord have to notify of a sale?",
         "Who has to notify a landlord of a sale?", "roles"),
        ("What companies does Google own?", "What companies own Google?", "roles"),
        ("Wen hat Brutus get\u00f6tet?", "Wer hat Brutus get\u00f6tet?", "roles"),
        ("\u00bfQui\u00e9n mat\u00f3 a C\u00e9sar en Roma?",
         "\u00bfA qui\u00e9n mat\u00f3 C\u00e9sar en Roma?", "roles"),
        ("Which company bought Twitter?", "Which company was bought by Twitter?", "roles"),
        ("Why was Socrates accused by Athens?", "Why did Socrates accuse Athens?", "roles"),
        ("If A implies B, does B imply A?", "If B implies A, does A imply B?", "roles"),
        ("Do all birds not fly?", "Do not all birds fly?", "roles"),
        ("What is not allowed but legal?", "What is allowed but not legal?", "roles"),
        ("Can only doctors prescribe drugs?", "Can doctors only prescribe drugs?", "roles"),
        ("Do I heat the oil before I add the onion?",
         "Do I add the onion before I heat the oil?", "roles"),
    ],
)  # fmt: skip
def test_signs_roles_and_words_as_words_are_told_apart(a: str, b: str, reason: str) -> None:
    assert refused(a, b) == reason


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Which book was written by Orwell?", "Which book did Orwell write?"),
        ("Why isn't my laptop charging?", "Why is my laptop not charging?"),
        ("How do I say thank you in Japanese?", "How do you say thank you in Japanese?"),
        ("What is an API used for?", "What are APIs used for?"),
        ("If it rains, does a match stop?", "Does a match stop if it rains?"),
    ],
)
def test_another_voice_or_order_of_clauses_is_no_other_question(a: str, b: str) -> None:
    assert refused(a, b) is None
