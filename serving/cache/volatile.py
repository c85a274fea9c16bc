"""Texts whose answer moves with time, is about one person, or is drawn. For all lookups. Pure."""

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
    r"(?:semana|mes|año) (?:próxim[ao]|pasad[ao]|que viene)|tiempo hace|quel temps (?:fait|fera)"
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

# What is drawn anew each time, and what must not be given to two: a random number, a password.
_MADE_UP = (
    r"(?:(?:password|passphrase|kennwort|passwort|contraseña|mot de passe)s?(?! (?:reset|policy|"
    r"field|manager|form|page|input|box|hash|valid|check|stren|generator))|uuids?|guids?|nonce|"
    r"api key|secret key|access token|encryption key|pin(?: code| number)?|salt)\b"
)
_NEAR = r"\b[^.?!\n]{0,60}?\b"
_DRAWN = re.compile(
    # Of many blank lines the last one counts: an unbounded run would be searched from each.
    r"(?:^|[.!?:,;\n]\s{0,4}+|"
    r"\b(?:please|can you|could you|will you|would you|you to|and|then|bitte) )(?:"
    rf"(?:generate|create|make|give|suggest|write|invent|need|get|provide){_NEAR}{_MADE_UP}|"
    r"(?:generate|create|make|give|suggest|write|pick|choose|select|draw|name|tell|show|say|list|"
    rf"print|think of|return|output){_NEAR}(?:random(?:ly)?(?! (?:forest|access|walk|variable|"
    r"effect|field))|lottery numbers?|number between)\b|"
    rf"(?:roll|throw|flip|toss){_NEAR}(?:dice|die|d\d{{1,3}}|coins?)\b|"
    r"(?:shuffle|draw a card|pick a card)\b|"
    rf"(?:generiere?|erzeuge?|erstelle?|gib|nenne?|wähle?|wirf|ziehe?|erfinde?|mach){_NEAR}(?:"
    rf"{_MADE_UP}|zufällig\w*|zufalls\w*|münze|würfel|lottozahlen)|würfe?le?\b|"
    r"(?:génère|générez|générer|crée|créez|donne|donnez|choisis|choisissez|tire|tirez|lance|"
    rf"lancez){_NEAR}(?:{_MADE_UP}|aléatoire\w*|hasard|dés?|pièce)\b|"
    rf"(?:genera|generar|crea|dame|elige|escoge|tira|lanza|inventa){_NEAR}(?:{_MADE_UP}|"
    r"aleatori\w+|azar|dados?|moneda)\b)",
    re.IGNORECASE,
)


_STRETCH = 16_384
_LOOKED_AT = 32
_OVERLAP = 512
"""More than the longest text that either pattern matches, and a character before it."""


def names_moving_time(text: str) -> bool:
    """Return whether a text names a time that moves, or a state of the world that does."""
    return _holds(_MOVING_TIME, text)


def holds_personal_data(text: str) -> bool:
    """Return whether a text has an address, or a number of a person, an account or a card."""
    return _holds(_PERSONAL_DATA, text)


def asks_to_draw(text: str) -> bool:
    """Return whether a text asks for something random, or for a secret made up for it."""
    return _holds(_DRAWN, text)


def _holds(pattern: re.Pattern[str], text: str) -> bool:
    """Return whether a text holds what a pattern describes.

    A search holds Python's lock until its end: 2 s for 4 MiB. Between stretches others run.
    """
    for start in range(0, len(text), _STRETCH):
        stop = start + _STRETCH
        found = pattern.search(text, max(0, start - _OVERLAP), stop)
        # What is cut at the stretch's end, or looks at what follows, is whole in the next one.
        if found is not None and (found.end() < stop - _LOOKED_AT or stop >= len(text)):
            return True
    return False
