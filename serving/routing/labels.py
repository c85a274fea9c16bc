"""Finds the labels or entity types that an instruction names, and the client's words for them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from serving.contracts.task_spec import ClassificationSpec, ExtractionSpec, TaskSpec

# Patterns of other words for the built-in tasks' labels, by the label's name in lower case.
_SYNONYMS: Mapping[str, str] = {
    "positive": r"positiv(?:e[snrm]?|o|a|f|i)?s?|positifs?|pos|postive|positve|posative|possitive",
    "negative": r"negativ(?:e[snrm]?|o|a)?s?|n[ée]gati(?:fs?|ves?)|neg|negitive|negitve|neagtive",
    "neutral": r"neutrale?s?|neutraler|neutres?|neutr[oa]s?|neu(?=[\"'”/|])"
    r"|nuetral|netural|neutal|nutral|neutrual",
    "world": r"world(?: news| affairs)|welt|ausland|monde|mundo"
    r"|politics|politik|politique|pol[íi]tica",
    "sports": r"sport|deportes?",
    "business": r"wirtschaft|[ée]conomie|affaires|econom[íi]a|negocios|buisness|bussiness|busines"
    r"|economy|finance|finanzen|finanzas",
    "sci-tech": r"sciences? ?(?:and|&|/|-) ?tech(?:nology)?|wissenschaft ?(?:und|&|/|-) ?technik"
    r"|sciences? ?(?:et|&|/|-) ?(?:technologies?|techniques?|techno?)"
    r"|ciencias? ?(?:y|&|/|-) ?tecnolog[íi]a|tech(?:nology)?|technik|technologies?|tecnolog[íi]a"
    r"|sciences?|wissenschaft|ciencias?",
    "person": r"(?:person|people'?s?) names|personennamen|noms de personnes|nombres de personas"
    r"|persons?|people|personen|leuten?|menschen|personnes?|gens|personas?|gente"
    r"|names of people|per",
    "organization": r"(?:company|organi[sz]ation|org) names|firmennamen|noms d'entreprises"
    r"|nombres de empresas"
    r"|organi[sz]ations?|compan(?:y|ies)|institutions?|organisationen|unternehmen"
    r"|firmen|organizaci(?:ón|ones)|entreprises?|sociétés?|empresas?|compañías?|orgs?|orgas?",
    "location": r"(?:place|location) names|ortsnamen|noms de lieux|nombres de lugares"
    r"|locations?|places?|ort|orten?|lieux?|endroits?|lugar(?:es)?|sitios?"
    r"|localisations?|loc",
    "miscellaneous": r"miscellaneous|misc|other things|sonstiges|divers|misceláneo",
}


@dataclass(frozen=True, slots=True)
class NamedLabels:
    """The labels that an instruction names.

    spelled: the client's own word for each named label, by label. rest: the instruction with a
    space in place of each of these words.
    """

    spelled: Mapping[str, str]
    rest: str


def label_pattern(spec: TaskSpec) -> re.Pattern[str] | None:
    """Return a pattern with one group for each label of a task; None for a task without labels."""
    forms: list[tuple[str, ...]]
    if isinstance(spec, ClassificationSpec):
        forms = [(label.name, label.verbalizer) for label in spec.labels]
    elif isinstance(spec, ExtractionSpec):
        forms = [(entity_type.name,) for entity_type in spec.entity_types]
    else:
        return None
    groups = "|".join(f"({'|'.join(_spellings(names))})" for names in forms)
    return re.compile(rf"(?<!\w)(?:{groups})(?!\w)", re.IGNORECASE)


# "World, politics, business, finance": of a list with both, one is a label of its own.
_OVERLAPS = (
    (r"world|welt|ausland|monde|mundo", r"politics|politik|politique|pol[íi]tica"),
    (
        r"business|wirtschaft|affaires|negocios|[ée]conomie|econom[íi]a|economy",
        r"finance|finanzen|finanzas",
    ),
    (r"business|affaires|negocios", r"[ée]conomie|econom[íi]a|economy|wirtschaft"),
)
_OVERLAPPING = tuple(
    tuple(re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for words in pair) for pair in _OVERLAPS
)


def overlapping_labels(instruction: str, spec: TaskSpec) -> tuple[str, str] | None:
    """Return two words of an instruction that share one label of a task though they differ."""
    if not isinstance(spec, ClassificationSpec) or spec.name != "topic":
        return None
    for first, second in _OVERLAPPING:
        one, other = first.search(instruction), second.search(instruction)
        if one is not None and other is not None:
            return one[0], other[0]
    return None


def label_names(spec: TaskSpec) -> tuple[str, ...]:
    """Return a task's labels or entity types in the order of the pattern's groups."""
    if isinstance(spec, ClassificationSpec):
        return tuple(label.name for label in spec.labels)
    if isinstance(spec, ExtractionSpec):
        return tuple(entity_type.name for entity_type in spec.entity_types)
    return ()


def named_labels(instruction: str, spec: TaskSpec) -> NamedLabels:
    """Return the task's labels that an instruction names."""
    pattern = label_pattern(spec)
    if pattern is None:
        return NamedLabels({}, instruction)
    names = label_names(spec)
    spelled: dict[str, str] = {}
    for match in pattern.finditer(instruction):
        spelled.setdefault(names[(match.lastindex or 1) - 1], match.group())
    return NamedLabels(spelled, pattern.sub(" ", instruction))


def _spellings(names: tuple[str, ...]) -> list[str]:
    # "Sci-Tech" is also written "Sci/Tech", "sci tech" and "SciTech".
    found = [r"[\s/&_-]*".join(map(re.escape, re.findall(r"\w+", name))) for name in names]
    found = [pattern for pattern in dict.fromkeys(found) if pattern]
    synonyms = _SYNONYMS.get(names[0].lower())
    # The longest first: "world news" before "world".
    return [*([synonyms] if synonyms else []), *found] or [re.escape(names[0])]
