"""Finds the translation that an instruction asks for, by the names of languages."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

# Names in English, German, French and Spanish; a stem such as "deutsch" also matches "deutschen".
_NAMES: dict[str, str] = {
    "en": r"english|englsh|enlgish|engish|engl|inglish|englisch\w*|anglais\w*|ingl[eé]s\w*",
    "de": r"german|germn|grman|germen|germna|gemran|geman|deutsch\w*|allemande?s?|alem[aá]n\w*",
    "fr": r"french|frensh|frnch|frech|fench|französisch\w*|franzoesisch\w*|français\w*|francais\w*"
    r"|franc[eé]s\w*",
    "es": r"spanish|spannish|spanis|spansh|spainish|spanich|spanisch\w*"
    r"|espagnole?s?|español\w*|espanol\w*"
    r"|castellano|castilian",
    "it": r"italian|italienisch\w*|italien(?:ne)?s?|italian[oa]",
    "pt": r"portuguese|portugiesisch\w*|portugaise?s?|portugu[eé]s\w*|brazilian",
    "nl": r"dutch|flemish|niederländisch\w*|holländisch\w*|néerlandaise?s?|holand[eé]s\w*",
    "sv": r"swedish|schwedisch\w*|suédoise?s?|sueco",
    "da": r"danish|dänisch\w*|danoise?s?|danés",
    "no": r"norwegian|norwegisch\w*|norvégien(?:ne)?s?|noruego",
    "fi": r"finnish|finnisch\w*|finnoise?s?|finlandés|finés",
    "pl": r"polish|polnisch\w*|polonaise?s?|polaco",
    "cs": r"czech|tschechisch\w*|tchèques?|checo",
    "uk": r"ukrainian|ukrainisch\w*|ukrainien(?:ne)?s?|ucraniano",
    "ru": r"russian|russisch\w*|russes?|ruso",
    "el": r"greek|griechisch\w*|grec(?:que)?s?|griego",
    "tr": r"turkish|türkisch\w*|turc|turque|turco",
    "ar": r"arabic|arabisch\w*|arabes?|árabe",
    "he": r"hebrew|hebräisch\w*|hébreu|hebreo",
    "hi": r"hindi|urdu|bengali|tamil|telugu|punjabi|marathi|gujarati|nepali",
    "zh": r"chinese|mandarin|cantonese|chinesisch\w*|chinoise?s?|chino",
    "ja": r"japanese|japanisch\w*|japonaise?s?|japonés",
    "ko": r"korean|koreanisch\w*|coréen(?:ne)?s?|coreano",
    "vi": r"vietnamese|vietnamesisch\w*|vietnamien(?:ne)?s?|vietnamita",
    "th": r"thai|thailändisch\w*|thaï|tailandés",
    "id": r"indonesian|malay|tagalog|filipino|javanese",
    "fa": r"persian|farsi|dari|pashto|kurdish",
    "sw": r"swahili|zulu|xhosa|yoruba|igbo|hausa|amharic|somali|afrikaans",
    "hu": r"hungarian|ungarisch\w*|hongroise?s?|húngaro",
    "ro": r"romanian|rumänisch\w*|roumaine?s?|rumano|moldovan",
    "bg": r"bulgarian|serbian|croatian|bosnian|slovene|slovenian|slovak|macedonian|albanian",
    "et": r"estonian|latvian|lithuanian|belarusian|georgian|armenian|kazakh|mongolian",
    "la": r"latin|lateinisch\w*|latín|esperanto|klingon|elvish|sanskrit|pinyin|emoji",
    "ca": r"catalan|basque|galician|katalanisch\w*|welsh|irish|gaelic|icelandic|breton",
}
_CODES = "|".join(_NAMES)
_NAME = "|".join(f"(?P<{code}_>{names})" for code, names in _NAMES.items())
# Each name begins with a letter: at any other character the lookahead saves trying all of them.
_MENTION = re.compile(rf"(?<!\w)(?:(?<!-)|(?<=\bto-))(?=\w)(?:{_NAME})(?![\w])", re.IGNORECASE)
_ARROW = re.compile(
    rf"(?<![\w])(?P<source>{_CODES})\s*(?:-?>|→|=>|-to-|[-–/_]|\bto\b|\b2\b)\s*"  # noqa: RUF001
    rf"(?P<target>{_CODES})(?![\w])",
    re.IGNORECASE,
)
# "es a de" on a line of its own: in a sentence these are words of Spanish and French.
_CODES_ALONE = re.compile(
    rf"^[ \t]*(?P<source>{_CODES})[ \t]+(?:a|à|al|au|vers|nach|zu|into)[ \t]+(?P<target>{_CODES})"
    r"(?=[ \t]*(?:[:.,…\0]|$))",
    re.IGNORECASE | re.MULTILINE,
)
_BEFORE_TARGET = re.compile(
    r"(?:\b(?:into|to|in|ins|auf|nach|zum|en|vers|al|au|a|à|target language|target|language|"
    r"zielsprache|"
    r"langue cible|langue d'arrivée|idioma de destino|lengua meta|idioma)"
    r"(?: the| la| le| el| idioma)?|l'|-to-|→|->|=>)\W*$",
    re.IGNORECASE,
)
_BEFORE_SOURCE = re.compile(
    r"(?:\b(?:from|source language|source|langue source|idioma de origen|ausgangssprache|"
    r"quellsprache|aus|aus dem|aus der|vom|von|du|de|del|depuis|desde)"
    r"(?: the| la| el| l)?)\W*$|\bde l'$",
    re.IGNORECASE,
)
_AFTER_TARGET = re.compile(
    r"^\W*(?:translation|version|rendering|übersetzung|please\b|version)", re.IGNORECASE
)
_BEFORE_ADJECTIVE_TARGET = re.compile(
    r"\b(?:traduction|traducción|version|versión|translation)\s*$", re.I
)
_AFTER_VERSION = re.compile(
    r"^\W*(?:translation|version|rendering|text version|fassung|übersetzung|wiedergabe)\b", re.I
)
# "My landlord sent me this in German": the language of the text.
_IS_WRITTEN_IN = re.compile(
    r"\b(?:sent|wrote|writes|written|send|got|received|is|are|was|geschrieben|schrieb|schreibt|"
    r"bekommen|erhalten|bekam|reçu|arrivé|llegado|recibido|recibí|llegó|"
    r"ist|écrit|écrite|écris|envoyé|envoie|est|escribió|escrito|envió|mande|manda|envíe|está)\b"
    r"[^.?!\n]{0,14}\b(?:in|auf|en)\s*$",
    re.IGNORECASE,
)
_PARAGRAPH_IN = re.compile(
    r"\b(?:text|paragraph|message|article|e-?mail|mail|letter|note|courriel|lettre|correo|carta|nota|"
    r"brief|nachricht|párrafo|texto|mensaje|artículo|texte|paragraphe|message|"
    r"absatz|satz)\s+(?:in|en|auf)\s*$",
    re.IGNORECASE,
)
_LEARNS = re.compile(
    r"\b(?:learn\w*|speaks?|stud(?:y|ies|ying)|teach\w*|my|your|good|lern\w*|sprich\w*|spreche|"
    r"apprend\w*|parle[sz]?|aprend\w*|habla\w*|mon|mein|mi)\s*$",
    re.IGNORECASE,
)
_TEXT_NOUN_AFTER = re.compile(
    r"^\s*(?:text|sentence|paragraph|message|article|passage|e-?mail|review|comment|satz|absatz|"
    r"nachricht|artikel|brief|speaker|customer|tutor|teacher|lesson|grammar|word|idiom)\b",
    re.IGNORECASE,
)
_CONJUNCTION = re.compile(
    rf"(?=\w)(?:{'|'.join(_NAMES.values())})\s*(?:,|/|&|\+|;|\band\b|\bor\b|\bund\b|\boder\b|\bet\b|"
    r"\bou\b|\by\b|\bo\b)+\s*(?:(?:into|to|in|ins|en|al|auf)\s+)?$",
    re.IGNORECASE,
)
# The language of an answer, not of a translation.
_ANSWER_IN = re.compile(
    r"\b(?:answer|respond|reply|speak|talk|chat|converse|communicate|continue|antworte\w*|sprich|"
    r"sprechen|réponds|répondez|parle[sz]?|responde|responda|contesta|habla)\b[^.\n]{0,30}\b"
    r"(?:in|auf|en)\s*$|\bwrite (?!this|it|the)[^.\n]*\bin\s*$",
    re.IGNORECASE,
)
_VARIETY = re.compile(
    r"\b(?:brazilian|european|mexican|latin american|argentin\w+|castilian|swiss|austrian|"
    r"bavarian|canadian|québec\w*|quebec\w*|british|american|us|uk|australian|indian|old|middle|"
    r"medieval|shakespear\w+|simple|simpler|easier|clearer|better|proper|correct|fluent|good|"
    r"native|modern|plain|pidgin|formal\w*|informal\w*|colloquial|business|"
    r"schweizer\w*|österreich\w*|einfache\w*|leichte\w*)\s*$",
    re.IGNORECASE,
)
# An instruction that names more languages is not one translation.
_MAX_MENTIONS = 12
# Each name is judged by the words around it.
_CONTEXT_CHARS = 120


@dataclass(frozen=True, slots=True)
class Direction:
    """The languages of a translation, as codes. source: None where it must be detected."""

    source: str | None
    target: str


def direction(instruction: str, offered: Collection[str]) -> Direction | None:
    """Return the translation that an instruction asks for.

    offered: ISO 639-1 codes. Returns None where not exactly one target is named, where a language
    is not offered or is a variety of one ("Swiss German"), and where the wording is unclear.
    """
    if arrow := _ARROW.search(instruction) or _CODES_ALONE.search(instruction):
        source, target = arrow["source"].lower(), arrow["target"].lower()
        if not _MENTION.search(instruction) and {source, target} <= set(offered):
            return Direction(source, target) if source != target else None
        return None
    sources: set[str] = set()
    targets: set[str] = set()
    mentions = list(_MENTION.finditer(instruction))
    if len(mentions) > _MAX_MENTIONS:
        return None
    for match in mentions:
        code = (match.lastgroup or "").rstrip("_")
        before = instruction[max(0, match.start() - _CONTEXT_CHARS) : match.start()]
        after = instruction[match.end() : match.end() + _CONTEXT_CHARS]
        if code not in offered or any(
            pattern.search(before) for pattern in (_VARIETY, _ANSWER_IN, _CONJUNCTION)
        ):
            return None
        if _is_target(before, after, mentions, match):
            targets.add(code)
        elif code not in targets or _BEFORE_SOURCE.search(before):
            # "English to French. I send a text, you send back the French text."
            sources.add(code)
    if not targets and len(mentions) == 1 and _is_only_target(instruction, mentions[0]):
        sources, targets = targets, sources
    if len(targets) > 1 and (strong := _versions(instruction, mentions)):
        sources |= targets - strong
        targets = strong
    return _agreed(sources, targets)


def _agreed(sources: set[str], targets: set[str]) -> Direction | None:
    if len(targets) != 1 or len(sources) > 1 or targets & sources:
        return None
    return Direction(next(iter(sources), None), next(iter(targets)))


def mentions_language(text: str) -> bool:
    """Return whether a text names a language."""
    return _MENTION.search(text) is not None


def without_languages(text: str) -> str:
    """Return a text with a space in place of each language's name."""
    return _MENTION.sub(" ", text)


def _is_only_target(instruction: str, match: re.Match[str]) -> bool:
    """Return whether the only language named is the target: "Make this English"."""
    before, after = instruction[: match.start()], instruction[match.end() :]
    return not (
        _BEFORE_SOURCE.search(before[-_CONTEXT_CHARS:])
        or _IS_WRITTEN_IN.search(before[-_CONTEXT_CHARS:])
        or _LEARNS.search(before[-_CONTEXT_CHARS:])
        or _TEXT_NOUN_AFTER.search(after[:_CONTEXT_CHARS])
    )


def _versions(instruction: str, mentions: Sequence[re.Match[str]]) -> set[str]:
    """Return the languages of which a version is asked for, by name ("a French version")."""
    return {
        (match.lastgroup or "").rstrip("_")
        for match in mentions
        if _AFTER_VERSION.search(instruction[match.end() : match.end() + _CONTEXT_CHARS])
        or _BEFORE_ADJECTIVE_TARGET.search(instruction[: match.start()][-_CONTEXT_CHARS:])
    }


def replaced_languages(text: str, offered: Collection[str], own: str, other: str) -> str:
    """Return a text with `own` for the name of each offered language and `other` for any other."""

    def named(match: re.Match[str]) -> str:
        return own if (match.lastgroup or "").rstrip("_") in offered else other

    pair = f"{own}{own}"
    return _MENTION.sub(named, _CODES_ALONE.sub(pair, _ARROW.sub(pair, text)))


def _is_target(
    before: str, after: str, mentions: list[re.Match[str]], match: re.Match[str]
) -> bool:
    if _BEFORE_SOURCE.search(before):
        return False
    if len(mentions) > 1 and (_IS_WRITTEN_IN.search(before) or _PARAGRAPH_IN.search(before)):
        return False
    if _BEFORE_TARGET.search(before) or _BEFORE_ADJECTIVE_TARGET.search(before):
        return True
    if _AFTER_TARGET.search(after):
        return True
    # "English: …" and a last line "German:": the last line names the target.
    return match is mentions[-1] and len(mentions) == 2 and after.strip() in {":", ""}
