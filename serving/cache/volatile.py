"""Texts whose answer moves with time, or is about one person: for every kind of lookup. Pure."""

import re

# English, German, French, Spanish. Whole words; "now" and its like only where they move the answer.
_MOVING_TIME = re.compile(
    r"\b(?:"
    r"today|tonight|yesterday|tomorrow|now|nowadays|current|currently|latest|recent|recently|newest|"
    r"upcoming|up[- ]to[- ]date|so far|these days|at the moment|(?:this|next|last|past|coming) "
    r"(?:morning|afternoon|evening|night|day|week|weekend|month|quarter|year|season|summer|"
    r"winter|spring|autumn|fall|monday|tuesday|wednesday|thursday|friday|saturday|sunday)|"
    r"what(?:'s| is)? (?:the )?(?:time|date|day)(?! (?:complexity|zone|format)\b)|"
    r"days? (?:ago|until|till|left)|weeks? ago|months? ago|years? ago|"
    r"news|live (?:scores?|stream|updates?|results?)|stock price|exchange rate|weather|forecast|"
    r"heute|gestern|morgen|jetzt|derzeit|zurzeit|aktuell\w*|momentan|neueste\w*|kürzlich|gerade|"
    r"(?:diese[rsnm]?|nächste[rsnm]?|letzte[rsnm]?|vergangene[rsnm]?) "
    r"(?:woche|monat|jahr|wochenende|quartal|sommer|winter)|wie spät|wetter\w*|bisher|nachrichten|"
    r"aujourd['\u2019]hui|hier|demain|maintenant|actuel\w*|récemment|récent\w*|dernièrement|"
    r"en ce moment|actualités|dernières? nouvelles|quelle heure|cette (?:semaine|année)|"
    r"ce (?:mois|soir|matin)|(?:semaine|mois|année) (?:prochaine?|dernière?)|météo|"
    r"hoy|ayer|mañana|ahora|actual(?:es|mente)?|reciente\w*|noticias|"
    r"qué hora|est[ae] (?:semana|mes|año|noche|tarde)|"
    r"(?:semana|mes|año) (?:próxim[ao]|pasad[ao]|que viene)|tiempo hace"
    r")\b",
    re.IGNORECASE,
)
_PERSONAL_DATA = re.compile(
    # An e-mail address; bounded, so that a long text without one takes linear time.
    r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,255}\.\w{2}"
    r"|\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}"  # an IBAN
    r"|(?<![\w.])(?:\d[ -]?){13,19}(?!\w)"  # a payment card
    r"|(?<![\w.,+*/^-])\d{9,12}(?![\w.,]\d|\w)"  # an account or a telephone number
    r"|(?<!\w)\+\d{1,3}[ ./-]?(?:\(?\d{1,5}\)?[ ./-]?){2,5}\d"  # a telephone number
    r"|(?<![\w.-])\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?![\w-])"  # one without a country
    r"|\b\d{3}-\d{2}-\d{4}\b"  # a social security number
)


def names_moving_time(text: str) -> bool:
    """Return whether a text names a time that moves, or a state of the world that does."""
    return _MOVING_TIME.search(text) is not None


def holds_personal_data(text: str) -> bool:
    """Return whether a text has an address, or a number of a person, an account or a card."""
    return _PERSONAL_DATA.search(text) is not None
