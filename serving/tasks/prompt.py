"""Prompts as token ids: a constant prefix, the input, a constant suffix.

The prefix (instruction and examples) is tokenized once, so it is identical between requests by
construction and automatic prefix caching applies. The input is tokenized apart, with special
tokens taken as plain text: an input that spells out an end-of-turn marker stays an input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from serving.contracts.errors import ConfigurationError, EmptyInput, InputTooLong, InvalidRequest

# A text that no chat template alters and no document contains.
_PLACEHOLDER = "\u2402narrowgate-input\u2403"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation. role: system, user or assistant."""

    role: str
    content: str


class PromptTokenizer(Protocol):
    """What tasks need of a model's tokenizer."""

    end_of_turn_id: int

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, special tokens taken as plain text."""
        ...

    def render(self, turns: Sequence[Turn]) -> str:
        """Return the chat template's text for the turns, ending where the model goes on."""
        ...

    def encode_rendered(self, text: str) -> list[int]:
        """Return the ids of rendered text, special tokens taken as such."""
        ...


@dataclass(frozen=True, slots=True)
class PromptFrame:
    """A prompt with a gap for the input, as token ids."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @classmethod
    def build(
        cls, tokenizer: PromptTokenizer, instruction: str, shots: Sequence[tuple[str, str]]
    ) -> Self:
        """Render instruction, examples and a gap through the model's own chat template.

        shots: pairs of input and expected answer.
        Raises ConfigurationError when the template drops or alters the input.
        """
        turns = [Turn("system", instruction)]
        for question, answer in shots:
            turns += [Turn("user", question), Turn("assistant", answer)]
        rendered = tokenizer.render([*turns, Turn("user", _PLACEHOLDER)])
        before, found, after = rendered.partition(_PLACEHOLDER)
        if not found or _PLACEHOLDER in after:
            raise ConfigurationError(
                "the model's chat template does not carry the user's text exactly once",
                fix="use a checkpoint with an instruction chat template",
            )
        return cls(
            tuple(tokenizer.encode_rendered(before)), tuple(tokenizer.encode_rendered(after))
        )

    def assemble(
        self, input_ids: Sequence[int], max_model_len: int, output_tokens: int
    ) -> tuple[int, ...]:
        """Return the ids of the whole prompt.

        max_model_len, output_tokens: the model's window and what to leave free of it, in tokens.
        Raises InputTooLong with both lengths when they do not fit; nothing is ever cut.
        """
        overhead = len(self.prefix) + len(self.suffix)
        room = max_model_len - overhead - output_tokens
        if len(input_ids) > room:
            raise InputTooLong(
                f"the input is {len(input_ids)} tokens long and {max(room, 0)} fit: the window is "
                f"{max_model_len} tokens, of which the task's prompt takes {overhead} and the "
                f"answer up to {output_tokens}",
                field="input",
                fix="shorten or split the input",
            )
        return (*self.prefix, *input_ids, *self.suffix)


def cleaned(text: str) -> str:
    """Return the text without outer white space.

    Raises EmptyInput where nothing is left, InvalidRequest where it is not valid Unicode
    (a lone surrogate, which JSON can spell and UTF-8 cannot).
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the input holds a lone surrogate at character {error.start}, which is not text",
            field="input",
            fix="send valid Unicode",
        ) from error
    stripped = text.strip()
    if not stripped:
        raise EmptyInput("the input is empty", field="input", fix="send a text that is not blank")
    return stripped


class CheckpointTokenizer:
    """The tokenizer and chat template of a checkpoint, through transformers."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigurationError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template",
                fix="serve an instruction-tuned checkpoint",
            )
        self._tokenizer = tokenizer
        self.end_of_turn_id: int = tokenizer.eos_token_id

    @classmethod
    def load(cls, source: str | Path, revision: str | None = None) -> Self:
        """Load from a local folder or a hub id with a revision. Blocking, seconds."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(str(source), revision=revision))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, special tokens taken as plain text."""
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        ).input_ids
        return ids

    def render(self, turns: Sequence[Turn]) -> str:
        """Return the chat template's text for the turns, ending where the model goes on."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return text

    def encode_rendered(self, text: str) -> list[int]:
        """Return the ids of rendered text; the template has already put special tokens in."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids
