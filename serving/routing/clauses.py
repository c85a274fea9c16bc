"""Splits an instruction into clauses and turns a clause into features.

Names of labels, languages and the text's place become tokens, so that what is learned about one
label set or language holds for all.
"""

import re
import unicodedata
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from serving.contracts.task_spec import TaskSpec, TranslationSpec
from serving.routing.labels import label_names, label_pattern
from serving.routing.languages import replaced_languages
from serving.routing.payload import GAP

BUCKETS = 1 << 15
_TEXT = " §text "
_MARKS = r"[\s\"'`«»“”„‚‘’()\[\]{},/|;*•=-]*"  # noqa: RUF001
# Between two labels of a list: marks, a conjunction, and words that change no label, such as an
# article, a question word ("which people, which places") or a hedge ("rather positive, rather
# negative"). In brackets a label says what the words before it mean: "happy (positive), unhappy
# (negative)".
_JOINT = re.compile(
    rf"{_MARKS}(?:\b(?:or|and|oder|und|ou|et|o|y|u|e|als)\b)?{_MARKS}"
    r"(?:\b(?:an?|the|any|all|each|every|jede[nrs]?|chaque|cada|of|eine?|ein|un|une|una|der|die|das|den|von|alle|les?|la|las|los|el|des?|du|d|l|tous|toutes|"
    r"todas?|todos|which|what|welche[rsn]?|quels?|quelles?|qué|rather|leans?|something|is|as|comme|como|"
    rf"eher|etwas|ist|plutôt|quelque chose de|est|más bien|algo|es)\b{_MARKS}){{0,2}}"
    r"|\)[,;/|]?\s*(?:(?:or|and|oder|und|ou|et|o|y)\s+)?[^()§\n.:!?]{1,40}\(",
    re.IGNORECASE,
)
# "People, places and other named things": the rest is a type, too.
_REST = re.compile(
    r"§ner\s*,?\s*(?:or|and|oder|und|ou|et|o|y)?\s*(?:any|all|alles?|tout(?:es)?|todo lo)?\s*"
    r"\b(?:others?|andere[nrsm]?|sonstige[nrsm]?|weitere[nrsm]?|autres?|otr[oa]s|demás)\b"
    r"(?:\s+(?:named|proper|names?|nouns?|things?|entities|eigennamen|namen|dinge[ns]?|entitäten|"
    r"noms?|propres?|choses?|entités|nommées|nombres?|propios?|cosas?|entidades|nombradas)\b)*",
    re.IGNORECASE,
)
# "1) World 2) Sports": the number before a label.
_ENUMERATOR = r"(?<![\w.])\(?(?:[1-9]|[a-h])[.)]\s*"
_TOKEN = re.compile(r"§\w+|[^\W\d_]+|\d+|:")
# After the text, an order of its own or a cue for the answer ("Sentiment:") begins a clause.
_AFTER_TEXT = re.compile(r"\0[ \t]+(?=[A-ZÄÖÜÉÀÈ]|[¿¡(*#^]|[^.!?\n\0]{1,40}:\s*$)")
_BREAK = re.compile(r"\n+|(?<=[.!?;])[\s\"'”»)]+|[.;](?=\s|$)|\s[-–—]\s")  # noqa: RUF001


_KNOWN_INSTRUCTIONS = 64


class Normaliser:
    """Puts tokens in place of label lists, languages and the text.

    specs: of the tasks that are served.
    """

    def __init__(self, specs: Mapping[str, TaskSpec]) -> None:
        self._lists = [
            (
                name,
                pattern,
                re.compile(_ENUMERATOR + rf"(?={pattern.pattern})", re.I),
                label_names(spec),
            )
            for name, spec in sorted(specs.items())
            if (pattern := label_pattern(spec)) is not None
        ]
        self._offered: Collection[str] = {
            code
            for spec in specs.values()
            if isinstance(spec, TranslationSpec)
            for code in spec.languages
        }
        # A request's readings share their instructions.
        self._known = lru_cache(maxsize=_KNOWN_INSTRUCTIONS)(self._clauses)

    def clauses(self, instruction: str) -> list[str]:
        """Return an instruction's clauses, normalised, in order."""
        return list(self._known(instruction))

    def _clauses(self, instruction: str) -> list[str]:
        text = unicodedata.normalize("NFKC", instruction.replace(GAP.strip(), "\0"))
        text = _AFTER_TEXT.sub("\0\n", text)
        for task, pattern, enumerated, names in self._lists:
            text = enumerated.sub(" , ", text)
            text = _listed(text, pattern, names, f" §{task} ")
        text = _REST.sub("§ner ", text)
        text = replaced_languages(text, self._offered, " §lang ", " §other ")
        text = text.replace("\0", _TEXT).lower()
        parts = (" ".join(_TOKEN.findall(part)) for part in _BREAK.split(text))
        return [part for part in parts if not _asks_nothing(part)]


# Names of the text or of the answer, which ask for nothing.
_FIELD = re.compile(
    r"(?:the |der |die |das |le |la |el )?(?:text|review|tweet|post|comment|message|sentence|"
    r"article|"
    r"document|headline|passage|paragraph|input|description|e mail|email|feedback|news|story|"
    r"snippet|"
    r"statement|quote|content|item|data|source|nachricht|satz|bewertung|rezension|kommentar|"
    r"artikel|"
    r"meldung|eingabe|dokument|absatz|beitrag|texte|phrase|avis|commentaire|dépêche|entrée|extrait|"
    r"texto|frase|reseña|comentario|noticia|artículo|mensaje|entrada|opinión|documento|label|"
    r"answer|"
    r"output|response|result|labels|options|categories|classes|task|instruction|antwort|ausgabe|"
    r"ergebnis|aufgabe|kategorien|klassen|réponse|sortie|résultat|étiquette|tâche|catégories|"
    r"respuesta|salida|resultado|etiqueta|tarea|categorías|opciones) ?:?(?: §text)?"
)
_PERSONA = re.compile(
    r"(?:you are|you re|act as|imagine you are|work as|du bist|sie sind|agiere als|tu es|"
    r"vous êtes|agis comme|eres|usted es|actúa como)\b"
    r"(?!.*(?:translat|tradu|übersetz|dolmetsch|interpret).*§lang)"
    r"(?!.*§lang.*(?:translat|tradu|übersetz|dolmetsch|interpret))(?!.*\b(?:that|who|which|der|"
    r"die|das|qui|que) (?:label|classif|return|output|sort|"
    r"assign|tag|extract|answer|klassifi|ordne|class|étiquet|renvo|clasific|etiquet|devuelv)).*"
)


def without_personas(clauses: Sequence[str]) -> list[str]:
    """Return the clauses that say what to do, not only who does it ("you are a translator")."""
    return [clause for clause in clauses if not _PERSONA.fullmatch(clause)]


def _asks_nothing(clause: str) -> bool:
    """Return whether a clause is empty, the text alone, or only names it or the answer."""
    return clause.strip(": ") in {"", _TEXT.strip()} or _FIELD.fullmatch(clause) is not None


def _listed(text: str, pattern: re.Pattern[str], names: Sequence[str], token: str) -> str:
    """Put a token in place of each list of two or more of a task's labels."""
    found = list(pattern.finditer(text))
    runs: list[list[re.Match[str]]] = []
    for match in found:
        if runs and _JOINT.fullmatch(text, runs[-1][-1].end(), match.start()):
            runs[-1].append(match)
        else:
            runs.append([match])
    pieces, position = [], 0
    for run in runs:
        if len({names[(match.lastindex or 1) - 1] for match in run}) > 1:
            pieces += [text[position : run[0].start()], token]
            position = run[-1].end()
    return "".join((*pieces, text[position:]))


def known_words(clauses: Sequence[str], least: int) -> frozenset[int]:
    """Return the hashes of the words that occur at least this often."""
    counts: dict[int, int] = {}
    for clause in clauses:
        for word in clause.split():
            key = _hashed(word)
            counts[key] = counts.get(key, 0) + 1
    return frozenset(key for key, count in counts.items() if count >= least)


def features(clause: str, known: Collection[int]) -> NDArray[np.int64]:
    """Return the buckets of a clause's features, each once."""
    words = clause.split()
    # Not _hashed: 500 calls of it a request took an eighth of the decision.
    crc32 = zlib.crc32
    found = {crc32(name.encode()) % BUCKETS for name in _named(words, known)}
    found.update(*(_character_buckets(word) for word in words if word[0] != "§"))
    return np.fromiter(sorted(found), dtype=np.int64)


def _hashed(name: str) -> int:
    return zlib.crc32(name.encode())


def _named(words: Sequence[str], known: Collection[int]) -> Iterator[str]:
    masked = [word if _hashed(word) in known or word[0] == "§" else "¿" for word in words]
    unknown = [number for number, word in enumerate(masked) if word == "¿"]
    yield f"n{min(len(words), 12) // 2}"
    yield f"u{min(len(unknown), 4)}"
    if unknown:
        yield f"share{5 * len(unknown) // len(words)}"
        yield f"last{min(len(words) - 1 - unknown[-1], 3)}"
    row = ["<", *masked, ">"]
    for size in (1, 2, 3):
        for start in range(len(row) - size + 1):
            yield f"w{' '.join(row[start : start + size])}"
    for start in range(len(row) - 2):
        yield f"s{row[start]} {row[start + 2]}"
    content = [word for word in masked if word != "¿"]
    for one in dict.fromkeys(word for word in content if word[0] == "§"):
        for other in dict.fromkeys(content):
            yield f"p{one} {other}"


# Two thirds of a clause's features are of its words' characters, and words repeat.
@lru_cache(maxsize=8192)
def _character_buckets(word: str) -> frozenset[int]:
    framed = f"<{word}>"
    return frozenset(
        _hashed(f"c{framed[start : start + size]}") % BUCKETS
        for size in (3, 4, 5)
        for start in range(len(framed) - size + 1)
    )
