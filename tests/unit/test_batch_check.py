"""Every bad line of a file is found in one pass, with its number, before anything is spent."""

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batch.check import FileCheck, GoodLine
from serving.batch.estimate import CostEstimate
from serving.batch.lines import raw_lines
from serving.contracts.batch import MAX_REPORTED, Checked
from serving.contracts.task_spec import TaskSpec
from serving.ledger.pricing.book import PriceBook
from serving.pipeline.plan import choose_plan
from serving.tasks.task import bind

from .batch_kit import ACME, CHAT, MODEL, chat_line, jsonl, line_rules, task_line
from .character_tokenizer import CharacterTokenizer


def check(
    specs: dict[str, TaskSpec], data: bytes, endpoint: str = CHAT, **rules: Any
) -> tuple[list[GoodLine], Checked]:
    found = FileCheck(line_rules(specs, **rules), endpoint, ACME)
    return list(found.good_lines([data])), found.result()


BAD: list[tuple[str, Any]] = [
    ("invalid_json_line", b"{"),
    ("invalid_json_line", b"[]"),
    ("invalid_json_line", b'{"custom_id": "x", "custom_id": "y"}'),
    ("invalid_json_line", b'{"custom_id": "\xff"}'),
    ("invalid_json_line", b"\xef\xbb\xbf{}"),
    ("empty_line", b"  "),
    ("missing_required_parameter", {"url": CHAT, "body": {}}),
    ("missing_required_parameter", chat_line(7)),
    ("missing_required_parameter", chat_line("")),
    ("invalid_custom_id", chat_line("x" * 513)),
    ("invalid_custom_id", chat_line("a\ud800")),
    ("duplicate_custom_id", chat_line("first")),
    ("unknown_field", {**chat_line("a"), "id": 1}),
    ("invalid_method", {**chat_line("b"), "method": "GET"}),
    ("invalid_url", {**chat_line("c"), "url": "/v1/embeddings"}),
    ("invalid_url", {**chat_line("d"), "url": None}),
    ("mismatched_url", task_line("e", "sentiment")),
    ("missing_required_parameter", {"custom_id": "f", "method": "POST", "url": CHAT}),
    ("stream_not_supported", chat_line("g", stream=True)),
    ("model_not_found", chat_line("h", model="nobody")),
    ("unknown_task", chat_line("i", model="task/nothing")),
    ("invalid_request", chat_line("j", messages=[])),
    ("invalid_request", chat_line("k", temperature="hot")),
    ("invalid_request", chat_line("l", max_cost_usd=-1)),
    ("invalid_request", chat_line("m", route="sideways")),
    ("invalid_request", chat_line("n", route="local_only")),
    ("context_length_exceeded", chat_line("o", "x" * 1001, model="tiny")),
    (
        "invalid_json_line",
        json.dumps(chat_line("q", temperature=7)).replace("7", "7" * 400).encode(),
    ),
    ("line_too_long", chat_line("p", "x" * 20_001)),
]


def test_every_bad_line_is_named_in_one_pass(specs: dict[str, TaskSpec]) -> None:
    data = jsonl(chat_line("first"), *(line for _, line in BAD), chat_line("last"))
    good, found = check(specs, data)
    assert [line.custom_id for line in good] == ["first", "last"]
    assert [(problem.line, problem.code) for problem in found.problems] == [
        (number, code) for number, (code, _) in enumerate(BAD, start=2)
    ]
    assert all(problem.message for problem in found.problems)


def test_a_defect_that_one_line_shows_is_that_line_s_problem(
    specs: dict[str, TaskSpec], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(request: Any, *rest: Any) -> Any:
        if "defect" in request.messages[0].text:
            raise OverflowError("a secret text")
        return choose_plan(request, *rest)

    monkeypatch.setattr("serving.batch.check.choose_plan", broken)
    lines = [chat_line("a"), chat_line("b", "a defect"), chat_line("c")]
    good, found = check(specs, jsonl(*lines))
    assert [line.custom_id for line in good] == ["a", "c"]
    assert [(problem.line, problem.code) for problem in found.problems] == [(2, "internal_error")]
    assert "OverflowError" in caplog.text
    assert "secret" not in caplog.text + found.problems[0].message


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\r\n\r\n", b"\n \n\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_bom_crlf_and_empty_last_lines_are_accepted(
    specs: dict[str, TaskSpec], start: bytes, end: bytes
) -> None:
    lines = [json.dumps(chat_line(name)).encode() for name in ("a", "b")]
    data = start + lines[0] + b"\r\n" + lines[1] + end
    good, found = check(specs, data)
    assert found.problems == ()
    assert [data[line.start : line.start + line.length] for line in good] == lines


def test_an_empty_file_is_refused(specs: dict[str, TaskSpec]) -> None:
    for data in (b"", b"\n\n", b"\xef\xbb\xbf"):
        assert [problem.code for problem in check(specs, data)[1].problems] == ["empty_file"]


def test_at_most_1000_lines_are_named_and_the_others_counted(specs: dict[str, TaskSpec]) -> None:
    _, found = check(specs, b"{\n" * (MAX_REPORTED + 5))
    named = [problem.line for problem in found.problems if problem.line is not None]
    assert named == list(range(1, MAX_REPORTED + 1))
    assert found.problems[-1].message.startswith("5 more lines")


def test_too_many_lines_are_refused(specs: dict[str, TaskSpec]) -> None:
    data = jsonl(*(chat_line(str(n)) for n in range(4)))
    assert check(specs, data, max_lines=4)[1].problems == ()
    (problem,) = check(specs, data, max_lines=3)[1].problems
    assert problem.code == "too_many_lines"


def test_the_plan_counts_lines_by_route_with_their_worst_case(specs: dict[str, TaskSpec]) -> None:
    data = jsonl(
        chat_line("a"), chat_line("b"), chat_line("c", model="auto"), chat_line("d", model="tiny"),
        chat_line("e", model="task/topic", route="local_only"),
    )  # fmt: skip
    good, found = check(specs, data, estimate=lambda _, plan: Decimal("0.25"))
    assert [(p.route, p.model, p.lines, p.max_usd) for p in found.plan] == [
        ("auto", "auto", 1, None),
        ("frontier", MODEL, 2, Decimal("0.50")),
        ("local", "tiny", 2, Decimal(0)),
    ]
    assert [line.target for line in good] == [MODEL, MODEL, None, None, None]


def test_an_input_that_is_not_text_is_found_before_the_line_runs(
    specs: dict[str, TaskSpec],
) -> None:
    line = task_line("a", "topic")
    line["body"] = {"inputs": ["Fine.", 5]}
    good, found = check(specs, jsonl(line, task_line("b", "topic")), "/v1/tasks/topic")
    assert [one.custom_id for one in good] == ["b"]
    (problem,) = found.problems
    assert (problem.line, problem.param) == (1, "body.inputs.1")


@pytest.mark.parametrize("has_batches", [True, False])
def test_the_plan_compares_a_batch_with_the_reference_model(
    specs: dict[str, TaskSpec], has_batches: bool
) -> None:
    tasks = {"topic": bind(specs["topic"], CharacterTokenizer(), 4096)}
    estimate = CostEstimate(
        PriceBook.load(),
        lambda targets: targets,
        lambda targets: targets if has_batches else (),
        "openai/gpt-4o",
        tasks,
    )
    rules: dict[str, Any] = {
        "estimate": estimate.worst, "reference": estimate.reference, "in_batch": estimate.in_batch,
    }  # fmt: skip
    data = jsonl(
        chat_line("a", max_tokens=100), chat_line("b", "Hello" * 50, max_tokens=100),
        chat_line("c", model="auto", max_tokens=100),
    )  # fmt: skip
    _, found = check(specs, data, **rules)
    auto, chats = found.plan
    assert (auto.max_usd, auto.batch_usd) == (None, None)
    assert auto.reference_usd is not None
    assert chats.max_usd is not None
    assert chats.reference_usd is not None
    # 100 tokens of output of each line at $8 and $10 a million, and every byte of input.
    assert chats.max_usd > 2 * 100 * Decimal("8e-6")
    assert chats.reference_usd > 2 * 100 * Decimal("10e-6")
    assert chats.reference_usd > chats.max_usd
    assert chats.batch_usd == (chats.max_usd / 2 if has_batches else None)
    _, found = check(specs, jsonl(task_line("t", "topic")), endpoint="/v1/tasks/topic", **rules)
    (task,) = found.plan
    assert task.reference_usd is not None
    assert task.reference_usd > 0


def test_a_model_whose_provider_has_no_key_is_refused(specs: dict[str, TaskSpec]) -> None:
    policy = replace(line_rules(specs).policy, configured=lambda _: ())
    _, found = check(specs, jsonl(chat_line("a"), chat_line("b", model="tiny")), policy=policy)
    assert [problem.code for problem in found.problems] == ["frontier_not_configured"]


def test_lines_of_a_task_run_at_its_endpoint(specs: dict[str, TaskSpec]) -> None:
    data = jsonl(task_line("a", "topic"), task_line("b", "ner"), chat_line("c"))
    good, found = check(specs, data, "/v1/tasks/topic")
    assert [line.custom_id for line in good] == ["a"]
    assert [problem.code for problem in found.problems] == ["mismatched_url"] * 2


@pytest.mark.parametrize("blank", [b"\n", b" " * 1000 + b"\r\n"])
def test_blank_lines_without_end_are_not_held(blank: bytes) -> None:
    seen = most = 0
    tracemalloc.start()
    try:
        for _ in raw_lines((blank * 100 for _ in range(400)), 1_000_000):
            seen += 1
            most = max(most, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # All but the last of them count as lines, and a file may have only so many.
    assert 39_000 <= seen < 40_000
    assert most < 3_000_000


def test_some_blank_lines_at_the_end_are_left_out() -> None:
    assert len(list(raw_lines([b"a\n" + b"\n" * 1000], 100))) == 1
    assert len(list(raw_lines([b"a\n" + b"\n" * 500 + b"b\n"], 100))) == 502


@given(
    st.lists(st.binary(max_size=30).filter(lambda data: b"\n" not in data), max_size=8),
    st.lists(st.integers(min_value=1, max_value=40), max_size=20),
)
def test_lines_do_not_depend_on_the_pieces_in_which_a_file_is_read(
    lines: list[bytes], sizes: list[int]
) -> None:
    data = b"\n".join(lines)
    pieces, left = [], data
    for size in sizes:
        pieces.append(left[:size])
        left = left[size:]
    whole = list(raw_lines([data], 25))
    assert list(raw_lines([*pieces, left], 25)) == whole
    for line in whole:
        if line.data is not None:
            assert data[line.start : line.start + len(line.data)] == line.data
    filled = [raw.strip() for raw in data.split(b"\n")]
    last = max((n for n, raw in enumerate(filled) if raw), default=-1)
    assert len(whole) <= last + 1


def test_a_long_file_is_checked_as_a_stream(specs: dict[str, TaskSpec]) -> None:
    text = "x" * 8_000

    def pieces() -> Iterator[bytes]:
        for number in range(2_000):
            yield jsonl(chat_line(str(number), text))

    tracemalloc.start()
    found = FileCheck(line_rules(specs), CHAT, ACME)
    count = sum(1 for _ in found.good_lines(pieces()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The file has 16 MB.
    assert count == 2_000
    assert peak < 3_000_000
