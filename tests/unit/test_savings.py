"""`narrowgate savings`: logs in the shapes of gateways, the levers, and what bad input gets."""

import gzip
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.cli import main
from serving.contracts.answer import Usage
from serving.ledger.pricing.book import PriceBook
from serving.savings.estimate import LEVERS, Sums
from serving.savings.log_file import MOST_LINE_BYTES

from .made_encoder import place_encoder, share_encoder

MODEL = "claude-sonnet-5-5"
NAME = f"anthropic/{MODEL}"
IN_USD, READ_USD, OUT_USD = 2e-6, 0.1e-6, 10e-6
"""Its prices."""
ONLY_MEASURED = [
    f"--assume={name}=0"
    for name in ("local_coverage", "local_answer_usd", "output_saved", "tier_share")
]
FACTS = (
    "The quay is 410 metres long. A cold store keeps herring. The harbour master is Ragna Tveit. "
    "Boats were pulled up the beach by oxen. The council postponed its decision in March. "
)

Audit = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    found = tmp_path_factory.mktemp("savings")
    place_encoder(found)
    with pytest.MonkeyPatch.context() as patch:
        share_encoder(patch)
        yield found


@pytest.fixture
def audit(folder: Path, capsys: pytest.CaptureFixture[str]) -> Audit:
    """Run the command on rows or bytes and return its JSON document."""

    def run(rows: Sequence[Mapping[str, Any]] | bytes, *options: str) -> dict[str, Any]:
        file = folder / "log.jsonl"
        file.write_bytes(rows if isinstance(rows, bytes) else _lines(rows))
        status = main(["savings", "--requests", str(file), "--state", str(folder), "--json",
                       *options])  # fmt: skip
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return {**document, "status": status}

    return run


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def row(
    content: Any, *, at_s: float | None = 1.76e9, tokens: tuple[int, int] = (1000, 200), **body: Any
) -> dict[str, Any]:
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    answer = {
        "model": MODEL,
        "choices": [{"message": {"content": "Yes, it is."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]},
    }
    found = {"request": {"model": MODEL, "messages": messages, **body}, "response": answer}
    return found if at_s is None else {**found, "created_at": at_s}


def saved(document: Mapping[str, Any], lever: str) -> float:
    (found,) = (one for one in document["levers"] if one["lever"] == lever)
    usd: float = found["saving"]["usd"]
    return usd


MESSAGES = [{"role": "user", "content": "Why is the sky blue at noon?"}]
USAGE = {
    "prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200,
    "prompt_tokens_details": {"cached_tokens": 400},
    "completion_tokens_details": {"reasoning_tokens": 50},
}  # fmt: skip
CHOICES = [{"message": {"role": "assistant", "content": "Rayleigh."}, "finish_reason": "stop"}]
BODY = {"model": MODEL, "messages": MESSAGES}
SHAPES: dict[str, dict[str, Any]] = {
    "openai request and response": {
        "request": BODY, "response": {"model": MODEL, "choices": CHOICES, "usage": USAGE},
    },
    "openai batch, joined": {
        "custom_id": "1", "body": BODY,
        "response": {"status_code": 200, "body": {"choices": CHOICES, "usage": USAGE}},
    },
    "flat": {**BODY, "choices": CHOICES, "usage": USAGE},
    "responses": {
        "request": {"model": MODEL, "input": "Why is the sky blue at noon?"},
        "response": {"status": "completed", "output": [
            {"type": "message", "content": [{"type": "output_text", "text": "Rayleigh."}]},
        ], "usage": {
            "input_tokens": 1000, "input_tokens_details": {"cached_tokens": 400},
            "output_tokens": 200, "output_tokens_details": {"reasoning_tokens": 50},
        }},
    },
    "litellm": {
        "standard_logging_object": {
            "id": "1", "call_type": "acompletion", "status": "success", "model": MODEL,
            "custom_llm_provider": "anthropic", "messages": MESSAGES, "prompt_tokens": 1000,
            "completion_tokens": 200, "startTime": 1.76e9, "model_parameters": {"stream": True},
            "response": {"choices": CHOICES, "usage": USAGE},
        },
    },
    "helicone": {
        "request_created_at": "2026-03-02T10:00:00.000Z", "model": MODEL, "provider": "ANTHROPIC",
        "response_status": 200, "request_body": json.dumps(BODY),
        "response_body": {"choices": CHOICES, "usage": USAGE},
    },
    "langfuse": {
        "type": "GENERATION", "traceId": "t", "startTime": "2026-03-02 10:00:00.000000",
        "model": MODEL, "input": MESSAGES, "output": {"role": "assistant", "content": "Rayleigh."},
        "usageDetails": {
            "input": 600, "input_cached_tokens": 400, "output": 150, "output_reasoning_tokens": 50,
        },
    },
    "anthropic": {
        "request": {"model": MODEL, "system": "Be brief.", "messages": MESSAGES},
        "response": {
            "model": MODEL, "content": [{"type": "text", "text": "Rayleigh."}],
            "stop_reason": "end_turn", "usage": {
                "input_tokens": 600, "cache_read_input_tokens": 400,
                "cache_creation_input_tokens": 0, "output_tokens": 200,
            },
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_line_in_each_shape_costs_the_same(audit: Audit, name: str) -> None:
    found = audit([SHAPES[name]])
    # Uncached input, input read from the provider's cache, output.
    assert found["bill_usd"] == pytest.approx(600 * IN_USD + 400 * READ_USD + 200 * OUT_USD)
    assert found["problems"] == []
    assert [one["model"] for one in found["models"]] == [NAME]


@pytest.mark.parametrize("name", SHAPES)
def test_an_equal_line_in_each_shape_is_an_exact_hit(audit: Audit, name: str) -> None:
    second = json.loads(json.dumps(SHAPES[name]).replace('"id": "', '"id": "other-'))
    found = audit([SHAPES[name], second], *ONLY_MEASURED)
    assert saved(found, "exact_cache") == pytest.approx(found["bill_usd"] / 2)


@pytest.mark.parametrize("place", ["id", "request_id", "response"])
def test_a_line_that_is_in_the_log_twice_is_billed_once_and_is_no_hit(
    audit: Audit, place: str
) -> None:
    one = row("Why is the sky blue?")
    (one["response"] if place == "response" else one)["id" if place == "response" else place] = "a1"
    found = audit([one, row("Why is the sky red?"), one], *ONLY_MEASURED)
    assert (found["calls"], saved(found, "exact_cache")) == (2, 0.0)
    (problem,) = found["problems"]
    assert "the same call as another line" in problem["what"]
    assert problem["lines"] == [3]


def test_a_log_without_answers_says_that_the_cache_saves_nothing(audit: Audit) -> None:
    lines = [row("Why is the sky blue?"), row("Why is the sky blue?", at_s=1.76e9 + 5)]
    for one in lines:
        del one["response"]["choices"]
    found = audit(lines, *ONLY_MEASURED)
    assert saved(found, "exact_cache") == 0.0
    assert [(p["what"], p["count"]) for p in found["problems"]] == [
        ("no answer: the exact cache stores nothing there", 2)
    ]


def test_costs_and_times_that_no_call_has_are_not_believed(audit: Audit) -> None:
    lines = [
        {**row("Why is the sky blue?", at_s=at), "response_cost": cost}
        for at, cost in ((1.76e9, "1e999999"), (1e300, 0.25), (1.76e9 + 1, 1e30))
    ]
    found = audit(lines, *ONLY_MEASURED)
    assert found["logged_usd"] == 0.25
    assert found["until"].startswith("2025-10-09")


@pytest.mark.parametrize(
    ("second", "hits"),
    [
        ({"at_s": 1.76e9 + 60}, 1),
        ({"at_s": 1.76e9 + 86_401}, 0),  # older than cache.ttl_s
        ({"at_s": 1.76e9 + 60, "temperature": 0.1}, 0),
        ({"at_s": None}, 1),
    ],
)
@pytest.mark.parametrize("newest_first", [False, True])
def test_the_exact_cache_follows_its_own_rules(
    audit: Audit, second: dict[str, Any], hits: int, *, newest_first: bool
) -> None:
    rows = [row("Why is the sky blue?"), row("Why is the sky blue?", **second)]
    found = audit(rows[::-1] if newest_first else rows, *ONLY_MEASURED)
    assert saved(found, "exact_cache") == pytest.approx(hits * found["bill_usd"] / 2)


def test_what_the_cache_never_stores_is_no_hit(audit: Audit) -> None:
    cut = row("Why is the sky blue?")
    cut["response"]["choices"][0]["finish_reason"] = "length"
    dated = [row("What happened today?"), row("What happened today?")]
    assert saved(audit([cut, cut, *dated], *ONLY_MEASURED), "exact_cache") == 0.0


def test_a_narrow_request_is_found_and_costs_what_is_assumed(audit: Audit) -> None:
    narrow = row(
        "What is the sentiment of this review, positive or negative? Answer with one word.\n\n"
        "Review: I loved every minute of the evening."
    )
    other = row("Write a poem about the sea at night.")
    found = audit(
        [narrow, other], "--assume=local_coverage=0.5", "--assume=local_answer_usd=0.0001"
    )
    one = found["bill_usd"] / 2
    assert saved(found, "local_tasks") == pytest.approx(one / 2 - 0.0001)
    assert [one["requests"] for one in found["levers"]][1] == 1


def test_contexts_are_pruned_and_everything_else_is_not(audit: Audit) -> None:
    context = FACTS * 6 + "The loaf is done when its core has reached 97 degrees. " + FACTS * 6
    question = "What core temperature must the loaf reach?"
    pruned = audit([row(f"<context>{context}</context>\n{question}")], "--assume=context_earned=1")
    plain = audit([row(f"{context}\n{question}")], "--assume=context_earned=1")
    assert 0.3 * 1000 * IN_USD < saved(pruned, "context_pruning") < 1000 * IN_USD
    assert saved(plain, "context_pruning") == 0.0


def _conversation(turns: int, gap_s: float, *, number: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(number)  # noqa: S311  # texts
    messages = [{"role": "system", "content": "Rule. " * 2500}]
    rows = []
    for turn in range(turns):
        messages = [*messages, {"role": "user", "content": f"{draw.random()} what applies?"}]
        tokens = sum(len(message["content"]) for message in messages) // 4
        at_s = 1.76e9 + number * 7 + turn * gap_s
        rows.append(row(messages, at_s=at_s, tokens=(tokens, 100)))
        messages = [*messages, {"role": "assistant", "content": f"{draw.random()} applies."}]
    return rows


def test_prompt_caching_is_replayed_at_the_times_of_the_log(audit: Audit) -> None:
    rows = [line for number in range(5) for line in _conversation(6, 60.0, number=number)]
    found = audit(rows, *ONLY_MEASURED, "--assume=cache_served=1")
    whole = sum(line["response"]["usage"]["prompt_tokens"] for line in rows) * IN_USD
    # All but the first request read nearly all of their input at a twentieth of the price.
    assert 0.75 * whole < saved(found, "prompt_caching") < 0.95 * whole
    # Behind every time to live nothing is read; the planner's first guesses are written in vain.
    slow = audit(_conversation(6, 8000.0), *ONLY_MEASURED)
    assert -0.3 * whole / 5 < saved(slow, "prompt_caching") <= 0.0
    for number, line in enumerate(rows):
        # No time at all, or a number that no clock gives.
        line["created_at"] = 10**400 if number % 2 else None
    untimed = audit(rows, *ONLY_MEASURED)
    assert saved(untimed, "prompt_caching") == 0.0
    assert not untimed["is_timed"]


def test_a_clients_own_prompt_caching_is_not_counted_again(audit: Audit) -> None:
    rows = _conversation(6, 60.0)
    for line in rows:
        line["response"]["usage"]["prompt_tokens_details"] = {"cached_tokens": 2000}
    assert saved(audit(rows, *ONLY_MEASURED), "prompt_caching") == 0.0


def test_a_cheaper_model_costs_its_share_and_its_audits(audit: Audit) -> None:
    options = [*ONLY_MEASURED[:-1], "--assume=tier_share=0.5", "--assume=tier_audits=0.1"]
    found = audit([row("Write a poem about the sea.")], *options)
    (model,) = found["models"]
    assert model["cheaper"] == "anthropic/claude-haiku-5-5"
    bill = 1000 * IN_USD + 200 * OUT_USD
    free = audit([row("Write a poem about the sea.")], *ONLY_MEASURED[:-1],
                 "--assume=tier_share=1", "--assume=tier_audits=0")  # fmt: skip
    cheap = bill - saved(free, "tiers")
    assert 0 < cheap < bill / 2
    assert saved(found, "tiers") == pytest.approx(0.5 * (bill - cheap) - 0.3 * cheap)


def test_a_cheaper_model_costs_of_a_long_request_what_it_costs_there(audit: Audit) -> None:
    usage = Usage(uncached_input_tokens=150_000, output_tokens=500)
    cheaper = PriceBook.load().of("anthropic/claude-haiku-5-5")
    assert cheaper is not None
    cost = cheaper.applied(usage, None).step.prices.cost(usage)
    # Its long requests cost more a token than its short ones.
    assert cost > cheaper.base.cost(usage)
    found = audit([row("Write a poem about the sea.", tokens=(150_000, 500))], *ONLY_MEASURED[:-1],
                  "--assume=tier_share=1", "--assume=tier_audits=0")  # fmt: skip
    (model,) = found["models"]
    assert model["cheaper"] == "anthropic/claude-haiku-5-5"
    assert found["bill_usd"] - saved(found, "tiers") == pytest.approx(float(cost))


def test_the_levers_add_up_in_every_scenario(audit: Audit) -> None:
    rows = [line for number in range(12) for line in _conversation(3, 60.0, number=number)]
    rows += [row("Why is the sky blue?") for _ in range(5)]
    found = audit(rows)
    together = sum(one["saving"]["usd"] for one in found["levers"])
    assert found["total"]["usd"] == pytest.approx(together)
    low, high = found["total"]["span"]
    assert low < found["total"]["usd"] < high < found["bill_usd"]
    low, high = found["total"]["interval"]
    assert low < found["total"]["usd"] < high
    # Equal requests are one conversation, and so is a growing one.
    assert found["conversations"] == 13


def test_no_effect_of_a_lever_is_no_saving(audit: Audit) -> None:
    found = audit(
        [row("Write a poem.", tools=[{"type": "function", "function": {"name": "f"}}])],
        "--assume=tier_share=0",
    )
    assert found["total"]["usd"] == 0.0


def test_the_interval_covers_the_true_saving() -> None:
    """Half of the conversations save everything: 95 % intervals hold the share in 90 of 100."""
    held = 0
    for seed in range(100):
        draw, sums = np.random.default_rng(seed), Sums(seed)
        for number in range(60):
            saves = draw.random() < 0.5
            costs = np.ones((3, len(LEVERS) + 1))
            costs[:, 1:] = 0.0 if saves else 1.0
            for _ in range(3):  # requests of one conversation are not independent
                sums.add(str(number), costs)
        interval = sums.saving("exact_cache").interval
        assert interval is not None
        held += interval[0] <= 0.5 * 180 <= interval[1]
    assert held >= 90


BROKEN = {
    "not JSON": b"{not json}",
    "not UTF-8": b'{"a": "\xff"}',
    "a JSON list": b"[1, 2]",
    "deep": b"[" * 100_000,
    "neither a request nor token counts": b'{"hello": 1}',
    "no usage": json.dumps({"request": BODY, "response": {}}).encode(),
    "prompt_tokens is -5": json.dumps(
        {**BODY, "usage": {"prompt_tokens": -5, "completion_tokens": 1}}
    ).encode(),
    "cached tokens of": json.dumps(
        {**BODY, "usage": {**USAGE, "prompt_tokens": 10}}
    ).encode(),
    "completion_tokens is 1.5": json.dumps(
        {**BODY, "usage": {"prompt_tokens": 5, "completion_tokens": 1.5}}
    ).encode(),
    "'mystery-9' is unknown": json.dumps(
        {**BODY, "model": "mystery-9", "usage": USAGE}
    ).encode(),
    "a failed call": json.dumps({**BODY, "response_status": 500, "usage": USAGE}).encode(),
    "a span": b'{"type": "SPAN", "input": "x"}',
    "the gateway's own cache": json.dumps({**BODY, "cache_hit": True, "usage": USAGE}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_line_that_cannot_be_counted_is_named_and_the_rest_is(audit: Audit, what: str) -> None:
    good = _lines([row("Why is the sky blue?")])
    found = audit(good + BROKEN[what] + b"\n" + good, *ONLY_MEASURED)
    assert (found["calls"], found["lines"]) == (2, 3)
    (problem,) = found["problems"]
    assert "JSON" in problem["what"] if what == "deep" else what in problem["what"]
    assert (problem["count"], problem["lines"]) == (1, [2])


@pytest.mark.parametrize("choices", [[5], [{"message": 5}], [None], [[]], ["text"]])
def test_an_answer_that_cannot_be_read_is_billed_and_stored_nowhere(
    audit: Audit, choices: list[Any]
) -> None:
    good = row("Why is the sky blue?")
    odd = {**good, "response": {**good["response"], "choices": choices}}
    found = audit([odd, odd, good])
    assert found["calls"] == 3
    assert saved(found, "exact_cache") == 0.0


def test_an_unknown_model_names_the_fix_and_a_prices_file_mends_it(
    audit: Audit, tmp_path: Path
) -> None:
    rows = [row("Why?"), {**BODY, "model": "mystery-9", "usage": USAGE}]
    (problem,) = audit(rows)["problems"]
    assert "--prices" in problem["fix"]
    assert "/mystery-9: {input:" in problem["fix"]
    prices = tmp_path / "prices.yaml"
    prices.write_text("acme/mystery-9: {input: 10, output: 20}\n", encoding="utf-8")
    found = audit(rows[1:], "--prices", str(prices), "--provider", "acme")
    assert found["bill_usd"] == pytest.approx(1000 * 10e-6 + 200 * 20e-6)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has no line"),
        (b"\xef\xbb\xbf\n\n", "has no line"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is not text"),
        ("{}".encode("utf-16"), "is UTF-16"),
        (b'[{"a": 1}]', "is one JSON array"),
        (gzip.compress(b"", mtime=0), "has no line"),
        (b"{}\n{}\n", "no call can be priced in 2 lines"),
        (b"\x1f\x8bnot gzip", "cannot be unpacked: the gzip data are damaged or end early"),
    ],
)
def test_a_file_that_is_no_log_is_refused_with_a_fix(
    audit: Audit, content: bytes, says: str
) -> None:
    found = audit(content)
    assert found["status"] == 2
    assert says in found["error"]["message"]
    assert found["error"]["fix"]


def test_a_missing_file_and_bad_options_are_usage_errors(
    folder: Path, audit: Audit, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = ["savings", "--requests", str(folder / "gone"), "--state", str(folder), "--json"]
    assert main(gone) == 2
    assert "gone" in json.loads(capsys.readouterr().out)["error"]["message"]
    for given in ("tier_share=2", "tier_share=nan", "tier_share", "colour=1"):
        found = audit([row("Why?")], f"--assume={given}")
        assert (found["status"], found["error"]["field"]) == (2, "--assume")
    assert audit([row("Why?")], "--html", "/nowhere/page.html")["error"]["field"] == "--html"


def test_byte_order_mark_line_ends_and_gzip_change_nothing(audit: Audit) -> None:
    plain = _lines([row("Why is the sky blue?"), row("And the sea?")])
    expected = audit(plain)
    windows = b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n") + b"\r\n"
    for content in (windows, gzip.compress(plain), plain.rstrip(b"\n")):
        assert audit(content) == expected


def test_a_gzip_log_that_ends_early_is_counted_as_far_as_it_goes(audit: Audit) -> None:
    draw = random.Random(0)  # noqa: S311  # text that does not compress
    rows = [row(f"Why {draw.random()}?") for _ in range(2000)]
    packed = gzip.compress(_lines(rows))
    found = audit(packed[: len(packed) // 2])
    assert 100 < found["calls"] < 2000
    assert any("end early" in problem["what"] for problem in found["problems"])


def test_a_context_of_a_megabyte_and_text_in_any_script_are_audited(audit: Audit) -> None:
    huge = FACTS * 3000 + "\N{SNOWMAN}\U0001f600 \u4f60\u597d " * 1000
    parts = [f"<context>{huge}</context>", "What is kept?"]
    odd = row([{"role": "user", "content": [{"type": "text", "text": text} for text in parts]}])
    found = audit([odd, row("\ud83d half"), row(""), row([])])
    assert found["calls"] == 4
    assert {line for problem in found["problems"] for line in problem["lines"]} >= {2, 4}


def test_a_line_too_long_to_read_is_skipped(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_LINE_BYTES == 64 << 20
    monkeypatch.setattr("serving.savings.log_file.MOST_LINE_BYTES", 4096)
    found = audit(_lines([row("x" * 100_000), row("Why?")]))
    assert found["calls"] == 1
    assert found["problems"][0]["lines"] == [1]


def test_the_text_and_the_page_show_levers_assumptions_and_problems(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = folder / "page.jsonl", folder / "page.html"
    bad = {**BODY, "model": "<b>mystery", "usage": USAGE}
    rows = [row(f"Why is number {n} odd?") for n in range(20)]
    file.write_bytes(_lines([*rows, bad]))
    given = ["savings", "--requests", str(file), "--state", str(folder), "--html", str(page)]
    assert main(given) == 0
    shown = capsys.readouterr().out
    html = page.read_text(encoding="utf-8")
    for name in ("exact cache", "cheaper tiers", "tier_share", "MMLU by subject", "--prices"):
        assert name in shown
        assert name in html
    assert "<b>mystery" in shown
    assert "<b>mystery" not in html
    assert html.count("<svg ") == 2
    assert "<script" not in html
