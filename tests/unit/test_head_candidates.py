"""Candidates: their probabilities, their bytes, and that no other bytes are taken for one."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts.errors import EngineFailure, HeadRefused
from serving.evidence.heads.arrays import DamagedArrays, pack, unpack
from serving.evidence.heads.candidate import (
    CURVE_POINTS,
    KINDS,
    MAX_LABELS,
    Candidate,
    HeadInputs,
    Kind,
    Provenance,
    content_digest,
    feature_count,
    parse_candidate,
)

from .head_kit import LABELS, MODEL, SCOPE, inputs, targets


def candidate(kind: Kind = "head", labels: tuple[str, ...] = LABELS, **changes: Any) -> Candidate:
    draw = np.random.default_rng(3)
    count = len(labels)
    fields: dict[str, Any] = {
        "kind": kind,
        "labels": labels,
        "provenance": Provenance(SCOPE.id, "weather", "sha256:spec", "encoder-1", MODEL, "a", 9),
        "classes": np.arange(count, dtype=np.int16),
        "weights": draw.normal(size=(count, feature_count(kind, count))).astype(np.float32),
        "bias": draw.normal(size=count).astype(np.float32),
        "curve": np.full((CURVE_POINTS, 2), 0.5, np.float32),
    }
    return Candidate(**{**fields, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_sum_to_one_in_batches_and_alone(kind: Kind) -> None:
    wanted = targets(40)
    found = candidate(kind).probabilities(inputs(wanted))
    assert found.shape == (40, 3)
    assert found.sum(axis=1) == pytest.approx(1.0)
    many = inputs(wanted)
    for n in (0, 39):
        one = HeadInputs(
            many.vectors[n : n + 1],
            many.chars[n : n + 1],
            many.log_probabilities[n : n + 1],  # type: ignore[index]
        )
        assert candidate(kind).probabilities(one)[0] == pytest.approx(found[n], abs=1e-5)


def test_a_candidate_is_named_by_its_kind_and_version() -> None:
    assert candidate("recalibrated").named(4) == "model@4"
    assert candidate("both").named(4) == "both@4"


def test_a_label_without_examples_has_probability_zero() -> None:
    classes = np.array([0, 2], np.int16)
    found = candidate(
        classes=classes, weights=candidate().weights[:2], bias=candidate().bias[:2]
    ).probabilities(inputs(targets(5)))
    assert (found[:, 1] == 0.0).all()
    assert found.sum(axis=1) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_or_misshaped_input_is_refused(kind: Kind) -> None:
    with pytest.raises(ValueError, match="need"):
        candidate(kind).probabilities(HeadInputs(chars=np.array([3], np.int32)))
    wrong = HeadInputs(
        np.zeros((1, 10), np.float32), np.array([3], np.int32), np.zeros((1, 2), np.float32)
    )
    with pytest.raises(ValueError, match="have the shape"):
        candidate(kind).probabilities(wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_input_that_is_not_finite_gets_no_label(value: float) -> None:
    given = inputs([0])
    given.vectors[0, 5] = value  # type: ignore[index]
    with pytest.raises(EngineFailure, match="not finite"):
        candidate().probabilities(given)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_give_the_candidate_again(kind: Kind) -> None:
    made = candidate(kind)
    read = parse_candidate(made.content, made.digest)
    assert read.content == made.content
    assert read.digest == made.digest
    assert (read.weights == made.weights).all()
    assert read.provenance == made.provenance


def test_every_flipped_byte_is_refused() -> None:
    labels = ("a", "b")
    small = candidate("recalibrated", labels)
    content = small.content
    for n in range(len(content)):
        changed = content[:n] + bytes([content[n] ^ 1]) + content[n + 1 :]
        with pytest.raises(HeadRefused, match="another digest"):
            parse_candidate(changed, small.digest)


@given(st.data())
def test_other_bytes_with_their_own_digest_are_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(candidate("recalibrated", ("a", "b")).content)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    for changed in (bytes(content), bytes(content[:cut]), bytes(content) + b"\x00"):
        try:
            read = parse_candidate(changed, content_digest(changed))
        except HeadRefused:
            continue
        assert np.isfinite(read.weights).all()
        assert read.content == changed


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weights": np.zeros((3, 384), np.float32)}, "weights"),
        ({"weights": np.zeros((2, 385), np.float32)}, "weights"),
        ({"weights": np.zeros((3, 385), np.float64)}, "weights"),
        ({"weights": np.full((3, 385), np.nan, np.float32)}, "not finite"),
        ({"bias": np.array([0, np.inf, 0], np.float32)}, "not finite"),
        ({"bias": np.zeros(4, np.float32)}, "bias"),
        ({"classes": np.array([0, 1, 3], np.int16)}, "increasing"),
        ({"classes": np.array([0, 0, 1], np.int16)}, "increasing"),
        ({"classes": np.array([-1, 0, 1], np.int16)}, "increasing"),
        ({"classes": np.array([0, 1, 2], np.int32)}, "classes"),
        ({"curve": np.full((CURVE_POINTS, 2), 1.5, np.float32)}, "outside"),
        ({"curve": np.zeros((3, 2), np.float32)}, "curve"),
        ({"labels": ("a", "b", "a")}, "distinct"),
        ({"labels": ("a",)}, "1 labels"),
    ],
)
def test_wrong_shapes_types_and_values_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(HeadRefused, match=reason):
        candidate(**changes)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(HeadRefused, match="'other'"):
        replace(candidate(), kind="other")


def test_too_many_labels_are_refused() -> None:
    most = tuple(f"label {n}" for n in range(MAX_LABELS))
    candidate(labels=most)
    with pytest.raises(HeadRefused, match=str(MAX_LABELS)):
        candidate(labels=(*most, "one more"))


def test_a_stored_head_that_was_not_finite_is_refused() -> None:
    made = candidate("recalibrated", ("a", "b"))
    header = unpack(made.content).content
    arrays = {**unpack(made.content).arrays, "bias": np.array([np.nan, 0], np.float32)}
    content = pack(header, arrays)
    with pytest.raises(HeadRefused, match="not finite"):
        parse_candidate(content, content_digest(content))


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"labels": ["a", 1]},
        {"provenance": {}},
        {"provenance": {**dict.fromkeys(Provenance.__slots__, ""), "rows": True}},
        {"kind": ["head"]},
    ],
)
def test_another_header_is_refused(change: dict[str, Any]) -> None:
    packed = unpack(candidate("recalibrated", ("a", "b")).content)
    content = pack({**packed.content, **change}, packed.arrays)
    with pytest.raises(HeadRefused):
        parse_candidate(content, content_digest(content))


def test_a_head_of_many_megabytes_is_refused_before_it_is_read() -> None:
    content = b"\x00" * (5 * 2**20)
    with pytest.raises(HeadRefused, match="the limit is"):
        parse_candidate(content, content_digest(content))


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
    st.dictionaries(st.text(min_size=1, max_size=5), st.lists(st.floats(allow_nan=False,
                    allow_infinity=False, width=32), max_size=4), max_size=3),
)  # fmt: skip
def test_arrays_survive_packing(content: dict[str, Any], lists: dict[str, list[float]]) -> None:
    arrays = {name: np.array(values, np.float32) for name, values in lists.items()}
    packed = unpack(pack(content, arrays))
    assert packed.content == content
    assert {name: array.tolist() for name, array in packed.arrays.items()} == {
        name: array.tolist() for name, array in arrays.items()
    }


@pytest.mark.parametrize(
    "header",
    [
        b'{"arrays":[],"content":{}} ',
        b'{"arrays":[],"content":{},"content":{}}',
        b'{"arrays":[],"content":[]}',
        b'{"arrays":[{"dtype":"|O","name":"a","shape":[1]}],"content":{}}',
        b'{"arrays":[{"dtype":"<f4","name":"a","shape":[-1]}],"content":{}}',
        b'{"arrays":[{"dtype":"<f4","name":"a","shape":[true]}],"content":{}}',
        b'{"arrays":[{"dtype":"<f4","name":"a","shape":[99999999999999]}],"content":{}}',
        b'{"arrays":[{"dtype":"<f4","name":"a","shape":[1,1,1]}],"content":{}}',
        b'{"arrays":[{"dtype":"<f4","name":1,"shape":[0]}],"content":{}}',
        b'{"arrays":[1],"content":{}}',
        b'{"content":{}}',
        b"[" * 10_000,
        b"NaN",
        b"\xff\xfe",
    ],
)
def test_another_form_of_the_header_is_refused(header: bytes) -> None:
    whole = pack({}, {})
    start = len(whole) - len(b'{"arrays":[],"content":{}}') - 4
    with pytest.raises(DamagedArrays):
        unpack(whole[:start] + len(header).to_bytes(4, "little") + header)


def test_objects_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match="dimensions"):
        pack({}, {"a": np.array([{}])})


def test_serving_a_head_imports_no_scikit_learn() -> None:
    code = (
        "import sys, json\n"
        "import serving.evidence.heads.head_directory, serving.evidence.heads.trainer\n"
        "from tests.unit.test_head_candidates import candidate, inputs\n"
        "candidate().probabilities(inputs([0]))\n"
        "print(json.dumps([n for n in sys.modules if n.split('.')[0] in ('sklearn', 'joblib')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_candidate_is_named_by_its_content() -> None:
    assert candidate().digest == candidate().digest
    assert candidate().digest != candidate("head", (*LABELS[:2], "warm")).digest
    other = replace(candidate().provenance, scope="another")
    assert candidate().digest != candidate(provenance=other).digest
