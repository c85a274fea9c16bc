"""Prompts as token ids: a constant prefix, the input, a constant suffix.

The prefix (instruction and examples) is tokenized once. It is identical for all requests, so that
automatic prefix caching applies. The input is tokenized separately, with special tokens read as
plain text: an input that contains an end-of-turn marker cannot end its turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from serving.contracts.errors import (
    ConfigurationError,
    EmptyInput,
    InputTooLong,
    InvalidRequest,
    InvalidTaskSpec,
)
from serving.tasks.blank_text import is_blank

# Least tokens for an input: a task whose prompt leaves fewer is refused.
_SMALLEST_USEFUL_INPUT = 16
# A text that no chat template alters and no document contains.
_PLACEHOLDER = "\u2402narrowgate-input\u2403"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation. role: system, user or assistant."""

    role: str
    content: str


class PromptTokenizer(Protocol):
    """The part of a model's tokenizer that tasks use."""

    end_of_turn_id: int
    longest_token_chars: int
    """Length of the vocabulary's longest token: no token has more characters."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with special tokens read as plain text."""
        ...

    def render(self, turns: Sequence[Turn]) -> str:
        """Return the chat template's text for the turns, up to where the model continues."""
        ...

    def encode_rendered(self, text: str) -> list[int]:
        """Return the ids of rendered text, with special tokens read as special."""
        ...


@dataclass(frozen=True, slots=True)
class PromptFrame:
    """The token ids before and after a task's input."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @classmethod
    def build(
        cls, tokenizer: PromptTokenizer, instruction: str, shots: Sequence[tuple[str, str]]
    ) -> Self:
        """Render instruction, examples and a placeholder with the model's chat template.

        shots: pairs of input and expected answer.
        Raises ConfigurationError where the template drops, alters or repeats the input.
        """
        turns = [Turn("system", instruction)]
        for question, answer in shots:
            turns += [Turn("user", question), Turn("assistant", answer)]
        rendered = tokenizer.render([*turns, Turn("user", _PLACEHOLDER)])
        before, found, after = rendered.partition(_PLACEHOLDER)
        if not found or _PLACEHOLDER in after:
            raise ConfigurationError(
                "the model's chat template does not contain the user's text exactly once",
                fix="use a checkpoint with an instruction chat template",
            )
        return cls(
            tuple(tokenizer.encode_rendered(before)), tuple(tokenizer.encode_rendered(after))
        )

    def assemble(
        self, input_ids: Sequence[int], max_model_len: int, output_tokens: int
    ) -> tuple[int, ...]:
        """Return the ids of the whole prompt.

        max_model_len: the model's context window, tokens. output_tokens: reserved for the answer.
        Raises InputTooLong with both lengths where they do not fit; an input is never cut.
        """
        overhead = len(self.prefix) + len(self.suffix)
        free = max_model_len - overhead - output_tokens
        if len(input_ids) > free:
            raise InputTooLong(
                f"the input is {len(input_ids)} tokens long and at most {max(free, 0)} fit: the "
                f"window is {max_model_len} tokens, the task's prompt takes {overhead} and the "
                f"answer up to {output_tokens}",
                field="input",
                fix="shorten or split the input",
            )
        return (*self.prefix, *input_ids, *self.suffix)

    def require_space(self, task: str, output_tokens: int, max_model_len: int) -> None:
        """Raise InvalidTaskSpec where no input fits beside the prompt.

        output_tokens: the least that the answer needs. max_model_len: the model's window, tokens.
        """
        used = len(self.prefix) + len(self.suffix) + output_tokens
        if used + _SMALLEST_USEFUL_INPUT > max_model_len:
            raise InvalidTaskSpec(
                f"task {task!r} takes {used} tokens before any input and the window is "
                f"{max_model_len} tokens",
                field="examples",
                fix="use fewer examples or a model with a larger window (max_model_len)",
            )


def longest_input(tokenizer: PromptTokenizer, max_model_len: int) -> int:
    """Return the most characters that can fit a window of that many tokens."""
    return max_model_len * tokenizer.longest_token_chars


def cleaned(text: str, max_chars: int | None = None) -> str:
    """Return an input without outer white space.

    max_chars: a longer input cannot fit the window. It is refused before it is tokenized, which
    takes 1 s and 250 MB for each MiB.
    Raises InputTooLong, EmptyInput where no character is visible, InvalidRequest where the text is
    not valid Unicode (a lone surrogate, which JSON can express and UTF-8 cannot).
    """
    if max_chars is not None and len(text) > max_chars and len(text.strip()) > max_chars:
        raise InputTooLong(
            f"the input is {len(text)} characters long, and at most {max_chars} can fit the "
            "model's window",
            field="input",
            fix="shorten or split the input",
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the input is not valid Unicode: lone surrogate at character {error.start}",
            field="input",
            fix="send valid Unicode",
        ) from error
    if is_blank(text):
        raise EmptyInput(
            "the input has no visible character", field="input", fix="send a text that is not blank"
        )
    return text.strip()


class CheckpointTokenizer:
    """The tokenizer and chat template of a checkpoint, loaded with transformers."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigurationError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template",
                fix="serve an instruction-tuned checkpoint",
            )
        self._tokenizer = tokenizer
        self.end_of_turn_id: int = tokenizer.eos_token_id
        self.longest_token_chars: int = max(map(len, tokenizer.get_vocab()))

    @classmethod
    def load(cls, source: str | Path, revision: str | None = None) -> Self:
        """Load from a local folder, or a hub id with a revision. Blocking, takes seconds.

        Raises ConfigurationError if no tokenizer can be read.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(source), revision=revision)
        except Exception as error:  # translated: the libraries below raise Exception itself
            raise ConfigurationError(
                f"the tokenizer of {str(source)!r} cannot be read: {type(error).__name__}: {error}",
                field="model",
                fix="name a checkpoint with tokenizer.json, or fetch it again",
            ) from error
        return cls(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with special tokens read as plain text."""
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        ).input_ids
        return ids

    def render(self, turns: Sequence[Turn]) -> str:
        """Return the chat template's text for the turns, up to where the model continues."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return text

    def encode_rendered(self, text: str) -> list[int]:
        """Return the ids of rendered text, which already contains the special tokens."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids
