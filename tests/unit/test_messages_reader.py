"""A Message Batch is read piece by piece, and each fault names its request."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.messages_reader import MessagesReader


def request(name: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Was heißt \u2028 'eng'?"}]
    params = {"model": "auto", "max_tokens": 64, "temperature": 0.5, "messages": messages}
    return {"custom_id": name, "params": {**params, **more}}


def read(data: bytes, size: int = 7, longest: int = 10_000, most: int = 100) -> list[Any]:
    reader = MessagesReader(longest, most)
    lines = b"".join(reader.feed(data[n : n + size]) for n in range(0, len(data), size))
    return [json.loads(line) for line in (lines + reader.end()).splitlines()]


def body(*requests: Any, **more: Any) -> bytes:
    return json.dumps({"requests": list(requests), **more}, ensure_ascii=False).encode()


@given(st.integers(1, 400))
def test_pieces_of_any_size_are_the_same(size: int) -> None:
    found = read(body(request("a"), request("b", system="Be brief.")), size)
    assert [line["custom_id"] for line in found] == ["a", "b"]
    assert {line["url"] for line in found} == {"/v1/chat/completions"}
    assert found[0]["body"] == request("a")["params"]
    assert found[1]["body"]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert found[0]["body"]["temperature"] == 0.5


_ESCAPED = (r"\ud83d", r"\ude00", r"\uDBFF\uDFFF", "a", r"\\", r"\n", r"\u0041", r"\\\ud83d", "é")


@given(st.lists(st.sampled_from(_ESCAPED), max_size=6), st.integers(1, 9))
def test_half_a_character_is_found_in_pieces_of_any_size(parts: list[str], size: int) -> None:
    text = "".join(parts)
    meant = json.loads(f'"{text}"')
    written = json.dumps({"requests": [request("a")]}).replace("eng", text).encode()
    if any("\ud800" <= each <= "\udfff" for each in meant):
        with pytest.raises(InvalidRequest, match="unpaired surrogate"):
            read(written, size)
    else:
        (line,) = read(written, size)
        assert line["body"]["messages"][0]["content"].endswith(f"'{meant}'?")


@pytest.mark.parametrize(
    "data",
    [
        b'{"requests": [], "requests": []}',
        body(request("a")).replace(b'"custom_id"', b'"custom_id": "b", "custom_id"'),
        body(request("a")).replace(b'"model"', b'"model": "b", "model"'),
        body(request("a")).replace(b'"role"', b'"role": "user", "role"'),
    ],
)
def test_a_key_that_is_written_twice_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="twice in one object"):
        read(data)


def test_a_malformed_body_is_not_quoted() -> None:
    with pytest.raises(InvalidRequest, match=r"breaks in or after requests\.1") as caught:
        read(body(request("a")) + b'{"secret": 5}')
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("data", "field", "text"),
    [
        (b"", None, "ends early"),
        (b'{"requests": [', None, "ends early"),
        (b"{oops", None, "not JSON"),
        (b"[]", None, "not an object"),
        (b"5", None, "not an object"),
        (b"{}", "requests", "missing"),
        (b'{"requests": {}}', "requests", "missing"),
        (b'{"requests": 5}', "requests", "missing"),
        (body(), "requests", "empty"),
        (body(5), "requests.0", "not an object"),
        (body([]), "requests.0", "not an object"),
        (body(request("a"), {"params": {}}), "requests.1.custom_id", "None"),
        (body(request("a b")), "requests.0.custom_id", "'a b'"),
        (body(request("a" * 65)), "requests.0.custom_id", "aaa"),
        (body(request("a"), request("a")), "requests.1.custom_id", "earlier"),
        (body({"custom_id": "a"}), "requests.0.params", "an object"),
        (body(request("a", max_tokens=None)), "requests.0.params.max_tokens", "missing"),
        (body(request("a", thinking={"type": "x"})), "requests.0.params.thinking", "thinking"),
        (body({**request("a"), "extra": 1}), "requests.0.extra", "'extra'"),
        (body(request("a"), metadata={}), "metadata", "'metadata'"),
        (body(*(request(f"k{n}") for n in range(101))), "requests", "more than 100"),
        (body(request("a", system="x" * 20_000)), "requests.0", "10000 bytes"),
    ],
)
def test_a_fault_names_its_request(data: bytes, field: str | None, text: str) -> None:
    with pytest.raises((InvalidRequest, UnsupportedParameter)) as caught:
        read(data)
    assert caught.value.field == field
    assert text in caught.value.message


@pytest.mark.parametrize("opening", [b"[", b'{"a": ', b'[{"a": ['])
@pytest.mark.parametrize("size", [1000, 10**6])
def test_a_body_that_is_nested_deeply_is_refused_before_it_takes_memory(
    opening: bytes, size: int
) -> None:
    data = b'{"requests": [' + opening * 200_000
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="levels deep") as caught:
            read(data, size, 10**6)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    assert caught.value.fix
