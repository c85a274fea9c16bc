"""The prompt of a task as messages, without a model: for people who write tasks."""

from collections.abc import Sequence

from serving.contracts.answer import TaskRequest
from serving.contracts.task_spec import TaskSpec
from serving.tasks.prompt import Turn
from serving.tasks.task import bind

# Characters that Unicode reserves for use inside a program.
_TURN = "\ufdd0"
_CONTENT = "\ufdd1"
_WINDOW = 2**24
"""Tokens, each of one character: any text of a command line fits."""


class _Characters:
    """A tokenizer whose ids are code points, and whose template only separates the turns."""

    end_of_turn_id = 0x110000
    longest_token_chars = 1

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def render(self, turns: Sequence[Turn]) -> str:
        return "".join(f"{_TURN}{turn.role}{_CONTENT}{turn.content}" for turn in turns)

    def encode_rendered(self, text: str) -> list[int]:
        return self.encode(text)


def shown_prompt(spec: TaskSpec, request: TaskRequest) -> list[Turn]:
    """Return the messages that a local model gets for a request, before its chat template.

    They come from the code that serves. Raises InvalidRequest as the task's own `plan` does.
    """
    work = bind(spec, _Characters(), _WINDOW).plan(request)
    _, *turns = "".join(map(chr, work.prompt_token_ids)).split(_TURN)
    return [Turn(*turn.split(_CONTENT, 1)) for turn in turns]
