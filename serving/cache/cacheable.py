"""Decides which requests and answers may not be cached, each with a reason. Pure."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from serving.cache.volatile import asks_to_draw, holds_personal_data, names_moving_time
from serving.contracts.answer import Answer
from serving.contracts.requests import INSTRUCTING_ROLES, TASK_PREFIX, ChatRequest, Message

Reason = Literal[
    "asked",  # the client asked for it, by header or `store: false`
    "excluded",  # the settings exclude the tenant, the key or the task
    "tools",  # the request offers tools, or a message calls one or holds its result
    "not_text",  # a message holds an image, audio or a file
    "unknown_field",  # a field that this server does not know may change the answer
    "log_probabilities",  # they are asked for, and a stream could not repeat them
    "sampled",  # temperature is above 0 or unset, and cache.sampled is off
    "time_dependent",  # a message names a time that moves: today, latest, now
    "random",  # the last message asks for a random number, a password or the like
    "personal",  # a message holds an address, a number of a person, an account or a card
    "cut",  # the answer ended at a limit or by a filter
    "tool_call",  # the answer calls a tool
    "refusal",  # the answer declines to answer
    "empty",  # the answer has no text
    "invalid",  # a task's answer could not be read in full
    "oversized",  # the answer is larger than cache.max_entry_bytes
]

_STATEFUL_FIELDS = frozenset({
    "tools", "functions", "tool_choice", "function_call", "web_search_options",
})  # fmt: skip
_OTHER_OUTPUT_FIELDS = frozenset({"modalities", "audio", "prediction"})
_TOOL_ROLES = frozenset({"tool", "function"})
_TOOL_EXTRAS = frozenset({"tool_calls", "function_call", "tool_call_id"})

# The first words of an answer that declines.
_REFUSAL = re.compile(
    r"\s*(?:(?:i['\u2019]?m|i am|we['\u2019]?re) (?:really |very |so )?"
    r"(?:sorry|afraid|unable|not able)|"
    r"sorry,|my apologies|i apologi[sz]e|i (?:can['\u2019]?t|cannot|can not|"
    r"won['\u2019]?t|must decline)|"
    r"unfortunately,? i (?:can|am|do)|as an ai\b|i do(?:n['\u2019]t| not) have access|"
    r"(?:es )?tut mir leid|entschuldigung|leider kann ich|ich kann (?:dir|ihnen|das|dies|leider)"
    r"[^.]{0,40}\bnicht|"
    r"(?:je suis )?désolée?|je (?:ne peux|ne suis) pas|je regrette|malheureusement,? je|"
    r"lo siento|lo lamento|perdón|no puedo|lamentablemente,? no)",
    re.IGNORECASE,
)


def unfit_chat(request: ChatRequest, sampled: Literal["exact_only", "off"]) -> Reason | None:
    """Return why a chat is neither looked up nor stored; None where it may be."""
    fields = request.fields
    if _STATEFUL_FIELDS & set(fields) or any(map(_uses_tools, request.messages)):
        return "tools"
    if _OTHER_OUTPUT_FIELDS & set(fields):
        return "not_text"
    if any(m.content is None or not m.is_text for m in request.messages):
        return "not_text"
    if request.extras:
        return "unknown_field"
    if "logprobs" in fields:
        return "log_probabilities"
    if request.model.startswith(TASK_PREFIX):
        # A task's answer depends on its input only, and is never sampled.
        return None
    if sampled == "off" and fields.get("temperature") != 0:
        return "sampled"
    return _unfit_words(request)


def _uses_tools(message: Message) -> bool:
    return message.role in _TOOL_ROLES or not _TOOL_EXTRAS.isdisjoint(message.extras)


def _unfit_words(request: ChatRequest) -> Reason | None:
    # Instructions of the application name the date where they need it, and it is in the key.
    for message in request.messages:
        if message.role in INSTRUCTING_ROLES:
            continue
        if names_moving_time(message.text):
            return "time_dependent"
        if holds_personal_data(message.text):
            return "personal"
    return "random" if request.messages and asks_to_draw(request.messages[-1].text) else None


def unfit_document(document: Mapping[str, Any]) -> Reason | None:
    """Return why a chat's answer is not stored; None where it may be. document: of OpenAI's API."""
    choices = document.get("choices")
    if not isinstance(choices, list) or not choices or not document.get("usage"):
        return "empty"
    reasons = (_unfit_choice(choice) for choice in choices)
    return next((reason for reason in reasons if reason is not None), None)


def _unfit_choice(choice: Any) -> Reason | None:
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        return "empty"
    if message.get("tool_calls") or message.get("function_call"):
        return "tool_call"
    if choice.get("finish_reason") != "stop":
        return "cut"
    if message.get("refusal"):
        return "refusal"
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        return "empty"
    return "refusal" if declines(content) else None


def declines(text: str) -> bool:
    """Return whether an answer's first words decline to answer."""
    return _REFUSAL.match(text) is not None


def unfit_answer(answer: Answer, finish_reason: str) -> Reason | None:
    """Return why a task's answer is not stored; None where it may be."""
    if finish_reason != "stop":
        return "cut"
    return None if answer.valid else "invalid"
