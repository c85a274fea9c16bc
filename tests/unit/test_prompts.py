"""Prompts: a constant prefix, no cut inputs, no input that ends its own turn."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from serving.contracts.answer import TaskRequest
from serving.contracts.errors import (
    ConfigurationError,
    EmptyInput,
    InputTooLong,
    InvalidRequest,
    InvalidTaskSpec,
)
from serving.contracts.task_spec import TaskSpec
from serving.tasks.blank_text import is_blank
from serving.tasks.prompt import CheckpointTokenizer, PromptFrame, cleaned
from serving.tasks.task import bind

from ..built_in_tasks import BUILT_IN_TASKS
from .character_tokenizer import CharacterTokenizer

WINDOW = 4096
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.mark.parametrize("name", BUILT_IN_TASKS)
def test_requests_share_everything_but_the_input(
    name: str, specs: dict[str, TaskSpec], tokenizer: CharacterTokenizer
) -> None:
    task = bind(specs[name], tokenizer, WINDOW)
    one, two = (
        task.plan(TaskRequest(name, text, "en", "de")).prompt_token_ids
        for text in ("A first text.", "Quite another, longer text!")
    )
    rendered = "".join(chr(token) for token in one)
    head, _, tail = rendered.partition("A first text.")
    assert "".join(chr(token) for token in two) == head + "Quite another, longer text!" + tail
    assert len(head) > len(tail) * 5
    assert rendered.index(specs[name].instruction[:20]) < 20


def test_an_input_over_the_window_states_both_lengths(
    sentiment: TaskSpec, tokenizer: CharacterTokenizer
) -> None:
    task = bind(sentiment, tokenizer, WINDOW)
    with pytest.raises(InputTooLong, match=rf"5000 tokens long .* window is {WINDOW} tokens"):
        task.plan(TaskRequest("sentiment", "x" * 5000))


@given(length=st.integers(1, WINDOW))
def test_a_prompt_that_is_planned_fits(length: int) -> None:
    frame = PromptFrame((1,) * 100, (2,) * 10)
    try:
        prompt = frame.assemble([3] * length, WINDOW, output_tokens=50)
    except InputTooLong:
        assert length + 160 > WINDOW
    else:
        assert len(prompt) + 50 <= WINDOW
        assert prompt.count(3) == length


def test_a_task_that_leaves_no_room_is_refused_when_loaded(
    sentiment: TaskSpec, tokenizer: CharacterTokenizer
) -> None:
    with pytest.raises(InvalidTaskSpec, match="before any input and the window is 300"):
        bind(sentiment, tokenizer, 300)


@given(TEXTS)
def test_cleaning_removes_only_outer_white_space(text: str) -> None:
    if not is_blank(text):
        assert cleaned(f" \n{text}\t") == text.strip()
    else:
        with pytest.raises(EmptyInput):
            cleaned(text)


# One text for each kind of character that no reader sees: white space, controls, format characters,
# variation selectors, fillers, an empty braille cell, tags, unassigned code points.
BLANK = [
    "", " \n\t", "\u00a0\u3000\u2003", "\x00", "\x01\x02\x7f\x85", "\u200b", "\ufeff",
    "\u2060\u00ad", "\u200e\u200f\u202a\u2066", "\ufe0f", "\U000e0100", "\u034f", "\u2800",
    "\u3164\u115f\u1160\uffa0",
    "\U000e0041\U000e007f", "\u180e\u061c", "\u0301", "\ue000", "\U0010ffff", "\u200b" * 2000,
]  # fmt: skip


@pytest.mark.parametrize("text", BLANK, ids=ascii)
def test_a_text_without_a_visible_character_is_empty(text: str) -> None:
    with pytest.raises(EmptyInput, match="no visible character"):
        cleaned(text)


@pytest.mark.parametrize(
    "text", ["a", ".", "7", "日", "🙂", "\u200bא", "\u0915\u093e", "\u200b" * 999 + "€"]
)
def test_a_text_with_a_visible_character_is_kept(text: str) -> None:
    assert cleaned(text) == text


def test_a_lone_surrogate_is_not_text() -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate at character 3"):
        cleaned("abc\ud800")


TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }} {{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant {% endif %}"
)


def checkpoint_tokenizer(template: str | None) -> Any:
    words = ["<|start|>", "<|end|>", "[UNK]", "<", "|", ">", "start", "end", "hello"]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("|", "isolated"),
         pre_tokenizers.Split("<", "isolated"), pre_tokenizers.Split(">", "isolated")]
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|end|>",  # noqa: S106
        additional_special_tokens=["<|start|>"],
        unk_token="[UNK]",  # noqa: S106
        chat_template=template,
    )


def test_special_tokens_of_an_input_are_plain_text() -> None:
    tokenizer = CheckpointTokenizer(checkpoint_tokenizer(TEMPLATE))
    assert tokenizer.end_of_turn_id == 1
    assert 1 in tokenizer.encode_rendered("hello <|end|>")
    assert tokenizer.encode("hello <|end|>") == [8, 3, 4, 7, 4, 5]


def test_a_template_that_drops_the_input_is_refused() -> None:
    tokenizer = CheckpointTokenizer(checkpoint_tokenizer("{{ messages[0].content }}"))
    with pytest.raises(ConfigurationError, match="exactly once"):
        PromptFrame.build(tokenizer, "Do it.", [])


def test_a_checkpoint_without_a_template_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no chat template"):
        CheckpointTokenizer(checkpoint_tokenizer(None))
