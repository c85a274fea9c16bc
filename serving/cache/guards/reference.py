"""Questions whose meaning is outside their text, and texts in another language or script. Pure."""

import re
import unicodedata

from serving.cache.guards.words import Words

# What a question points at: a picture, a text above or below, something said before.
_POINTS = re.compile(
    r"\b(?:(?:this|these) (?!way\b|kind\b|is\b|are\b|was\b)\w+|(?:like|as) (?:this|these)\b|th(?:is|e|ese|at) (?:\w+ )?(?:picture|image|photo|screenshot|figure|diagram|graph|chart|"
    r"table|video|program|code|snippet|passage|paragraph|poem|text|sentence|sentences|article|document|"
    r"file|email|message|list|data|link|attachment|map|song) ?(?:below|above|attached|here|shown)?(?=\W*$)|"
    r"this (?:\w+ )?(?:picture|image|photo|screenshot|figure|diagram|graph|chart|table|video|program|"
    r"code|snippet|passage|paragraph|poem|text|sentence|article|document|file|email|message|list)|"
    r"(?:shown|given|listed|mentioned|described|attached|pasted|written) (?:above|below|here)|"
    r"(?:the )?(?:above|below|following|aforementioned|attached|former|latter)\b(?= \w)|"
    r"(?:see|as|from) (?:above|below)|below\W*$|above\W*$|"
    r"(?:dieses|diesem|diesen|dieser|diese|das) (?:bild|foto|text|programm|code|satz|tabelle|artikel|"
    r"dokument|video|diagramm|liste|gedicht)\b|folgende[nrms]?|obige[nrms]?|untenstehende[nrms]?|"
    r"(?:cette|ce|cet|ces) (?:image|photo|texte|programme|code|phrase|tableau|article|document|vidéo|"
    r"graphique|liste|poème)|(?:ci-dessous|ci-dessus|ci-joint|suivante?s?)\b|"
    r"(?:esta|este|estas|estos) (?:imagen|foto|texto|programa|código|frase|tabla|artículo|documento|"
    r"vídeo|gráfico|lista|poema)|siguientes?\b|(?:de )?(?:arriba|abajo)\W*$|adjunt[oa])",
    re.IGNORECASE,
)
# Pronouns whose noun is in an earlier turn, where no noun comes before them.
_PRONOUNS = frozenset(
    """
it this that these those he she they him her them his its their one ones here there
es dies dieses dieser sie er ihn ihm ihnen hier dort damit davon dazu
il elle ils elles cela ça celui celle ceci lui eux ici là y en
él ella ellos ellas eso esto este esta aquello aquí allí lo la
""".split()
)
_EXPLETIVE = re.compile(
    r"\b(?:it|es|il|there)\b(?= (?:is|was|does|do|are|gibt|regnet|geht|y|est|faut)\b)|"
    r"\b(?:is|does|was|did|are|will|ist|gibt|war|wird) (?:it|there|es|sie|er)\b(?: that\b)?|"
    r"\b(?:make it|do it|take it|es gibt|gibt es|kommt es|geht es|"
    r"(?:is|was) it that|est il|est-il|y a|il y|peut on|a t il)\b",
    re.IGNORECASE,
)
_FOLLOW_UP = re.compile(
    r"^\W*(?:and|but|or|so|also|then|what about|how about|what if|why not|und|aber|oder|also|was ist mit|"
    r"wie wäre|et|mais|ou|alors|qu'en est|et si|y|pero|o|entonces|qué tal|qué hay de|"
    r"same|again|continue|go on|more|another|yes|no|ok|okay|thanks|weiter|nochmal|encore|otra)\b",
    re.IGNORECASE,
)


def compare_reference(a: Words, b: Words) -> str | None:
    """Return `deictic` where a text points at something outside it."""
    return "deictic" if points_outside(a) or points_outside(b) else None


def compare_language(a: Words, b: Words) -> str | None:
    """Return `language` where languages or scripts differ, or a language is not known."""
    known = a.language is not None and a.language == b.language
    return None if known and _scripts(a) == _scripts(b) else "language"


def points_outside(words: Words) -> bool:
    """Return whether a text points at something that is not in it."""
    return bool(_POINTS.search(words.plain))


def is_elliptic(words: Words) -> bool:
    """Return whether a text is no whole question: a follow-up, or a pronoun without its noun."""
    if _FOLLOW_UP.match(words.plain) or len(words.content) == 0:
        return True
    rest = Words(_EXPLETIVE.sub(" ", words.plain))
    first = next(iter(rest.content), len(rest.lower))
    pronouns = {"this", "that", "these", "those"} if words.language == "en" else set()
    # A determiner's noun comes at once: "this city" points outside the text as well.
    return any(word in _PRONOUNS - _determiners(words) or word in pronouns
               for word in rest.lower[:first])  # fmt: skip


def _determiners(words: Words) -> frozenset[str]:
    common = {"one", "his", "her", "its", "their", "la", "lo", "y", "en", "esta", "este", "er", "es",
              "sie", "il", "there", "here"}  # fmt: skip
    return frozenset(common)


def _scripts(words: Words) -> frozenset[str]:
    return frozenset(
        unicodedata.name(character, "UNKNOWN").split(" ", 1)[0]
        for character in words.plain
        if character.isalpha()
    ) - {"MODIFIER", "FEMININE", "MASCULINE"}
