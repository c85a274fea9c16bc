"""Which requests may be looked up by meaning at all, before any embedding is paid for. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from serving.cache.guards.reference import is_elliptic, points_outside
from serving.cache.guards.words import Words
from serving.cache.volatile import holds_personal_data, names_moving_time
from serving.contracts.requests import Message

Ineligible = Literal[
    "not_text",  # the last turn is not one text of the user
    "too_short",  # fewer words than a question has
    "too_long",  # may be longer than the encoder's window, or carries a text to work on
    "code",  # holds code, a path, a formula or markup
    "tools",  # tools are offered or were called
    "time_dependent",  # asks for a state of the world that moves
    "personal",  # about the user's own things, or holds personal data
    "deictic",  # points at a picture, a text or an earlier turn
    "elliptic",  # no whole question: a follow-up, a pronoun without its noun
    "payload",  # asks to translate, rewrite, summarise or continue a given text
    "language",  # no language that the guards know
]

MOST_CHARACTERS = 400
"""At 256 tokens the encoder cuts; the rarest words take about two characters a token."""
_FEWEST_WORDS = 3

_CODE = re.compile(
    r"```|`[^`]+`|[{}<>]|[=!]=|&&|\|\||;[^\S\n]*+$|\w\([^)]{0,400}\)|"
    r"(?:^|\s)(?:/|\./|~/|[A-Z]:\\)\S+|\$\w+|"
    r"https?://|www\.|\\[a-z]+|\b(?:def|import|SELECT|INSERT|UPDATE|#include)\s+\w+\s*[(.:*]|"
    r"\n[^\S\n]*+\S.*+\n",
    re.MULTILINE,
)
# "How do I reset my password" is everybody's question; "where is my order" is not.
_OWN = re.compile(
    r"\b(?:near me|around here|my (?:order|account balance|balance|bill|appointment|results?|test results|"
    r"case|application|claim|ticket|package|parcel|delivery|subscription status|salary|name is|boyfriend|"
    r"girlfriend|wife|husband|son|daughter|mother|father|boss|doctor|friend|age|weight)|"
    r"i am \d+|i'm \d+|i (?:was|feel|have been|live|work|weigh)|"
    r"in meiner nähe|meine? (?:bestellung|rechnung|termin|paket|konto(?:stand)|frau|mann|freund\w*|chef)|"
    r"ich (?:bin|war|fühle|wohne|wiege)|près de (?:chez )?moi|ma commande|mon (?:colis|solde|rendez-vous|mari|"
    r"ami)|ma (?:femme|facture)|je (?:suis|me sens|vis|pèse)|cerca de mí|mi (?:pedido|factura|cita|paquete|"
    r"saldo|esposa|marido|novi[ao]|jefe)|(?:yo )?(?:soy|estoy|vivo|peso))\b",
    re.IGNORECASE,
)
# English says it as an imperative or a request: "how do I extract frames" is a whole question.
_PAYLOAD = re.compile(
    r"(?:^\W*|[.!?:,]\s+|\b(?:please|can you|could you|would you|will you|help me|you to|me to|and|then) )"
    r"(?:translate|rewrite|rephrase|paraphrase|summari[sz]e|proofread|correct (?:this|the)|continue|"
    r"complete the|edit (?:this|the)|classify|extract|fix (?:this|the following))\b|"
    r"\b(?:übersetze?n?|fasse?|umschreiben|korrigiere?n?|traduis\w*|traduire|résume[rz]?|corrige[rz]?|reformule[rz]?|"
    r"traduc\w+|traduzca|resume|resumir|corrige|reescrib\w+)\b",
    re.IGNORECASE,
)
# A colon or a quotation with several words behind it is a text to work on.
_QUOTED = re.compile(r":\s+\S+(?:\s+\S+){5,}|[\"\u201c\u201e\u00ab][^\"\u201d\u00bb]{40,}")


def ineligible_chat(messages: Sequence[Message], fields: Mapping[str, Any]) -> Ineligible | None:
    """Return why a chat is not looked up by meaning; None where it may be.

    What the exact cache bypasses must have been bypassed before. History is in the fingerprint.
    """
    if any(name in fields for name in ("tools", "functions", "tool_choice", "function_call")):
        return "tools"
    if not messages or messages[-1].role != "user":
        return "not_text"
    last = messages[-1]
    if last.content is None or not last.is_text or last.extras:
        return "not_text"
    return ineligible_text(last.text)


def ineligible_text(text: str) -> Ineligible | None:
    """Return why a turn is not looked up by meaning; None where it may be."""
    if len(text) > MOST_CHARACTERS:
        return "too_long"
    words = Words(text)
    if len(words.tokens) < _FEWEST_WORDS:
        return "too_short"
    patterns: tuple[tuple[re.Pattern[str], Ineligible], ...] = (
        (_CODE, "code"), (_PAYLOAD, "payload"), (_QUOTED, "payload"), (_OWN, "personal"),
    )  # fmt: skip
    for pattern, reason in patterns:
        if pattern.search(text):
            return reason
    if holds_personal_data(text):
        return "personal"
    if names_moving_time(text):
        return "time_dependent"
    if words.language is None:
        return "language"
    if points_outside(words):
        return "deictic"
    return "elliptic" if is_elliptic(words) else None
