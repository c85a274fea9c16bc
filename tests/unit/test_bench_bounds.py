"""The comparison of answers with and without output bounds."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.bounds import Pair, saving

from ..provider.server import ProviderServer


def test_the_saving_is_of_tokens_and_has_bounds() -> None:
    pairs = [Pair(f"p{i}", 100 + i, "stop", 50, "length" if i % 4 == 0 else "stop")
             for i in range(40)]  # fmt: skip
    found = saving(pairs)
    assert found.unbounded_tokens == sum(100 + i for i in range(40))
    assert found.saved == pytest.approx(1 - 2000 / found.unbounded_tokens)
    assert found.saved_lower <= found.saved <= found.saved_upper
    assert (found.cut, found.unbounded_cut) == (0.25, 0.0)
    with pytest.raises(ValueError, match="nothing"):
        saving([])


def test_a_model_is_asked_twice_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, record = tmp_path / "prompts.jsonl", tmp_path / "record.jsonl"
    prompts.write_text('{"text": "Tell me about tides."}\n{"text": "And about the moon."}\n')
    with ProviderServer() as provider:
        provider.script.answer = lambda seen: "word " * 1000
        status = main([
            "bounds", "--json", "--base-url", f"{provider.url}/v1", "--model", "m",
            "--prompts", str(prompts), "--record", str(record), "--tier", "economy",
            "--concurrency", "1",
        ])  # fmt: skip
        sent = [seen.body for seen in provider.script.seen]
    assert status == 0
    assert [body["max_tokens"] for body in sent] == [4096, 512, 4096, 512]
    assert "briefly" in sent[1]["messages"][0]["content"]
    document = json.loads(capsys.readouterr().out)
    assert (document["prompts"], document["cut"], document["unbounded_cut"]) == (2, 1.0, 0.0)
    assert document["saved"] == pytest.approx(1 - 512 / 1250)
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    assert [row["bounded_finish"] for row in rows] == ["length", "length"]
