"""Reads a chat request and decides by its form whether it can be a narrow task."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from serving.contracts.requests import INSTRUCTING_ROLES, PART_SEPARATOR, ChatRequest, Message
from serving.tasks.blank_text import is_blank

# Longer texts are searched up to here. Every pattern takes time linear in the searched length.
SEARCHED_CHARS = 20_000
_CODE = re.compile(
    r"```|~~~"
    r"|^[ \t]*(?:def|class)[ \t]+\w[^\n]*:[ \t]*$|^[ \t]*(?:from[ \t]+\S+[ \t]+)?import[ \t]+\w"
    r"|^[ \t]*#include\b|\b(?:function|func|fn)[ \t]+(?:\w+[ \t]*)?\(|=>"
    r"|\bconsole\.log\(|\bprint\(|\breturn[ \t]+\w+;"
    r"|^[ \t]*(?:SELECT|INSERT INTO|UPDATE|CREATE TABLE)\b"
    r"|;[ \t]*\n(?:[ \t]*\n){0,2}[^\n]*;[ \t]*$"
    r"|</(?:div|span|p|html|body|script|table)>|\bpublic[ \t]+(?:static|class)\b|\{[ \t]*$",
    re.MULTILINE,
)
_FENCE_MARK = re.compile(r"^[ \t]*```(?:text|txt|plaintext)?[ \t]*$", re.MULTILINE)
_PERSONA_START = (
    r"(?:you are|you're|act as|du bist|sie sind|tu es|vous êtes|eres|usted es)"
    r" (?:an? |the |ein |eine |un |une |el |la )?"
)
_PERSONA_NOUN = (
    r"(?:assistant|chatbot|chat bot|bot|ai|language model|helper|assistent|assistente|asistente|"
    r"agent|system|model|ki|ia)"
)
_PERSONA = re.compile(
    rf"(?:{_PERSONA_START}(?:[\w-]+ ){{0,4}}{_PERSONA_NOUN}(?: (?:named|called) \w+)?\s*[.!]?"
    r"|(?:please )?(?:answer|respond|reply|be) (?:\w+ )?(?:helpful(?:ly)?|concise(?:ly)?|"
    r"accurate(?:ly)?|brief(?:ly)?|polite(?:ly)?|honest(?:ly)?)(?:,? and \w+)?\s*[.!]?)\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text of a chat of one turn. system: empty where there is none."""

    system: str
    user: str

    @property
    def text(self) -> str:
        """Return the whole text, the system message first."""
        return f"{self.system}\n\n{self.user}" if self.system else self.user


@dataclass(frozen=True, slots=True)
class ChatForm:
    """The form of a chat request.

    prompt: the system messages, joined, and the last user message. turns: messages that are neither
    system nor developer messages. has_code: in the last user message. wants_more: the request asks
    for tools, images, several choices or the like. obstacle: why the request cannot be narrow; None
    where its form allows it.
    """

    prompt: Prompt
    turns: int
    has_code: bool
    wants_more: bool
    obstacle: str | None


def read(request: ChatRequest, max_chars: int) -> ChatForm:
    """Return the form of a chat request. Takes time linear in its length.

    max_chars: the most characters of system and user messages of a narrow request.
    """
    turns = [m for m in request.messages if m.role not in INSTRUCTING_ROLES]
    prompt = prompt_of(request.messages)
    has_code = _has_code(prompt.user)
    field = _field_obstacle(request)
    obstacle = (
        field
        or _turn_obstacle(request.messages, turns)
        or _text_obstacle(prompt, max_chars, has_code=has_code)
    )
    wants_more = field is not None or not all(m.is_text for m in request.messages)
    return ChatForm(prompt, len(turns), has_code, wants_more, obstacle)


def prompt_of(messages: Sequence[Message]) -> Prompt:
    """Return the joined system messages and the last user message."""
    systems = [m.text for m in messages if m.role in INSTRUCTING_ROLES]
    users = [m.text for m in messages if m.role == "user"]
    return Prompt(PART_SEPARATOR.join(systems).strip(), users[-1] if users else "")


def is_persona(system: str) -> bool:
    """Return whether a system message only sets a persona ("You are a helpful assistant")."""
    system = system.strip()
    position = 0
    while position < len(system):
        match = _PERSONA.match(system, position)
        if match is None:
            return False
        position = match.end()
    return True


def is_longer(text: str, chars: int) -> bool:
    """Return whether a text has more characters than this, a run of white space counted as one."""
    length = -1
    for word in re.finditer(r"\S+", text):
        length += 1 + word.end() - word.start()
        if length > chars:
            return True
    return False


def _has_code(text: str) -> bool:
    return _CODE.search(text, 0, SEARCHED_CHARS) is not None


def _field_obstacle(request: ChatRequest) -> str | None:
    """Return the field that asks for something else than one plain text answer."""
    fields = request.fields
    for name in ("tools", "functions", "audio", "prediction", "web_search_options", "logit_bias"):
        if fields.get(name):
            return name
    for name in ("tool_choice", "function_call"):
        if fields.get(name) not in (None, "none"):
            return name
    if request.choices != 1:
        return "n"
    if fields.get("logprobs") or fields.get("top_logprobs"):
        return "logprobs"
    if fields.get("response_format", {"type": "text"}).get("type") != "text":
        return "response_format"
    if fields.get("modalities", ["text"]) != ["text"]:
        return "modalities"
    return None


def _turn_obstacle(messages: Sequence[Message], turns: Sequence[Message]) -> str | None:
    if len(turns) != 1 or turns[0].role != "user":
        return "not exactly one user turn"
    if messages[-1] is not turns[0]:
        return "a message after the user's"
    if not all(message.is_text for message in messages):
        return "content other than text"
    return None


def _text_obstacle(prompt: Prompt, max_chars: int, *, has_code: bool) -> str | None:
    if len(prompt.system) + len(prompt.user) > max_chars:
        return f"longer than {max_chars} characters"
    if is_blank(prompt.user):
        return "no text"
    has_code = has_code and _has_code(_unfenced(prompt.user))
    return "code" if has_code or _has_code(prompt.system) else None


def _unfenced(text: str) -> str:
    """Return a text without the marks of its only fence, if that names no programming language."""
    marks = list(_FENCE_MARK.finditer(text))
    return _FENCE_MARK.sub("", text) if len(marks) == 2 else text
