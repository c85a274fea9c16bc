"""The streams of the cache's benchmark: what repeats, and what may be cached at all."""

from collections import Counter

import pytest

from benchmarks.cache_flood import Flood
from benchmarks.cache_lookups import time_lookups
from benchmarks.cache_replay import meaning_stream, questions, repeating_stream, zipf_stream
from benchmarks.cache_similar import time_namespaces, time_similar
from serving.cache.cacheable import unfit_chat
from serving.cache.key import normalised
from serving.pipeline.read import read_chat


@pytest.mark.parametrize("stream", [zipf_stream(400, 200), repeating_stream(400)])
def test_every_chat_may_be_cached(stream: list[tuple[str, str]]) -> None:
    for _, text in stream:
        body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
        assert unfit_chat(read_chat(body, 1), "exact_only") is None, text


def test_questions_are_distinct() -> None:
    assert len(set(questions(500, 1)) | set(questions(500, 2))) == 1000


def test_what_repeats_is_equal_to_an_earlier_chat_and_a_near_miss_is_not() -> None:
    seen: set[str] = set()
    kinds: Counter[str] = Counter()
    for kind, text in repeating_stream(2000):
        kinds[kind] += 1
        repeats = normalised(text) in seen
        assert repeats is (kind in ("word for word", "outer white space")), (kind, text)
        if kind in ("new", "near miss"):
            seen.add(normalised(text))
    assert kinds["new"] > 700
    for kind in ("word for word", "outer white space", "case"):
        assert 150 < kinds[kind] < 250


def test_frequent_texts_of_a_zipf_stream_repeat() -> None:
    kinds = Counter(kind for kind, _ in zipf_stream(2000, 1000))
    assert kinds["word for word"] > kinds["new"]


def test_by_meaning_a_tenth_repeats_in_each_way_and_three_tenths_nearly() -> None:
    stream = meaning_stream(1000)
    kinds = Counter(kind for kind, _ in stream)
    assert kinds == {
        "new": 400, "near miss": 300, "paraphrase": 100, "word for word": 100,
        "outer white space": 100,
    }  # fmt: skip
    seen: set[str] = set()
    for kind, text in stream:
        if kind == "new":
            seen.add(normalised(text))
        assert (normalised(text) in seen) is (kind not in ("paraphrase", "near miss"))


def test_lookups_by_meaning_among_many_questions_find_theirs() -> None:
    found = time_similar(2000, 40).document()
    assert (found["entries"], found["found"], found["asked"]) == (2000, 40, 40)
    assert found["miss_p50_ms"] <= found["miss_p99_ms"]


def test_lookups_by_key_and_of_another_tenant_are_timed() -> None:
    assert time_lookups(600, 20).document()["entries"] == 600
    found = time_namespaces(600, 20).document()
    assert found["difference_low_ms"] <= found["difference_ms"] <= found["difference_high_ms"]


def test_a_floods_delay_is_told_by_window_from_the_time_alone() -> None:
    alone = [[0.010, 0.011, 0.012], [0.010, 0.012, 0.014]]
    slow = [[value + 0.005 for value in window] for window in alone]
    times = {("miss", "alone"): alone, ("miss", "flooding"): slow}
    found = Flood(times, {"alone": 0, "flooding": 60}, {"alone": 2.0, "flooding": 3.0}).document()  # type: ignore[arg-type]
    by_arm = {row["arm"]: row for row in found}
    assert by_arm["alone"]["difference_ms"] == 0
    flooded = by_arm["flooding"]
    assert flooded["difference_ms"] == pytest.approx(5)
    assert flooded["difference_low_ms"] == pytest.approx(5)
    assert flooded["difference_low_ms"] <= flooded["difference_high_ms"]
    assert (flooded["chats"], flooded["flood_per_s"]) == (6, 20.0)
    assert flooded["p99_ms"] == pytest.approx(19)
