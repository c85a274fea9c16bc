"""Counts in a prompt that indicate how hard it is to answer."""

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Every pattern below takes time linear in this length.
_CHECKED_CHARS = 20_000
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_MATHS = re.compile(
    r"[=^√∑∫≤≥≠∈∀∃→]|\b(?:prove|proof|theorem|integral|derivative|matrix|eigen\w+|polynomial|"
    r"probability|equation|convex|finite|group|ring|field|ideal|homomorphism|modulo|prime|beweise|"
    r"démontre|demuestra|integer|continuous|differentiable|logic|truth table)\b",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"```|\b(?:function|algorithm|implement|python|java|javascript|typescript|rust|golang|c\+\+|"
    r"sql|regex|api|class|compile\w*|debug\w*|thread\w*|database|query|refactor|unit tests?|code)\b"
    r"|[{}();]{2,}",
    re.IGNORECASE,
)
_STEPS = re.compile(
    r"\b(?:then|after|before|first|second|finally|each|every|remaining|twice|half|total|per|if|"
    r"than|and then|step|dann|danach|puis|ensuite|luego|después)\b",
    re.IGNORECASE,
)
_CONSTRAINTS = re.compile(
    r"\b(?:must|without|at least|at most|exactly|only|no more than|including|include|avoid|"
    r"such that|under|within|except|unless|using|with|muss|ohne|sans|sin|doit|debe)\b",
    re.IGNORECASE,
)
_REASONING = re.compile(
    r"\b(?:why|prove|derive|justify|analy[sz]e|evaluate|critically|discuss|compare|design|"
    r"optimi[sz]e|argue|assess|estimate|strategy|trade-?offs?|explain|how would|implications?|"
    r"erkläre|beweise|vergleiche|explique|démontre|compara|analiza)\b",
    re.IGNORECASE,
)
_QUESTION = re.compile(
    r"^\W*(?:what|who|when|where|which|how (?:many|much|old|tall|long|far)|is|are|do|does|can|wer|"
    r"was|wann|wo|qui|quel\w*|où|quand|qué|quién|cuándo|dónde)\b",
    re.IGNORECASE,
)
_OPTIONS = re.compile(r"^[ \t]*\(?[A-E][.)]\s", re.MULTILINE)

FEATURES: tuple[str, ...] = (
    "log_words", "log_sentences", "log_numbers", "number_share", "mean_word_chars", "maths", "code",
    "steps", "constraints", "reasoning", "plain_question", "options", "newlines", "commas",
    "long_words",
)  # fmt: skip


def lexical_features(text: str) -> NDArray[np.float32]:
    """Return (len(FEATURES),) float32, each in [0, 3], of a text's first 20,000 characters."""
    text = text[:_CHECKED_CHARS]
    words = _WORD.findall(text)
    count = max(1, len(words))
    numbers = len(_NUMBER.findall(text))
    values = [
        math.log1p(len(words)) / 2,
        math.log1p(len(_SENTENCE_END.findall(text))),
        math.log1p(numbers),
        numbers / count,
        sum(map(len, words)) / count / 5,
        _log_count(_MATHS, text),
        _log_count(_CODE, text),
        _log_count(_STEPS, text),
        _log_count(_CONSTRAINTS, text),
        _log_count(_REASONING, text),
        1.0 if _QUESTION.search(text) and count <= 15 else 0.0,
        1.0 if len(_OPTIONS.findall(text)) >= 3 else 0.0,
        math.log1p(text.count("\n")) / 2,
        math.log1p(text.count(",")) / 2,
        sum(len(word) > 9 for word in words) / count * 3,
    ]
    return np.minimum(np.array(values, np.float32), 3.0)


def feature_rows(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return (len(texts), len(FEATURES)) float32."""
    return np.array([lexical_features(text) for text in texts], np.float32).reshape(
        len(texts), len(FEATURES)
    )


def _log_count(pattern: re.Pattern[str], text: str) -> float:
    return math.log1p(len(pattern.findall(text)))
