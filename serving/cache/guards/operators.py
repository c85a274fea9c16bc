"""Operators must be equal: must and can, all and some, more and most, only, at least. Pure."""

from serving.cache.guards.function_words import Language
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
# Words that weigh nothing in "how can I", "is there any".
_HOW: dict[Language, tuple[str, ...]] = {
    "en": ("how", "what", "where", "which", "who", "when", "why"),
    "de": ("wie", "was", "wo", "welche", "welcher", "welches", "wer", "wann", "warum", "wozu"),
    "fr": ("comment", "quel", "quelle", "quels", "quelles", "où", "que", "quand", "pourquoi"),
    "es": ("cómo", "qué", "cuál", "cuáles", "dónde", "cuándo", "quién", "por"),
}
# The pronouns before which "can" only makes a question polite.
_POLITE = ("can you", "could you", "kannst du", "können sie", "pouvez vous", "peux tu", "puedes")


def compare_modals(a: Words, b: Words) -> str | None:
    """Return `modals` where necessity, advice or possibility differ."""
    first, second = _modals(a), _modals(b)
    return None if first == second else "modals"


def compare_quantifiers(a: Words, b: Words) -> str | None:
    """Return `quantifiers` where words for how much, how many and how often differ in class."""
    return None if _classes(a, _QUANTIFIERS) == _classes(b, _QUANTIFIERS) else "quantifiers"


def _modals(words: Words) -> frozenset[str]:
    found = _classes(words, _MODALS)
    language = words.language
    if language is None:
        return found
    # "How can I" asks what "how do I" asks; "can I" is not "do I".
    if words.has_any(*_HOW[language]) or words.has_any(*_POLITE):
        found -= {"possibility"}
    return found


def _classes(words: Words, table: dict[Language, dict[str, str]]) -> frozenset[str]:
    if words.language is None:
        return frozenset()
    return frozenset(
        name
        for name, phrases in table[words.language].items()
        if words.has_any(*phrases.split("|"))
    )
