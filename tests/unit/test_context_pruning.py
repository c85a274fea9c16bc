"""Context pruning: units, what is never removed, the shipped pairs and the command."""

import json
import re
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.cli import build_parser, main
from serving.commands import context as command
from serving.context.detection import context_places, question_of
from serving.context.fitting import lower_bound
from serving.context.pairs import HALVES, holds, read_pairs, shipped_pairs
from serving.context.pruning import MARKER, Divided, Part, Pruner, pays_to_prune
from serving.context.ranking import FEATURES, Model, Ranker, load_models, questions_of
from serving.context.sentences import sentences
from serving.context.units import divide
from serving.contracts.errors import InvalidArgument, InvalidSettings
from serving.contracts.requests import Message
from serving.contracts.text_length import quarter_tokens
from serving.embedding.token_vectors import TokenVectors

from .frontier_kit import SONNET

FERRY = (
    "Freight must be at the north mole by 06:30. Gas bottles are carried on deck only. "
    "Frozen goods have priority over everything but medicine. Complaints arrive in May."
)
BREAD = (
    "Rye flour is mixed with ripe starter. The loaf is done when its core has reached 97 degrees. "
    "A seal costs 84 euros. The chimney sweep comes in spring."
)
QUESTION = "What core temperature must the loaf reach?"


@pytest.fixture(scope="module")
def ranker() -> Ranker:
    return Ranker(TokenVectors())


@pytest.fixture(scope="module")
def pruner(ranker: Ranker) -> Pruner:
    return Pruner(ranker, load_models().of("tokens"))


SMALL = {"question": "a b", "answers": ["c"], "documents": [{"title": "t", "text": "c d"}]}


@pytest.mark.parametrize(
    "changes",
    [
        {"question": ""}, {"question": " "}, {"answers": [""]}, {"answers": []}, {"documents": []},
        {"documents": [{"title": "", "text": ""}]}, {"question": "\ud800"}, {"answers": [5]},
    ],
)  # fmt: skip
def test_a_pair_without_a_question_an_answer_or_a_text_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(f"{json.dumps(SMALL)}\n{json.dumps({**SMALL, **changes})}\n", encoding="utf-8")
    assert main(["context", "evaluate", str(file)]) == 2
    assert "line 2" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 98])
def test_too_few_pairs_are_refused_before_anything_is_fitted(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    def works(*_: Any) -> None:
        raise AssertionError("it began to work")

    monkeypatch.setattr(command, "_ranker", works)
    file = tmp_path / "pairs.jsonl"
    file.write_text(f"{json.dumps(SMALL)}\n" * count, encoding="utf-8")
    assert main(["context", "fit", str(file), "--out", str(tmp_path / "model.json")]) == 2
    assert "cannot certify" in capsys.readouterr().err


def test_words_without_end_are_not_kept() -> None:
    tokens = TokenVectors()
    tokens.ids("warm")
    tracemalloc.start()
    try:
        for number in range(20):
            assert len(tokens.ids(f"{number}{'x' * 200_000}")) < 60
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


def test_the_answer_stays_and_a_marker_stands_for_the_rest(pruner: Pruner) -> None:
    pruned = pruner.prune(QUESTION, [Part(FERRY), Part(BREAD)], keep=0.2)
    assert "97 degrees" in pruned.texts[1]
    assert pruned.texts[0] == MARKER
    assert pruned.texts[1].startswith(MARKER)
    assert pruned.tokens_after < pruned.tokens_before / 2


@pytest.mark.parametrize(
    "kept",
    [
        "```python\nx = 1\nprint(x)\n```",
        "| port | depth |\n| --- | --- |\n| Tarn | 5 |",
        '{"port": "Tarn", "depth": 5}',
        "port\tdepth\tyear\nTarn\t5\t1921",
        "def depth(port):\n    return 5",
        "def depth(port):\n  if port:\n      print(port)\n  return 5",
        '{\n  "port": "Tarn",\n  "depths": [\n    5,\n    "six"\n  ]\n}',
        "port,depth,year\nTarn,5,1921",
        "port;depth;year\nTarn;5;1921",
        "port | depth\n--- | ---\nTarn | 5",
        "port\tdepth\nTarn\t5",
        "<tr><td>Tarn</td><td>5</td></tr>",
        "<TABLE>\n<TR><TD>Tarn</TD></TR>\n</TABLE>",
        "<table>\n<thead>\n<tr><td>Tarn</td></tr>\n</thead>\n</table>",
        "Tarn & 5 \\\\\nMoss & 6 \\\\",
        "select depth from ports where name = 'Tarn'",
        "update ports set depth = 5 where name = 'Tarn'",
        "2026-11-28T13:04:12Z INFO port Tarn opened\n2026-11-28 13:04:13,001 port Moss closed",
        "[2026/11/28 13:04:12] port Tarn opened",
    ],
)
def test_code_tables_and_json_are_never_removed(pruner: Pruner, kept: str) -> None:
    pruned = pruner.prune(QUESTION, [Part(f"{FERRY}\n\n{kept}\n\n{FERRY}"), Part(BREAD)], keep=0.1)
    assert kept in pruned.texts[0]


def test_a_quotation_of_the_question_stays(pruner: Pruner) -> None:
    question = f'{QUESTION} And what does "Gas bottles are carried" mean?'
    assert "Gas bottles" in pruner.prune(question, [Part(FERRY), Part(BREAD)], keep=0.05).texts[0]


def test_citations_keep_their_numbers(pruner: Pruner) -> None:
    text = f"[7] {FERRY}\n[12] {BREAD}\n[31] {FERRY}"
    pruned = pruner.prune(QUESTION, [Part(text)], keep=0.2).texts[0]
    assert "[12] " in pruned
    assert "97 degrees" in pruned
    assert "[7]" not in pruned


def test_a_sentence_that_begins_with_a_pronoun_keeps_the_one_before_it(pruner: Pruner) -> None:
    text = f"The Maren is a battery boat. It recharges for nine minutes at each turn. {FERRY}"
    pruned = pruner.prune("How many minutes does it recharge at a turn?", [Part(text)], keep=0.1)
    assert pruned.texts[0].startswith("The Maren is a battery boat. It recharges for nine minutes")


def test_a_short_list_stays_whole_with_its_lead_in() -> None:
    division = divide("Pumps go in this order:\n- hospital\n- waterworks\n- everyone else\n")
    assert [division.of(unit) for unit in division.units] == [division.text]


def test_headings_and_markup_are_titles() -> None:
    division = divide(
        '<document title="Tarn">\n# Station\nThe roof spans 46 metres.\n</document>\n'
    )
    assert [unit.is_title for unit in division.units] == [True, True, False, True]
    assert division.titles[0] == "Tarn Station"


def test_abbreviations_and_numbers_do_not_end_a_sentence() -> None:
    text = "Dr. Falk came on 12. March, i.e. late. She left at 5. It was H. P. Lund who stayed."
    spans = [text[a:b].strip() for a, b in sentences(text, 0, len(text))]
    assert spans[0] == "Dr. Falk came on 12. March, i.e. late."
    assert spans[-1].endswith("H. P. Lund who stayed.")


TEXTS = st.lists(
    st.sampled_from(
        [FERRY, BREAD, "\n", "\n\n", "- one\n- two\n", "| a | b |\n", "It is so. ", "# Title\n",
         " ", "\u4e00\u4e8c\u3002", "{\n", "```\n", "[3] Note. ", "\x0b", "<document>\n", "x" * 700]
    ) | st.text(max_size=40),
    max_size=12,
).map("".join)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_the_units_tile_any_text(text: str) -> None:
    units = divide(text).units
    ends = [0, *(unit.end for unit in units)]
    assert [unit.start for unit in units] == ends[:-1]
    assert ends[-1] == len(text)
    assert all(unit.needs is None or unit.needs < n for n, unit in enumerate(units))


@settings(max_examples=40, deadline=None)
@given(text=TEXTS, keep=st.none() | st.floats(0.05, 1.0))
def test_what_stays_is_the_text_in_its_order(pruner: Pruner, text: str, keep: float | None) -> None:
    parts = [Part(text), Part(BREAD)]
    pruned = pruner.prune(QUESTION, parts, keep)
    assert pruned == pruner.prune(QUESTION, parts, keep)
    for part, left in zip(parts, pruned.texts, strict=True):
        position = 0
        for piece in left.split(MARKER):
            found = part.text.find(piece, position)
            assert found >= 0
            position = found + len(piece)


@pytest.mark.parametrize("text", ["", " \n", "x" * 20_000, "\u0000", "\U0001f600" * 50])
def test_odd_texts_are_pruned_without_error(pruner: Pruner, text: str) -> None:
    pruned = pruner.prune("", [Part(text)])
    assert len(pruned.texts) == 1


HARD = {
    "marks": ".", "quoted marks": '."', "questions": "? ", "spaces": " ", "lines": "\n",
    "tags": "<a ", "one tag": "<" + "a" * 60_000, "dashes": "- ", "items": "- a\n",
    "titles": "# a\n", "markup": "<a>\n", "pronouns": "It. ", "signs": "--- ", "rows": "|a|b|\n",
    "braces": "{", "fences": "```\n", "citations": "[7] ", "semicolons": "; ", "tabs": "\t",
    "a list after spaces": "abc:\n" + " " * 60_000 + "\n- a\n", "no ends": "word ",
    "letters": "a", "numbers": "1. a\n", "ellipses": "\u2026", "ideographs": "\u5b57\u3002",
}  # fmt: skip


@pytest.mark.parametrize("piece", HARD.values(), ids=HARD.keys())
def test_a_context_of_any_shape_takes_time_linear_in_its_length(pruner: Pruner, piece: str) -> None:
    # 60,000 characters; where the time grew with the square, they took minutes.
    text = piece * (60_000 // len(piece) or 1)
    began = time.process_time()
    pruner.prune(QUESTION, [Part(text)], 0.5)
    assert time.process_time() - began < 30


@pytest.mark.parametrize(
    "piece",
    ["<context>", "</context>", "<context>a</context>", "<documents><document>", "<context "],
)
def test_elements_are_found_in_linear_time(piece: str) -> None:
    began = time.process_time()
    messages = [Message("user", piece * 20_000, {})]
    places = context_places(messages, set(), ())
    question_of(messages, places)
    assert time.process_time() - began < 20


def test_characters_that_change_their_length_in_lower_case_move_no_place() -> None:
    text = "\u0130" * 5 + " <Context kind='a'>inside</CONTEXT> outside"
    (place,) = context_places([Message("user", text, {})], set(), ())
    assert text[place.start : place.end] == "inside"


def test_the_shipped_pairs_are_many_and_of_600_to_2000_tokens() -> None:
    pairs = [pair for half in HALVES for pair in shipped_pairs(half)]
    assert len(pairs) >= 300
    assert all(pair.is_reachable for pair in pairs)
    lengths = [sum(quarter_tokens(text) for _, text in p.documents) // 4 for p in pairs]
    assert min(lengths) >= 600
    assert max(lengths) <= 2000
    assert sum(len(pair.needs) > 1 for pair in pairs) >= 30


def test_the_halves_share_no_article() -> None:
    fit, held = ({t for p in shipped_pairs(h) for t, _ in p.documents} for h in HALVES)
    assert fit.isdisjoint(held)


def test_most_answers_of_the_held_out_half_stay(pruner: Pruner) -> None:
    kept = before = after = 0
    pairs = shipped_pairs("held_out")[::6]
    for pair in pairs:
        pruned = pruner.prune(pair.question, [Part(text, title) for title, text in pair.documents])
        kept += all(holds(need, pruned.texts) for need in pair.needs)
        before, after = before + pruned.tokens_before, after + pruned.tokens_after
    assert kept >= len(pairs) - 2
    assert after < 0.65 * before


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    # With no loss the bound is the n-th root of 1 - confidence.
    assert lower_bound(99, 99) == pytest.approx(0.05 ** (1 / 99))
    assert lower_bound(0, 10) == 0.0


def test_a_cached_prefix_is_pruned_only_where_that_is_cheaper() -> None:
    # 10,000 cached tokens are read for a tenth of the price: 4,000 new ones cost more.
    assert not pays_to_prune(SONNET, cached=10_000, start=0, before=10_000, after=4_000)
    assert pays_to_prune(SONNET, cached=0, start=0, before=10_000, after=4_000)
    assert pays_to_prune(SONNET, cached=1_000, start=1_000, before=10_000, after=4_000)


def run(arguments: list[str]) -> int:
    parser = build_parser("narrowgate", "", {"context": command})
    return command.run(parser.parse_args(["context", *arguments]))


def lines_of(count: int) -> str:
    row = {
        "question": QUESTION,
        "answers": ["97 degrees"],
        "documents": [{"title": "a", "text": FERRY}, {"title": "b", "text": BREAD, "gold": True}],
    }
    return "".join(json.dumps(row) + "\n" for _ in range(count))


def test_evaluate_measures_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(lines_of(3), encoding="utf-8")
    assert run(["evaluate", str(file), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["sets"]
    assert (one["pairs"], one["unreachable"]) == (3, 0)
    assert one["rows"][0]["answers_kept"] == 1.0
    assert run(["evaluate", str(file), "--limit", "1"]) == 0
    assert "threshold" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "3", '{"question": "q"}', '{"question": 1, "answers": ["a"], "documents": []}',
     '{"question": "q", "answers": [], "documents": [{"text": "a"}]}', "[" * 100_000, ""],
)  # fmt: skip
def test_a_malformed_file_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(InvalidArgument, match=r"pairs\.jsonl"):
        read_pairs(file)


def test_a_file_without_a_reachable_answer_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(lines_of(2).replace('["97 degrees"]', '["absent"]'), encoding="utf-8")
    with pytest.raises(InvalidArgument, match="no context"):
        run(["evaluate", str(file)])


def test_too_few_pairs_certify_nothing(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(lines_of(3), encoding="utf-8")
    with pytest.raises(InvalidArgument, match="3 pairs"):
        run(["fit", str(file), "--out", str(tmp_path / "model.json")])


@pytest.mark.slow
def test_fit_writes_the_shipped_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.json"
    assert run(["fit", "--out", str(out), "--json"]) == 0
    fitted, shipped = load_models(out).of("tokens"), load_models().of("tokens")
    assert fitted.weights == pytest.approx(shipped.weights, abs=0.01)
    assert fitted.recall_lower >= fitted.target_recall


@pytest.mark.parametrize(
    "parts",
    [
        ["Who runs the hut, and ", "how long is the walk up?"],
        ["Wer f\u00fchrt die H\u00fctte und ", "wie lange dauert der Weg?"],
        ["Qui tient le refuge et ", "combien de temps dure la mont\u00e9e ?"],
        ["\u00bfQui\u00e9n lleva el refugio y ", "cu\u00e1nto dura la subida?"],
        ["What is the name of the firm and ", "in which town is it?"],
        # One thing is asked for, or too many.
        ["What do hens and ducks eat?"],
        ["Where and when does it start?"],
        ["Name the sand and whatever else is here"],
        ["Who is one and who is two and who is three and who is four and who is five?"],
    ],
)
def test_a_question_for_several_things_is_scored_by_its_parts(parts: list[str]) -> None:
    whole = "".join(parts)
    words = [re.sub(r"(?:and|und|et|y) $", "", part) for part in parts]
    assert list(questions_of(whole)) == [whole, *(words if len(parts) > 1 else [])]


def test_the_second_thing_that_is_asked_for_is_found_as_the_first(ranker: Ranker) -> None:
    asked = "Who keeps the bees, and what core temperature must the loaf reach?"
    divided = Divided.of([Part(FERRY + " " + BREAD)])
    features = ranker.features(asked, divided.passages)
    scores = load_models().of("tokens").scores(features)
    core = next(n for n, text in enumerate(divided.passages.texts) if "97 degrees" in text)
    assert features.shape[0] == 3
    assert scores[core] == pytest.approx(
        float(load_models().of("tokens").scores(features[2:])[core])
    )
    assert scores[core] > load_models().of("tokens").scores(features[:1])[core]


def test_a_title_is_found_by_its_letters(ranker: Ranker) -> None:
    parts = [Part(FERRY, "Winged stoat"), Part(BREAD, "Wingstop (restaurant)"), Part(FERRY, "")]
    passages = Divided.of(parts).passages
    (features,) = ranker.features("how many wing stops are there", passages)
    column = FEATURES.index("title_letters")
    shares = [float(features[start, column]) for start in passages.starts]
    assert shares == [pytest.approx(1 / 3), 1.0, 0.0]
    best = [float(features[start, column + 1]) for start in passages.starts]
    assert best == [pytest.approx(1 / 3 - 1), 0.0, -1.0]


def test_a_model_of_other_features_is_refused(tmp_path: Path) -> None:
    document: dict[str, Any] = load_models().of("tokens").model_dump(mode="json")
    document["features"] = [*document["features"][1:], "other"]
    file = tmp_path / "model.json"
    file.write_text(json.dumps({"models": [Model.model_validate(document).model_dump()]}), "utf-8")
    with pytest.raises(InvalidSettings, match="other features"):
        load_models(file)
    file.write_text("{", "utf-8")
    with pytest.raises(InvalidSettings, match="not a context model"):
        load_models(file)
