"""A word in place of another, where nothing says that they mean the same. Pure."""

from serving.cache.guards.closed_classes import is_relation
from serving.cache.guards.function_words import Language
from serving.cache.guards.numbers import is_number
from serving.cache.guards.words import Words, stem

# Words that mean the same in most questions; one set in each line, first forms only.
_SYNONYMS: dict[Language, str] = {
    "en": """
way method approach manner technique
good great best
make create build produce
get obtain receive acquire
fix repair solve resolve mend troubleshoot
change modify alter edit
start begin commence
end finish
buy purchase
help assist
big large
quick fast quickly
reduce decrease lower lessen cut
increase raise boost improve
explain describe tell define clarify
show display
mean meaning definition signify
need require
use utilize utilise
lose drop shed
learn study master
choose select pick
find locate discover
cost price
car automobile
movie film
phone smartphone cellphone
reset recover restore
delete remove erase
job career work
difference distinction differ
benefit advantage
disadvantage drawback downside
reason cause
sign symptom
effect impact consequence
big large
kid child children
person people human
photo picture image
doctor physician
rid remove
prevent avoid
keep maintain
store keep
happen occur
important essential significant
idea suggestion tip advice
step instruction
improve enhance better
example instance
clean wash
compute calculate determine
convert turn transform change
join merge combine concatenate
check verify test
purpose function role
bill invoice
write wrote written author
like love prefer enjoy
opinion view thought
airplane plane aeroplane aircraft
picture pic image photo
series show
convert transform
select choose
switch change
population people live inhabitant
big large size
tall high height
old age
fast quick speed
long length
long duration
heavy weight weigh
deep depth
wide width
hot temperature
far distance
""",
    "de": """
ändern wechseln
auto wagen
passwort kennwort
kaufen erwerben
bekommen erhalten kriegen
anfangen beginnen starten
erklären beschreiben
bedeuten bedeutung
löschen entfernen
rechner computer
handy smartphone mobiltelefon
schnell rasch
funktioniert funktionieren
machen tun
unterschied unterscheiden
schrieb geschrieben autor
einwohner menschen bevölkerung einwohnerzahl
preis kosten kostet
höhe hoch
länge lang
größe groß
alt alter
schnell geschwindigkeit
schwer gewicht wiegt
dauert dauer
""",
    "fr": """
changer modifier
voiture automobile
expliquer décrire
signifier signification
supprimer effacer
obtenir avoir
ordinateur pc
commencer débuter
trouver chercher
écrit auteur
habitants population
prix coûte coût
hauteur mesure
rédiger écrire
fonctionner marcher
pèse poids
dure durée
""",
    "es": """
cambiar modificar
coche carro automóvil
explicar describir
significar significado
eliminar borrar
obtener conseguir
ordenador computadora
empezar comenzar
contraseña clave
escribió autor
habitantes población
precio cuesta costo coste
pesa peso
mide altura
dura duración
""",
}


def _sets(lines: str, language: Language) -> tuple[frozenset[str], ...]:
    return tuple(
        frozenset(stem(word, language) for word in line.split())
        for line in lines.strip().splitlines()
    )


def _synonyms(lines: str, language: Language) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for group in _sets(lines, language):
        for member in group:
            found[member] = found.get(member, frozenset()) | group
    return found


_STANDS_FOR = {code: _synonyms(lines, code) for code, lines in _SYNONYMS.items()}


def are_synonyms(first: str, second: str, language: Language) -> bool:
    """Return whether two words in lower case mean the same in most questions."""
    one, other = stem(first, language), stem(second, language)
    return other in _STANDS_FOR[language].get(one, ())


# Endings that make another kind of word of a root. Not those of persons: employer, employee.
_DERIVED = ("ization", "ations", "ating", "ated", "ates", "ate", "ation", "ition", "ments", "ment", "ness", "ances", "ance", "ence", "ancy",
            "ities", "ity", "ously", "ous", "ively", "ive", "ally", "al", "fully", "ful", "ly", "ion",
            "ions", "ant", "ent", "ing", "ed", "es", "s", "e")  # fmt: skip
_SHORTEST_ROOT = 5


def compare_substitution(a: Words, b: Words) -> str | None:
    """Return `substitution` where each text has a word that nothing in the other stands for."""
    left, right = _unmatched(a, b), _unmatched(b, a)
    if left and right:
        return "substitution"
    # Finding a writer is not being one: two light verbs differ, one is a filler.
    return "substitution" if _light_verbs(a, b) and _light_verbs(b, a) else None


def compare_modifiers(a: Words, b: Words) -> str | None:
    """Return `modifier` where one text has a word that nothing in the other stands for.

    Brown rice is another thing than rice, and vehicle tyres are tyres: the caller lets such a pair
    through at a higher similarity.
    """
    return "modifier" if _unmatched(a, b) or _unmatched(b, a) else None


_LIGHT_VERBS: dict[Language, frozenset[str]] = {
    "en": frozenset("be become get got take use make give find go try start begin help".split()),
    "de": frozenset("bekommen bekomme machen mache macht erstellen erstelle".split()),
    "fr": frozenset("avoir obtenir faire".split()),
    "es": frozenset("obtener tener hacer".split()),
}


def _light_verbs(a: Words, b: Words) -> frozenset[str]:
    """Return the light verbs of one text that no word of the other stands for."""
    language = a.language
    if language is None or language != b.language:
        return frozenset()
    stems = frozenset(b.stems)
    stands = stems.union(*(_STANDS_FOR[language].get(name, ()) for name in stems))
    return frozenset(
        name
        for name, word in zip(a.stems, a.lower, strict=True)
        if word in _LIGHT_VERBS[language] and name not in stands
    )


def _unmatched(a: Words, b: Words) -> set[str]:
    """Return the weighty words of one text that no word of the other stands for."""
    language = a.language
    if language is None or language != b.language:
        return set()
    # A hyphen joins what may be written apart: Dum-Dum.
    stems = frozenset(b.stems) | {
        part for word in b.lower if "-" in word for part in word.split("-")
    }
    stands = stems.union(*(_STANDS_FOR[language].get(name, ()) for name in stems))
    roots = {_root(word) for word in b.lower} if language == "en" else set()
    return {
        a.stems[n]
        for n in a.weighty
        if a.stems[n] not in stands
        and not ("-" in a.lower[n] and stems.issuperset(a.lower[n].split("-")))
        and not is_number(a.lower[n])
        # Prepositions and the like are compared by themselves.
        and not is_relation(a.lower[n], language)
        and not (language == "en" and _root(a.lower[n]) in roots)
    }


def _root(word: str) -> str:
    for ending in _DERIVED:
        if word.endswith(ending) and len(word) - len(ending) >= _SHORTEST_ROOT:
            return word[: -len(ending)]
    return word
