"""Fitting: reproducible, better than its start, and within its bounds."""

# ruff: noqa: ASYNC110, ASYNC240  # they wait for a process that tells nothing

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from serving.contracts.errors import FitFailed
from serving.contracts.head_settings import HeadSettings
from serving.embedding.encoder import Encoder
from serving.embedding.model_file import ensure_model
from serving.evidence.heads.candidate import HeadInputs, HeadScope
from serving.evidence.heads.examples import Example, FitRows
from serving.evidence.heads.fit_call import fit_in_process
from serving.evidence.heads.fit_process import FAILED
from serving.evidence.heads.fitting import (
    fit_candidate,
    fit_candidates,
    risk_curve,
)

from .blocked_loop import LoopWatch
from .head_kit import (
    LABELS,
    MODEL,
    SCOPE,
    SETTINGS,
    accuracy,
    examples,
    model_logs,
    rows,
    targets,
    vectors,
)
from .made_encoder import encoder_state

TEXTS = {
    "transport": (
        "The train to the coast left twenty minutes late.",
        "Which bus stops near the harbour?",
        "My flight was cancelled because of fog.",
        "The tram line is closed for repairs until May.",
        "She missed the last ferry home.",
        "A new railway bridge was opened this spring.",
        "The taxi driver took a longer road.",
        "Tickets for the night train are sold out.",
        "Where can I park a bicycle at the station?",
        "The airport added a second runway.",
    ),
    "cooking": (
        "Stir the onions until they are golden.",
        "How long do I boil an egg?",
        "The soup needs more salt and a little lemon.",
        "Bake the bread for forty minutes.",
        "Her recipe for plum cake uses cinnamon.",
        "Chop the carrots and fry them in butter.",
        "The rice was overcooked and sticky.",
        "Let the dough rest in a warm place.",
        "Which cheese melts best on a pizza?",
        "Roast the chicken with garlic and thyme.",
    ),
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(ensure_model(encoder_state()))


def embedded(encoder: Encoder) -> list[Example]:
    labelled = [(label, text) for label, texts in TEXTS.items() for text in texts]
    found = encoder.encode([text for _, text in labelled])
    return [
        Example(label, vector, len(text))
        for (label, text), vector in zip(labelled, found, strict=True)
    ]


def test_real_texts_are_told_apart(encoder: Encoder) -> None:
    scope = HeadScope("acme", "subject", "sha256:spec")
    fitted = fit_candidate("head", FitRows.of(scope, tuple(TEXTS), "e", "", embedded(encoder)))
    asked = ("The metro was crowded this morning.", "Add the flour slowly to the batter.")
    given = HeadInputs(encoder.encode(asked), np.array([len(t) for t in asked], np.int32))
    assert fitted.probabilities(given).argmax(axis=1).tolist() == [0, 1]


def test_equal_rows_give_equal_heads_in_any_order() -> None:
    given = examples(80)
    first = fit_candidate("head", FitRows.of(SCOPE, LABELS, "e", "", given))
    again = fit_candidate("head", FitRows.of(SCOPE, LABELS, "e", "", given[::-1]))
    assert again.content == first.content
    fewer = fit_candidate("head", FitRows.of(SCOPE, LABELS, "e", "", given[:-1]))
    assert fewer.digest != first.digest


def test_another_scope_with_equal_rows_has_another_head() -> None:
    other = HeadScope("other", "weather", "sha256:spec")
    assert fit_candidate("head", rows()).digest != fit_candidate("head", rows(scope=other)).digest


def test_a_head_learns_and_the_model_adds_to_it() -> None:
    given = rows(240, model=MODEL)
    fitted = {candidate.kind: candidate for candidate in fit_candidates(given)}
    assert sorted(fitted) == ["both", "head", "recalibrated"]
    wanted = targets(300, seed=7)
    own = float((model_logs(wanted, 7).argmax(axis=1) == np.array(wanted)).mean())
    found = {kind: accuracy(candidate) for kind, candidate in fitted.items()}
    assert found["recalibrated"] > own + 0.1
    assert found["head"] > 0.8
    assert found["both"] >= found["head"]
    assert fitted["both"].provenance.model == MODEL
    assert fitted["head"].provenance.model == ""


def test_rows_without_the_model_fit_a_head_alone() -> None:
    assert [candidate.kind for candidate in fit_candidates(rows())] == ["head"]


def test_probabilities_of_another_model_are_left_out() -> None:
    mixed = examples(30, 0, "sha256:old") + examples(30, 1, MODEL)
    given = FitRows.of(SCOPE, LABELS, "e", MODEL, mixed)
    assert len(given) == 60
    assert len(given.with_model()) == 30


def test_the_curve_promises_what_unseen_texts_keep() -> None:
    # Less noise would make every confidence 1.
    known = targets(400)
    given = [
        Example(LABELS[target], vector, 30)
        for target, vector in zip(known, vectors(known, noise=0.3), strict=True)
    ]
    fitted = fit_candidate("head", FitRows.of(SCOPE, LABELS, "e", "", given))
    assert (np.diff(fitted.curve[:, 0]) <= 0).all()
    wanted = np.array(targets(2000, seed=5))
    found = fitted.probabilities(
        HeadInputs(vectors(wanted.tolist(), 5, noise=0.3), np.full(2000, 30, np.int32))
    )
    for coverage in (60, 80, 100):
        threshold, error = fitted.curve[coverage - 1]
        accepted = found.max(axis=1) >= threshold
        assert accepted.mean() == pytest.approx(coverage / 100, abs=0.1)
        wrong = (found.argmax(axis=1) != wanted)[accepted].mean()
        assert wrong == pytest.approx(error, abs=0.05)


def test_the_risk_curve_of_four_rows() -> None:
    scores = np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]]))
    wrong = (scores.argmax(axis=1) != [0, 0, 0, 1]).astype(np.float64)
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    curve = risk_curve(softmax.max(axis=1), wrong)
    assert curve[[24, 49, 74, 99]] == pytest.approx(
        np.array([[0.9, 0.0], [0.8, 1 / 2], [0.7, 1 / 3], [0.6, 1 / 4]])
    )


def test_a_label_that_no_example_has_is_never_answered() -> None:
    two = [example for example in examples(90) if example.label != "mild"]
    fitted = fit_candidate("head", FitRows.of(SCOPE, LABELS, "e", "", two))
    assert fitted.classes.tolist() == [0, 2]


def test_a_label_with_one_example_does_not_end_the_fit() -> None:
    given = [example for example in examples(90) if example.label != "mild"]
    given += [example for example in examples(90, 3) if example.label == "mild"][:1]
    assert fit_candidate("head", FitRows.of(SCOPE, LABELS, "e", "", given)).classes.tolist() == [
        0,
        1,
        2,
    ]


@pytest.mark.parametrize(
    "given",
    [
        [],
        examples(19),
        [example for example in examples(90) if example.label == "hot"],
    ],
    ids=["none", "19", "one label"],
)
def test_too_few_examples_are_refused(given: list[Example]) -> None:
    with pytest.raises(FitFailed, match="too few"):
        fit_candidate("head", FitRows.of(SCOPE, LABELS, "e", "", given))


def test_equal_vectors_count_once_and_the_first_label_stays() -> None:
    given = examples(30)
    again = [Example("hot", example.vector, example.chars) for example in given]
    found = FitRows.of(SCOPE, LABELS, "e", "", given + again)
    assert len(found) == 30
    assert found.digest() == FitRows.of(SCOPE, LABELS, "e", "", given).digest()


def test_rows_survive_their_way_to_the_process() -> None:
    given = rows(40, model=MODEL)
    assert FitRows.unpacked(given.packed()).packed() == given.packed()


async def test_the_process_gives_the_same_heads_and_does_not_block_the_loop() -> None:
    given = rows(60, model=MODEL)
    with LoopWatch(bound_s=1.0) as watch:
        found = await fit_in_process(given, SETTINGS)
        again = await fit_in_process(given, SETTINGS)
    assert watch.blocked == []
    assert [c.kind for c in found] == ["both", "head", "recalibrated"]
    assert [c.content for c in found] == [c.content for c in again]


async def test_a_fit_that_takes_too_long_is_ended() -> None:
    # Importing scikit-learn alone takes longer.
    quick = HeadSettings.model_construct(**{**SETTINGS.model_dump(), "max_fit_s": 0.2})
    before = processes()
    with pytest.raises(FitFailed, match=r"more than 0\.2 s"):
        await fit_in_process(rows(), quick)
    assert processes() <= before


def test_a_bound_that_is_not_a_whole_number_of_seconds_is_read() -> None:
    command = [sys.executable, "-m", "serving.evidence.heads.fit_process", "90.5", "4096"]
    done = subprocess.run(command, input=b"no rows", capture_output=True, check=False)
    # Its rows were read: they are what it ends with.
    assert done.returncode == FAILED, done.stderr.decode()


async def test_a_fit_that_needs_too_much_memory_is_ended() -> None:
    small = HeadSettings.model_construct(**{**SETTINGS.model_dump(), "max_fit_mib": 128})
    with pytest.raises(FitFailed, match="128 MiB"):
        await fit_in_process(rows(), small)


async def test_cancelling_ends_the_process() -> None:
    before = processes()
    task = asyncio.create_task(fit_in_process(rows(), SETTINGS))
    while processes() <= before:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes() <= before


async def test_too_few_examples_are_told_from_the_process() -> None:
    with pytest.raises(FitFailed, match="3 examples are too few"):
        await fit_in_process(rows(3), SETTINGS)


async def test_the_process_sees_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret-marker")
    before = processes()
    task = asyncio.create_task(fit_in_process(rows(), SETTINGS))
    while not (new := processes() - before):
        await asyncio.sleep(0.01)
    (child,) = new
    environment = Path(f"/proc/{child}/environ")
    while b"OPENBLAS_NUM_THREADS" not in environment.read_bytes():
        await asyncio.sleep(0.01)
    assert b"secret-marker" not in environment.read_bytes()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def processes() -> set[int]:
    return {child.pid for child in psutil.Process(os.getpid()).children()}
