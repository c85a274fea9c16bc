"""Files of JSON Lines whose texts hold characters that Python takes for line ends."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cli import main
from serving.contracts.file_lines import file_lines, lines_of

from .checkpoints import write

ENDS = "\u2028 \u2029 \u0085 and so on"


@given(st.lists(st.text(st.characters(exclude_characters="\r\n")), min_size=1))
def test_only_line_feeds_end_a_line(lines: list[str]) -> None:
    for end in ("\n", "\r\n"):
        assert file_lines(end.join(lines) + end) == lines


def pair() -> dict[str, Any]:
    context = f"A ferry sails.{ENDS} It stops at waves of three metres. It is red."
    document = {"title": "Ferries", "text": context, "gold": True}
    return {
        "question": "Which waves stop it?",
        "answers": ["three metres"],
        "documents": [document],
    }


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [{"role": "user", "content": ENDS}]}, ["prompt-lint", "FILE"]),
        ({"text": f"A fine day.{ENDS}"},
         ["quantize", "MODEL", "--dry-run", "--calibration", "FILE", "--recipe", "int8-w8a8"]),
        (pair(), ["context", "evaluate", "FILE"]),
    ],
    ids=["prompts", "calibration", "contexts"],
)  # fmt: skip
def test_a_text_with_other_line_ends_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], words: list[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text((json.dumps(row, ensure_ascii=False) + "\r\n") * 3, encoding="utf-8")
    names = {"FILE": str(file), "MODEL": str(write(tmp_path / "model"))}
    main([names.get(word, word) for word in words])
    # Three rows may be too few; each of them is read.
    assert "line 1" not in capsys.readouterr().err


async def test_lines_are_found_in_pieces() -> None:
    async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async def read(*parts: bytes) -> list[bytes]:
        return [line async for line in lines_of(pieces(*parts))]

    assert await read(b"a\r\nb", b"c\n\n", b"\nd") == [b"a", b"bc", b"d"]
    assert await read("a\u2028b\n".encode()) == ["a\u2028b".encode()]
    assert await read(b"") == []
    with pytest.raises(ValueError, match="16 MiB"):
        await read(b"x" * 2**23, b"x" * 2**23, b"x")
