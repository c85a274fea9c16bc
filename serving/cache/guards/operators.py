"""Operators must be equal: must and can, all and some, more and most, only, at least. Pure."""

import re

from serving.cache.guards.function_words import Language
from serving.cache.guards.question import kind_of
from serving.cache.guards.words import Words

# What a text asserts about necessity; a question of another class has another answer.
_MODALS: dict[Language, dict[str, str]] = {
    "en": {
        "necessity": "must|have to|has to|had to|need to|needs to|required|mandatory|necessary|obliged",
        "advice": "should|ought|supposed to|recommended|advisable|better to|worth",
        "possibility": "can|could|able to|possible|may|might|allowed to",
    },
    "de": {
        "necessity": "muss|müssen|musst|nötig|notwendig|erforderlich|pflicht|brauche|braucht",
        "advice": "soll|sollte|sollten|sollen|empfohlen|ratsam",
        "possibility": "kann|können|kannst|könnte|möglich|darf|dürfen|lässt",
    },
    "fr": {
        "necessity": "dois|doit|doivent|devons|faut|obligatoire|nécessaire|obligé",
        "advice": "devrait|devrais|devraient|conseillé|recommandé",
        "possibility": "peut|peux|peuvent|pouvez|pourrait|possible|puis",
    },
    "es": {
        "necessity": "debo|debe|deben|tengo que|tiene que|hay que|necesario|obligatorio|necesito",
        "advice": "debería|deberían|conviene|recomendable|aconsejable",
        "possibility": "puedo|puede|pueden|puedes|podría|posible|se puede",
    },
}
_QUANTIFIERS: dict[Language, dict[str, str]] = {
    "en": {
        "all": "all|every|each|always|everyone|everything|everybody|entire|whole|completely|fully",
        "some": "sometimes|partly|partially|occasionally|several|few|certain|are some|do some|is some|"
        "can some|have some",
        "most": "most|mostly|usually|majority", "least": "least|fewest|minority",
        "more": "more|additional|extra", "less": "less|fewer",
        "only": "only|just|solely|exclusively|alone", "also": "also|too|even|besides",
        "both": "both", "either": "either", "bound": "at least|at most|up to|no more than|minimum|maximum",
        "equal": "equal|same", "almost": "almost|nearly",
        "again": "again|still|already|yet|anymore", "often": "often|frequently|regularly",
        "other": "other|another|else|different|alternative|alternatives",
        "if": "if|unless|whether", "together": "together|separately",
    },
    "de": {
        "all": "alle|allen|jeder|jede|jedes|jeden|immer|ganz|ganze|sämtliche|vollständig",
        "some": "einige|einigen|manche|manchen|manchmal|teilweise|ein paar|wenige",
        "most": "meisten|meiste|meistens", "least": "wenigsten|geringsten",
        "more": "mehr|zusätzlich", "less": "weniger",
        "only": "nur|ausschließlich|allein|lediglich", "also": "auch|sogar",
        "both": "beide|beiden", "either": "entweder",
        "bound": "mindestens|höchstens|maximal|minimal", "again": "wieder|noch|schon|bereits",
        "often": "oft|häufig", "other": "andere|anderen|anderer|alternativen",
    },
    "fr": {
        "all": "tous|toutes|toute|tout|chaque|toujours|entièrement|complètement",
        "some": "quelques|certains|certaines|parfois|plusieurs|partiellement",
        "most": "plupart|majorité", "more": "plus", "less": "moins",
        "only": "seulement|uniquement|seul|seule|seuls", "also": "aussi|même|également",
        "bound": "au moins|au plus|maximum|minimum", "again": "encore|déjà|à nouveau",
        "often": "souvent", "other": "autre|autres",
    },
    "es": {
        "all": "todos|todas|toda|todo|cada|siempre|completamente",
        "some": "algunos|algunas|algún|alguna|varios|varias|ciertos|ciertas|parcialmente|unos pocos|a veces",
        "most": "mayoría", "more": "más", "less": "menos",
        "only": "solo|sólo|solamente|únicamente", "also": "también|incluso",
        "bound": "al menos|como máximo|máximo|mínimo", "both": "ambos|ambas",
        "again": "otra vez|todavía|aún|ya", "often": "menudo", "other": "otro|otra|otros|otras",
    },
}  # fmt: skip
# The pronouns before which "can" only makes a question polite.
_POLITE = ("can you", "could you", "kannst du", "können sie", "pouvez vous", "peux tu", "puedes")


def _spaced(
    table: dict[Language, dict[str, str]],
) -> dict[Language, list[tuple[str, tuple[str, ...]]]]:
    return {
        code: [
            (name, tuple(f" {phrase} " for phrase in phrases.split("|")))
            for name, phrases in classes.items()
        ]
        for code, classes in table.items()
    }


_MODAL_CLASSES, _QUANTIFIER_CLASSES = _spaced(_MODALS), _spaced(_QUANTIFIERS)


def compare_modals(a: Words, b: Words) -> str | None:
    """Return `modals` where necessity, advice or possibility differ.

    "How should I" and "how can I" ask what "how do I" asks, and "which may I" what "which do I":
    there a modal in one text only is let through, except necessity, which asks for a bound.
    """
    first, second = _modals(a), _modals(b)
    if first == second:
        return None
    kinds = {kind_of(a), kind_of(b)}
    if kinds & {"polar", "none"}:
        return "modals"
    if not first or not second:
        (left,) = (first | second) if len(first | second) == 1 else (None,)
        may_lack = {"advice", "possibility"}
        return None if left in may_lack or kinds <= _MEASURED else "modals"
    return None if kinds == {"manner"} and not (first | second) & {"necessity"} else "modals"


# Kinds of question whose answer is a measure or a procedure.
_MEASURED = frozenset({"manner", "duration", "rate", "amount", "number", "price"})


def compare_quantifiers(a: Words, b: Words) -> str | None:
    """Return `quantifiers` where words for how much, how many and how often differ in class."""
    return None if _quantifiers(a) == _quantifiers(b) else "quantifiers"


def _quantifiers(words: Words) -> frozenset[str]:
    line = words.line
    if words.language == "en":
        for phrase, plain in _ASKED_SETS:
            line = phrase.sub(plain, line)
    found = _classes(line, words.language, _QUANTIFIER_CLASSES)
    if words.language == "en" and kind_of(words) in ("manner", "place") and " than " not in line:
        # "How can I become more confident": more than now, and so what is asked without it.
        found -= {"more"}
    return found


# "What are some X", "which are all the X", "what are the different X" ask for X: a determiner of
# what is asked for is no quantifier.
_ASKED_SETS = (
    (
        re.compile(r" (what|which) (are|is) (?:some|all|few|several|certain|any)(?: of)? "),
        r" \1 \2 ",
    ),
    (re.compile(r" (what|which) some "), r" \1 "),
    (re.compile(r" why (do|are) some "), r" why \1 "),
    (re.compile(r" (?:different|various) (?=\w+s )"), " "),
    (re.compile(r" at all $"), " "),
    (re.compile(r" (learn|know|read|find out|understand) more about "), r" \1 about "),
    (re.compile(r" if (?:any|ever|yes|so|not) "), " "),
    (re.compile(r" (know|tell|check|find out|see|sure) (?:if|whether) "), r" \1 "),
)


def _modals(words: Words) -> frozenset[str]:
    found = _classes(words.line, words.language, _MODAL_CLASSES)
    # "Can you tell me" only makes a question polite.
    return found - {"possibility"} if words.has_any(*_POLITE) else found


def _classes(
    line: str, language: Language | None, table: dict[Language, list[tuple[str, tuple[str, ...]]]]
) -> frozenset[str]:
    if language is None:
        return frozenset()
    return frozenset(
        name for name, phrases in table[language] if any(phrase in line for phrase in phrases)
    )
