"""The evidence benchmark, small: its stream, its runs, and its figures."""

import json
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from benchmarks import evidence_goals as goals
from benchmarks.evidence_outputs import recorded_where_it_fits
from benchmarks.evidence_streams import ORDERS, Order, Source, relabelled, stream
from benchmarks.evidence_texts import LABELS, grammar_texts
from serving.contracts.errors import InvalidArgument


@pytest.fixture(scope="module")
def source() -> Source:
    """Return vectors of four labels, of which a head confuses some."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 1200)
    vectors = np.eye(16)[labels] + rng.normal(0.0, 0.4, (1200, 16))
    return Source("made", vectors, labels.astype(np.int64), 4)


def test_the_shipped_texts_are_distinct_and_have_every_label() -> None:
    found = grammar_texts(4000)
    assert len({one.text for one in found}) == 4000
    counts = {label: sum(one.label == label for one in found) for label in LABELS}
    assert min(counts.values()) > 300
    assert found[:50] == grammar_texts(4000)[:50]


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_keeps_the_inputs_and_the_noise(source: Source, order: Order) -> None:
    found = stream(source, order, np.random.default_rng(2))
    assert np.bincount(found.labels).tolist() == np.bincount(source.labels).tolist()
    assert 0.015 < (found.reference != found.labels).mean() < 0.045
    same = float((found.labels[1:] == found.labels[:-1]).mean())
    assert (same > 0.9) == (order == "blocks")


def test_shuffled_inputs_earn_a_claim_and_keep_it(source: Source) -> None:
    found = goals.kept_target(source, "shuffled", 4, 0.15)
    assert found["runs_above_target"].count == 0
    assert found["earned"].count == 4
    assert found["inputs_until_earned"]["p50"] < 600


def test_blocks_earn_nothing_that_is_broken(source: Source) -> None:
    assert goals.kept_target(source, "blocks", 4, 0.15)["runs_above_target"].count == 0


def test_a_shift_is_caught(source: Source) -> None:
    shuffled = stream(source, "shuffled", np.random.default_rng(3))
    changed = relabelled(shuffled, 600, 0.3)
    assert (changed.labels[:600] == shuffled.labels[:600]).all()
    assert 0.15 < (changed.labels[600:] != shuffled.labels[600:]).mean() < 0.4
    found = goals.shifted(source, 3, 0.15)
    assert found["held_at_the_shift"] == 3


def test_stationary_streams_are_rarely_suspended() -> None:
    assert goals.false_suspensions(0.15, 20, 1000).count <= 2


def test_audits_at_the_floor_cost_their_share() -> None:
    assert goals.audit_cost_share(50_000) == pytest.approx(0.02, abs=0.003)


def test_the_request_path_is_measured() -> None:
    found = goals.request_path_us(100)
    assert 0.0 < found["p10"] <= found["p90"]  # type: ignore[operator]


def test_quantiles_of_what_never_happened_are_none() -> None:
    assert goals.quantiles([np.inf, np.inf, 1.0]) == {"p10": 1.0, "p50": None, "p90": None}
    assert goals.quantiles([])["p50"] is None


def test_the_best_of_a_fit_is_tested(source: Source) -> None:
    """Vectors without the label: only the local model's outputs can earn a claim."""
    rng = np.random.default_rng(4)
    outputs = np.log(0.1 + 0.6 * np.eye(4)[source.labels])
    blind = Source("blind", rng.normal(size=(1200, 16)), source.labels, 4)
    assert goals.kept_target(blind, "shuffled", 2, 0.15)["earned"].count == 0
    sighted = replace(blind, outputs=outputs)
    found = goals.kept_target(sighted, "shuffled", 2, 0.15)
    assert (found["earned"].count, found["runs_above_target"].count) == (2, 0)


class _Stack(BaseHTTPRequestHandler):
    """Answers `topic` with two labels, the second text of a request with an error."""

    fails = False

    def do_POST(self) -> None:
        inputs = json.loads(self.rfile.read(int(self.headers["content-length"])))["inputs"]
        answer = {"model": "m", "label_probabilities": {"no": 0.25, "yes": 0.75}}
        found: list[dict[str, Any]] = [{"answer": answer, "error": None} for _ in inputs]
        if self.fails and len(found) > 1:
            found[1] = {"answer": None, "error": {"message": "the engine ended"}}
        body = json.dumps({"results": found}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Keep the test's output short."""


@pytest.fixture
def stack() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Stack) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_outputs_are_recorded_once(stack: str, tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(20)]
    found = recorded_where_it_fits(stack, "topic", tmp_path, texts, ["yes", "no"])
    assert found is not None
    assert found.shape == (20, 2)
    assert np.exp(found[0]).tolist() == pytest.approx([0.75, 0.25])
    again = recorded_where_it_fits(stack, "topic", tmp_path, texts, ["yes", "no"])
    assert again is not None
    assert (again == found).all()
    assert len(list(tmp_path.rglob("*.npy"))) == 1


def test_texts_with_other_labels_are_not_sent_to_the_task(stack: str, tmp_path: Path) -> None:
    assert recorded_where_it_fits(stack, "topic", tmp_path, ["a", "b"], ["yes", "maybe"]) is None


def test_an_input_without_an_answer_ends_the_recording(
    stack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Stack, "fails", True)
    with pytest.raises(InvalidArgument, match="the engine ended"):
        recorded_where_it_fits(stack, "topic", tmp_path, ["a", "b"], ["yes", "no"])
    assert not list(tmp_path.rglob("*.npy"))
