"""A task whose prompt leaves no room for an input is refused when it is loaded."""

from serving.contracts.errors import InvalidTaskSpec
from serving.tasks.prompt import PromptFrame

_SMALLEST_USEFUL_INPUT = 16


def refuse_frame_over_window(
    task: str, frame: PromptFrame, output_tokens: int, max_model_len: int
) -> None:
    """Raise InvalidTaskSpec when the prompt without an input already fills the window.

    output_tokens, max_model_len: what the answer needs and the model's window, in tokens.
    """
    used = len(frame.prefix) + len(frame.suffix) + output_tokens
    if used + _SMALLEST_USEFUL_INPUT > max_model_len:
        raise InvalidTaskSpec(
            f"task {task!r} takes {used} tokens before any input and the window is "
            f"{max_model_len} tokens",
            field="examples",
            fix="use fewer examples or a model with a larger window (max_model_len)",
        )
