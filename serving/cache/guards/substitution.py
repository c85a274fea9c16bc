"""A word in place of another, where nothing says that they mean the same. Pure."""

from serving.cache.guards.function_words import Language
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
population people live inhabitant
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
""",
}


def _sets(lines: str, language: Language) -> tuple[frozenset[str], ...]:
    return tuple(
        frozenset(stem(word, language) for word in line.split())
        for line in lines.strip().splitlines()
    )


_SETS = {code: _sets(lines, code) for code, lines in _SYNONYMS.items()}


def compare_substitution(a: Words, b: Words) -> str | None:
    """Return `substitution` where each text has a word that nothing in the other stands for.

    Where one text only has words more, another guard must say that they matter.
    """
    language = a.language
    if language is None or language != b.language:
        return None
    left = {a.stems[n] for n in a.content if not a.stems[n][0].isdigit()} - set(b.stems)
    right = {b.stems[n] for n in b.content if not b.stems[n][0].isdigit()} - set(a.stems)
    for synonyms in _SETS[language]:
        if left & synonyms and right & synonyms:
            left, right = left - synonyms, right - synonyms
    return "substitution" if left and right else None
