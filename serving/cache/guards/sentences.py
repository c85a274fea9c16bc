"""A sentence that one text only has: it asks for more, or says more of what is asked. Pure."""

from serving.cache.guards.function_words import Language
from serving.cache.guards.substitution import are_synonyms
from serving.cache.guards.words import Words

_COURTESY: dict[Language, str] = {
    "en": """
hello hi hey dear greetings good morning afternoon evening day thanks thank thx cheers please pls kindly kind
help helping advance appreciate appreciated grateful sorry excuse bother lot much very team everyone sir madam
i'd like love know wondering wonder curious interested question questions quick ask asking want wanted need tell
let here following below
""",
    "de": """
hallo hi hey guten gute morgen tag abend liebe lieber grüße gruß danke dank vielen besten bitte freundlichen
helfen hilf hilfe helft voraus sorry entschuldigung gern gerne wissen wüsste möchte würde frage fragen kurze
folgende folgendes sagen sag
""",
    "fr": """
bonjour bonsoir salut cher chère merci beaucoup avance svp plaît aider aidez aide moi désolé excusez pardon
aimerais voudrais savoir question questions petite suivante suivant dire dites
""",
    "es": """
hola buenos buenas días tardes noches estimado estimada gracias muchas mucho antemano favor ayuda ayudar
ayudarme ayúdame perdón disculpa saludos gustaría quisiera quiero saber pregunta preguntas siguiente decir dime
""",
}
_WORDS = {code: frozenset(words.split()) for code, words in _COURTESY.items()}


def compare_sentences(a: Words, b: Words) -> str | None:
    """Return `sentence` where one text has a sentence more, with a word that the other lacks.

    "Explain it. Give an example." is another question than "Explain it." Greetings and thanks are
    no sentences here. A question in two sentences that has no new word is let through.
    """
    language = a.language
    if language is None or language != b.language:
        return None
    ours, others = _sentences(a, language), _sentences(b, language)
    if len(ours) == len(others):
        return None
    more, less = (a, b) if len(ours) > len(others) else (b, a)
    found = ours if more is a else others
    known = frozenset(less.stems)
    for sentence in found:
        for n in sentence:
            is_new = more.stems[n] not in known and not any(
                are_synonyms(more.lower[n], word, language) for word in less.lower
            )
            if is_new:
                return "sentence"
    return None


def _sentences(text: Words, language: Language) -> list[list[int]]:
    """Return the content words of each sentence, as indices, without those of courtesy."""
    courtesy = _WORDS[language]
    found: list[list[int]] = []
    content = frozenset(text.content)
    for n, word in enumerate(text.lower):
        if n in text.starts or not found:
            found.append([])
        if n in content and word not in courtesy:
            found[-1].append(n)
    return [sentence for sentence in found if sentence]
