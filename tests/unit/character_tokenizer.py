"""A tokenizer whose token ids are the code points of the text."""

from collections.abc import Sequence

from serving.tasks.prompt import Turn


class CharacterTokenizer:
    """One token a character; the template marks turns with characters that texts do not hold."""

    end_of_turn_id = ord("\x03")
    longest_token_chars = 4

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def encode_rendered(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def render(self, turns: Sequence[Turn]) -> str:
        body = "".join(f"\x02{turn.role}\n{turn.content}\x03" for turn in turns)
        return body + "\x02assistant\n"
