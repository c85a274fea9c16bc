"""Finds the form in which a client wants one label: an object with one key, or a number.

`{"sentiment": "positive|negative"}` and `0 = negative, 1 = positive` ask for no more than a label.
The form is applied to the client's word for each label, so the answer has it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from serving.contracts.task_spec import ClassificationSpec
from serving.routing.labels import label_names, label_pattern

_KEY = (
    r"(?:sentiments?|label|topic|category|class|polarity|mood|tone|answer|result|output|section|"
    r"news_?topic|stimmung|thema|kategorie|klasse|rubrik|antwort|ergebnis|tonalität|polarität|"
    r"thème|theme|catégorie|categorie|rubrique|sujet|classe|réponse|polarité|tonalité|étiquette|"
    r"sentimiento|tema|categoría|categoria|clase|sección|etiqueta|respuesta|polaridad)"
)
_FORMAT = (
    # Single words, and few: a text of nothing else would be read to its end from each word.
    r"(?:(?:in|as|with|like|au|im|en|als|par|sous|mit|con|avec|an?|eine?|eine[mn]|une?|una|valid|"
    r"gültiges|this|the|following|folgende[smnr]?|le|el|la|den|dem|das|der|strict|de|of|form|"
    r"forme|forma|suivant|siguiente|only|nur|solo|seulement|uniquement) ){0,8}"
    r"(?:json|formato?)[ -]?(?:formato?|objec?t[os]?|objekt|objet)?"
    r"(?: (?:like|wie|comme|como|of the form|der form|de la forme|de la forma|exactly|such as))?"
    r"[ ]?[:,]?[ ]*"
)
# `{"label": …}`: one key, and no further pair.
_OBJECT = re.compile(
    rf"(?P<format>\b{_FORMAT})?\{{\s{{0,9}}[\"'“]?(?P<key>{_KEY})[\"'”]?\s{{0,9}}:\s{{0,9}}"
    r"(?P<value>[^{}:]{1,160}?)\s{0,9}\}",
    re.IGNORECASE,
)
_NAMED_KEY = re.compile(
    rf"\b{_FORMAT}(?:(?:with|mit|avec|con|using|und|and|et|y|the|a|an|one|single|la|el|una?|une|le|"
    r"dem|der|einem|einzigen|seule?|sola|only) ){0,5}"
    rf"(?:(?:key|schlüssel|feld|field|clé|champ|clave|campo)[ ]?:? ?[\"'“«` ]*(?P<key>{_KEY})"
    rf"[\"'”»`]*|[\"'“«`](?P<first>{_KEY})[\"'”»`] (?:key|field|schlüssel|feld))",
    re.IGNORECASE,
)
_ANSWER_FORMAT = re.compile(
    r"\b(?:(?:answer|output|response|reply)[ -]format|antwortformat|ausgabeformat|"
    r"format (?:de (?:réponse|sortie)|attendu)|formato de (?:respuesta|salida))\b",
    re.IGNORECASE,
)


def _answer(found: re.Match[str]) -> str:
    words = found[0].lower()
    for language, word in (("antwort", "Antwort"), ("ausgabe", "Antwort"), ("de", "réponse")):
        if language in words.split() or words.startswith(language):
            return "respuesta" if words.startswith("formato") else word
    return "answer"


_NUMBER_WANTED = re.compile(
    r"\b(?:the |its |corresponding |die |der |le |la |el |correspondant |entsprechenden? ){0,3}"
    r"(?:numbers?|digits?|zahl|ziffer|nummer|chiffre|numéro|número|cifra)\b",
    re.IGNORECASE,
)
_MARK = re.compile(rf"[{{=]|json|{_NUMBER_WANTED.pattern}", re.IGNORECASE)
# Where a number is asked for, each of these may stand between it and its label.
_BETWEEN, _BETWEEN_WANTED = r"\s*=\s*", r"\s*(?:[=:).\u2013-]|->|→)\s*"
_NO_VALUE = re.compile(r"[\s\"'“”<>.…|]*(?:[\w ]{1,20})?[\s\"'“”<>.…|]*")


def may_name_form(instruction: str) -> bool:
    """Return whether an instruction holds a mark of a form; without one, none is looked for."""
    return _MARK.search(instruction) is not None


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """key: of the object that holds the label; None for none. digits: by label, or empty."""

    key: str | None
    digits: Mapping[str, str]

    def words(
        self, named: Mapping[str, str] | None, spec: ClassificationSpec
    ) -> Mapping[str, str] | None:
        """Return the client's word for each label, in this form. named: without it."""
        words = self.digits or named
        if self.key is None:
            return words
        words = words or {label.name: label.name for label in spec.labels}
        return {
            name: json.dumps({self.key: word}, ensure_ascii=False) for name, word in words.items()
        }


def answer_form(instruction: str, spec: ClassificationSpec) -> tuple[str, AnswerForm] | None:
    """Return an instruction without the form that it asks for, and the form; None for no form."""
    key, text = None, instruction
    objects = list(_OBJECT.finditer(text))
    keyed = None if objects else _NAMED_KEY.search(text)
    if len(objects) == 1:
        (found,) = objects
        key, value = found["key"], found["value"]
        pattern = label_pattern(spec)
        holds_labels = pattern is not None and pattern.search(value) is not None
        if not holds_labels and _NO_VALUE.fullmatch(value) is None:
            return None
        text = f"{text[: found.start()]}{value if holds_labels else 'label'}{text[found.end() :]}"
        text = re.sub(r"\bjson\b", "label", text, flags=re.IGNORECASE)
    elif keyed is not None and "json" in text.lower():
        key = keyed["key"] or keyed["first"]
        text = f"{text[: keyed.start()]}label{text[keyed.end() :]}"
    if key is not None:
        text = _ANSWER_FORMAT.sub(_answer, text)
    digits, text = _numbered(text, spec)
    return None if key is None and not digits else (text, AnswerForm(key, digits))


def _numbered(text: str, spec: ClassificationSpec) -> tuple[Mapping[str, str], str]:
    """Return the number of each label and the text without them; nothing where they clash."""
    pattern, names = label_pattern(spec), label_names(spec)
    if pattern is None:
        return {}, text
    between = _BETWEEN if _NUMBER_WANTED.search(text) is None else _BETWEEN_WANTED
    digits: dict[str, str] = {}
    pieces, position = [], 0
    for match in pattern.finditer(text):
        before = re.search(rf"(?<![\w.])(\d){between}[\"']?$", text[position : match.start()])
        after = re.match(rf"[\"']?{between}(\d)(?![\w.])", text[match.end() :])
        if before is None and after is None:
            continue
        name = names[(match.lastindex or 1) - 1]
        number = (before or after)[1]  # type: ignore[index]
        if name in digits or number in digits.values():
            return {}, text
        digits[name] = number
        start = position + before.start() if before else match.start()
        pieces += [text[position:start], " , ", match.group()]
        # "World = 1" has its number behind; in "1 = World 2 = Sports" the next label's follows.
        position = match.end() + (after.end() if after and before is None else 0)
    if len(digits) < 2:
        return {}, text
    return digits, _NUMBER_WANTED.sub("label", "".join((*pieces, text[position:])))
