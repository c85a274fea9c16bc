"""Finds words in an instruction that ask for more or other than a task's output."""

import re
import string

# Each alternative was added for a request that would otherwise get the wrong kind of answer.
_PATTERNS = (
    # a format
    r"\bjson\b|\bxml\b|\byaml\b|\bcsv\b|\bhtml\b|\bmarkdown\b|\btab(?:le|elle|leau|la)\b"
    r"|\bcolumns?\b|\bbullet|\bemojis?\b|\bhashtag|\bdict(?:ionary)?\b|\barray\b|\bobject\b"
    r"|\bkeys?\b|\bformat\b|\byes\b|\btrue or false\b|\bja oder nein\b|\boui ou non\b"
    r"|\bs[ií] o no\b|\bwhether or not\b|\bor not\b|\boder nicht\b|\bou non\b|\bo no\b"
    r"|\bcorrect\b|\bwrong\b",
    # a number
    r"\bscales?\b|\bskala\b|\béchelle\b|\bescala\b|\bscor(?:e|es|ing)\b|\brat(?:e|es|ing)\b"
    r"|\bstars?\b|\bsterne?\b|\bétoiles?\b|\bestrellas\b|\bpercent"
    r"|\b\d+\s*(?:to|bis|à|a|-)\s*\d+\b|\bconfidence\b|\bprobabilit"
    r"|\bhow (?:much|many|positive|negative|strong)|\bcount\b|\bnumber of\b|\bdegree\b",
    # a reason
    r"\bwhy\b|\bexplain|\bexplanation|\breason|\bjustif|\bbecause\b|\bevidence\b"
    r"|\bstep by step\b|\bthink\b|\bwarum\b|\bbegründ|\berklär|\bpourquoi\b"
    r"|\bexpli(?:que|ca|cation)|\bpor qué\b|\brazon|\bwhich (?:words?|parts?)\b|\bthe words\b"
    r"|\bquote (?:the|a)\b",
    # another task, or one more
    r"\bsumm?ar|\bzusammenfass|\brésum|\bresum|\bparaphras|\brewrit|\brephras|\bimprov"
    r"|\bproofread|\bfix\b|\bcorregi|\bkorrigier|\bcorrige|\brepl(?:y|ies|ied) to\b|\bshorten"
    r"|\bexpand|\bcontinue\b|\bgenerat|\bcompose\b|\binvent|\bsuggest|\brecommend|\bcompare"
    r"|\bdifference|\bopposite\b|\bsynonym|\bmeans?\b|\bmeaning\b|\bdefin|\bthen\b|\balso\b"
    r"|\bafter(?:wards)?\b|\badditional|\bfinally\b|\bplus\b|\bas well\b"
    r"|\band (?:what|who|how|where|when|tell|give|say what|quote|show)\b"
    r"|\band (?:mark|highlight|underline|count|add|provide|correct)\b"
    r"|\band (?:compare|name the)\b|\bdann\b|\baußerdem\b|\bensuite\b|\bluego\b|\btambién\b"
    r"|\baussi\b",
    # a register or a restriction
    r"\bformal|\binformal|\bpolite|\bcasual|\btone\b|\bstyle\b|\bslang\b|\brhym|\bpoetic"
    r"|\bliteral|\bword[ -](?:by|for)[ -]word\b|\bidiom|\bfriendly\b|\bsimple\b|\bshorter\b"
    r"|\bconcise|\bunder \d|\bat most\b|\bmaximum\b|\bno more than\b|\bwithout\b|\bavoid"
    r"|\bkeep\b|\bpreserv|\bglossary\b|\balternativ|\bversions\b|\bexcept|\bignore\b"
    r"|\bonly (?:the )?(?:people|person|nam|plac|locat|organi|compan)",
    # several texts, or a part of one
    r"\beach of\b|\bboth\b|\brespectively\b|\bthese\b|\btwo\b|\bthree\b|\bone by one\b"
    r"|\bper (?:line|sentence)\b|\bline by line\b|\bsentence by sentence\b|\bfirst\b"
    r"|\bsecond\b|\blast\b|\bmost (?:positive|negative)|\bmore (?:positive|negative)"
    r"|\baspects?\b|\btowards?\b|\babout the\b|\bbeide\b|\bdiese sätze\b",
)
# Each begins with a word: elsewhere none of them is tried.
_FOREIGN = re.compile(rf"\b(?=\w)(?:{'|'.join(_PATTERNS)})", re.IGNORECASE)
_PLURAL = re.compile(
    r"\b(?:each (?:review|tweet|post|comment|message|sentence|article|text|line|item)|"
    r"reviews|tweets|posts|comments|messages|sentences|articles|documents|headlines|passages|"
    r"paragraphs|texts|emails|lines|items|phrases|sätze|texte\b(?=n)|bewertungen|"
    r"nachrichten\b(?= \d)|textes\b(?= suivants)|frases|textos|reseñas|comentarios)\b",
    re.IGNORECASE,
)
# "No comments" and "a classifier for app reviews" name no texts to work on.
_NO_TEXTS = re.compile(
    r"\b(?:no|without|any|nor|ohne|keine|sans|ni|sin|classifier (?:for|of)|tagger (?:for|"
    r"of)|analy[sz]er (?:for|of)) "
    r"(?:[^\W\d_]+ ){0,2}?(?:comments|sentences|phrases|reviews|tweets|posts|articles|messages|"
    r"headlines|frases|comentarios|sätze)\b",
    re.IGNORECASE,
)
# Words of an instruction at the end of a text without closing quotes.
_TRAILING = re.compile(
    r"\b(?:your (?:answer|response|reply|reasoning|output)"
    r"|the (?:translation|sentiment|label|entities)"
    r"|answer (?:with|in|yes)|respond (?:with|in)|reply (?:with|in)|in json|as json"
    r"|output (?:only|the)"
    r"|return (?:only|the|a)|explain (?:your|why)|translat(?:e|ion)|summari[sz]e|classify|"
    r"also (?:give|tell|list|explain|provide)|keep it (?:formal|informal|short)|step by step)\b"
    r"|^(?:then|also|finally|afterwards|please|dann|ensuite|luego)\b",
    re.IGNORECASE | re.MULTILINE,
)
# The last sentence of a text that is addressed to whoever answers.
_ADDRESSED = re.compile(
    r"^(?:and |und |et |y |also |then |now |but |actually|in fact|¿y )?,? ?(?:please )?"
    r"(?:explain|justify|give|write|tell me|show|quote|cite|include|add|use (?:emojis|a|the)|"
    r"make it|"
    r"say it|answer|respond|reply|format|provide|back (?:it|your)|walk me|tone it|rate it|list|"
    r"suggest|summari[sz]e|rewrite|shorten|correct|check|compare|describe|highlight|follow it|"
    r"before you|after that|what (?:made|would) you|how (?:did|sure|confident) (?:are )?you|why\?|"
    r"why so|warum\?|wieso\?|begründe|erkläre|nenne|gib|schreib|antworte|fasse?|korrigiere|"
    r"vergleiche|füge|bewerte|zeige|als gedicht|ausgabe|nein, lass|was hättest du|pourquoi ?\?|"
    r"justifie|explique|donne|écris|réponds|résume|propose|indique|cite|corrige|compare|ajoute|"
    r"présente|note aussi|sous forme|en fait non|qu'aurais-tu|por qué ?\?|justifica|explica|da |"
    r"dame|escribe|responde|resume|propón|indica|cita|añade|preséntal|puntúa|en forma de|"
    r"en realidad no|qué habrías)",
    re.IGNORECASE,
)
_REFERS_BACK = re.compile(
    r"\b(?:these|those|diese|ces|est[ao]s) (?:words|labels|terms|categories|wörter|begriffe|"
    r"kategorien|mots|termes|catégories|palabras|términos|categorías)\b",
    re.IGNORECASE,
)
# A last paragraph of fewer words may be an order; a text of several paragraphs rarely ends so.
_ORDER_WORDS = 30
_SENTENCE_ENDS = ".!?"


def foreign_output(instruction: str) -> str | None:
    """Return the words with which an instruction asks for another output, or None."""
    match = _FOREIGN.search(instruction)
    return match.group() if match else None


def names_several_texts(instruction: str) -> bool:
    """Return whether an instruction names texts in the plural."""
    return _PLURAL.search(_NO_TEXTS.sub(" ", instruction)) is not None


def may_hold_instruction(payload: str) -> bool:
    """Return whether an unmarked payload may end in an instruction."""
    _, gap, paragraph = payload.rpartition("\n\n")
    if gap and (len(paragraph.split()) < _ORDER_WORDS or _TRAILING.search(paragraph)):
        return True
    body = payload.rstrip(_SENTENCE_ENDS + string.whitespace)
    start = 1 + max(body.rfind(mark) for mark in _SENTENCE_ENDS + "\n")
    if _REFERS_BACK.search(payload):
        return True
    last = payload[start:].strip()
    return start > 0 and bool(_TRAILING.search(last) or _ADDRESSED.match(last.lstrip("¿¡")))
