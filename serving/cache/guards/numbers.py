"""Numbers, symbols, units, dates and versions must be equal. Pure."""

import re
import unicodedata
from collections import Counter

from serving.cache.guards.function_words import Language
from serving.cache.guards.words import Words

_DIGITS = re.compile(
    r"(?:(?<![\w).])[-\u2212+](?=\d))?\d+(?:[.,:/x\u00d7-]\d+)*|[\u00b2\u00b3\u00b9\u00bc-\u00be]"
)
# The bounds keep a long run of letters and marks without a digit from being read at each of them.
_MIXED = re.compile(r"\b(?=[\w.-]{0,80}\d)(?=[\w.-]{0,80}[^\W\d])\w+(?:[.-]\w+)*\b")
_ORDINAL = re.compile(r"\b\d+(?:st|nd|rd|th)\b")
_AFTER_NUMBER = re.compile(r"\d\s*([^\W\d_\s]{1,4}|[°%$€£¥][CFcf]?)(?!\w)")
_SIGN = re.compile(r"[%$€£¥°#]|[<>]=?|[+*/=^](?=\s)")
_ALONE = re.compile(r"(?<=\s)[^\w\s]+(?=\s+\w)")
_MERIDIEM = re.compile(r"\d\s*([ap])\.?m\b", re.I)
_ROMAN = re.compile(r"\b(?:[IVX]{2,5}|[VX]|I(?=\s*(?:$|[?.!,;:])))\b")

# Each line: the words of one number; ordinals are numbers of their own.
_NUMBER_WORDS = """
zero null zéro cero
two zwei zwo deux dos
three drei trois tres
four vier quatre cuatro
five fünf cinq cinco
six sechs seis
seven sieben sept siete
eight acht huit ocho
nine neun neuf nueve
ten zehn dix diez
eleven elf onze once
twelve zwölf douze doce
thirteen dreizehn treize trece
fourteen vierzehn quatorze catorce
fifteen fünfzehn quinze quince
sixteen sechzehn seize dieciséis
seventeen siebzehn diecisiete
eighteen achtzehn dieciocho
nineteen neunzehn diecinueve
twenty zwanzig vingt veinte
thirty dreißig trente treinta
forty vierzig quarante cuarenta
fifty fünfzig cinquante cincuenta
sixty sechzig soixante sesenta
seventy siebzig setenta
eighty achtzig ochenta
ninety neunzig noventa
hundred hundreds hundert cent cents cien ciento
thousand thousands tausend mille mil
million millions millionen millón millones
billion billions milliarde milliarden milliard milliards
trillion trillions billionen
dozen dutzend douzaine docena
half halb halbe halber moitié demi mitad medio
quarter viertel quart cuarto
third thirds dritte dritten dritter troisième tercero tercera tercer
first erste ersten erster erstes premier première premiers primero primera primer
second seconds zweite zweiten zweiter deuxième segundo segunda sekunde sekunden segundos
fourth vierte vierten quatrième cuarta
fifth fünfte fünften cinquième quinto quinta
sixth sechste sechsten sixième sexto sexta
seventh siebte siebten septième séptimo séptima
eighth achte achten huitième octavo octava
ninth neunte neunten neuvième noveno novena
tenth zehnte zehnten dixième décimo décima
last letzte letzten letzter letztes dernier dernière último última
next nächste nächsten nächster nächstes prochain prochaine próximo próxima
previous vorherige vorigen précédent précédente anterior
double doppelt doppelte twice zweimal doble
triple dreifach thrice dreimal
single einzeln einzelne einzelnen
"""
_UNIT_WORDS = """
km kilometer kilometers kilometre kilometres kilometern kilomètre kilomètres kilómetro kilómetros
m meter meters metre metres metern mètre mètres metro metros
cm centimeter centimeters centimetre centimetres zentimeter zentimetern centimètres centímetros
mm millimeter millimeters millimetres millimetern millimètres milímetros
mi mile miles meile meilen milles milla millas
ft foot feet fuß pieds pies
inch inches zoll pouce pouces pulgada pulgadas
yard yards
kg kilo kilos kilogram kilograms kilogramm kilogrammes kilogramos
g gram grams gramm grammes gramme gramo gramos
mg milligram milligrams milligramm milligrammes miligramos
lb lbs pound pounds pfund livre livres libra libras
oz ounce ounces unze unzen onces onzas
ton tons tonne tonnes tonnen toneladas
l liter liters litre litres litern litro litros
ml milliliter milliliters millilitres millilitern mililitros
gallon gallons gallone gallonen galones
celsius
fahrenheit
kelvin
second seconds sekunde sekunden secondes segundo segundos
minute minutes minuten minuto minutos
hour hours stunde stunden heure heures hora horas
day days daily tag tage tagen täglich jour jours día días
week weeks weekly woche wochen wöchentlich semaine semaines semana semanas
month months monthly monat monate monaten monatlich mois mes meses
quarter quarterly quartal trimestre
year years yearly annual annually jahr jahre jahren jährlich année années ans año años
decade decades jahrzehnt décennie década
century centuries jahrhundert siècle siglo
dollar dollars usd $ dólares dólar
euro euros eur €
gbp £
yen ¥
franc francs chf franken francos
percent per-cent prozent pourcent % porcentaje
byte bytes
kb kilobyte kilobytes
mb megabyte megabytes
gb gigabyte gigabytes
tb terabyte terabytes
watt watts kilowatt kilowatts
volt volts
amp amps ampere amperes
calorie calories kalorien kalorie calorías
acre acres
hectare hectares hektar hectárea hectáreas
"""
_DATE_WORDS = """
january jan januar janvier enero
february feb februar février febrero
march märz mars marzo
april avril abril
may mai mayo
june juni juin junio
july juli juillet julio
august aug août agosto
september sept septembre septiembre
october oktober octobre octubre
november novembre noviembre
december dezember décembre diciembre
monday mondays montag montags lundi lunes
tuesday tuesdays dienstag dienstags mardi martes
wednesday wednesdays mittwoch mittwochs mercredi miércoles
thursday thursdays donnerstag donnerstags jeudi jueves
friday fridays freitag freitags vendredi viernes
saturday saturdays samstag samstags samedi sábado
sunday sundays sonntag sonntags dimanche domingo
spring frühling printemps primavera
summer sommer été verano
autumn fall herbst automne otoño
winter hiver invierno
morning mornings morgens matin mañana
noon midday mittags midi mediodía
afternoon nachmittags nachmittag après-midi
evening abends abend soir
night nacht nachts nuit noche
midnight mitternacht minuit medianoche
weekend weekends wochenende wochenenden week-end
weekday weekdays werktag werktags
christmas weihnachten noël navidad
easter ostern pâques pascua
"""

_Table = dict[str, str]


def _table(lines: str) -> _Table:
    """Return the first word of each line by every word of it; a word of two lines has the later."""
    rows = [line.split() for line in lines.strip().splitlines()]
    return {word: row[0] for row in rows for word in row}


_NUMBERS, _UNITS, _DATES = _table(_NUMBER_WORDS), _table(_UNIT_WORDS), _table(_DATE_WORDS)
# Words that mean something else in a language.
_OTHER_MEANING: dict[Language | None, frozenset[str]] = {
    "en": frozenset({"once", "fall", "mil", "cent", "cents", "mars", "mes", "quince", "metro"}),
    "de": frozenset({"elf", "mars", "aug", "mm"}),
    "fr": frozenset({"metro", "mes", "été", "livre", "livres", "second", "once", "sept."}),
    "es": frozenset({"metro", "once", "mi", "mañana"}),
    None: frozenset(),
}
# May and march are verbs, too: months where they are written as such or stand beside a number.
_MONTH_OR_VERB = re.compile(
    r"(?:\b(?:in|of|on|by|since|until|before|after|during|this|next|last|and|\d+(?:st|nd|rd|th)?)"
    r"\s+(may|march)\b)|\b(may|march)\s+\d",
    re.I,
)
# "What year did X" asks when, and a time word in it is no unit.
_ASKED_TIME = re.compile(r"\b(?:what|which|in what|in which) (?:year|day|month|date|time)\b", re.I)


def compare_numbers(a: Words, b: Words) -> str | None:
    """Return `numbers` where numbers, ordinals, versions or signs of them differ, or their order.

    So do the words that they count: 3 boys and 5 girls, 3 girls and 5 boys.
    """
    if _numbers(a) != _numbers(b):
        return "numbers"
    first, second = _in_order(a), _in_order(b)
    if [number for number, _ in first] != [number for number, _ in second]:
        return "numbers"
    stems_a, stems_b = frozenset(a.stems), frozenset(b.stems)
    is_other = any(
        one != other and one in stems_b and other in stems_a
        for (_, one), (_, other) in zip(first, second, strict=True)
    )
    return "numbers" if is_other else None


def _in_order(words: Words) -> list[tuple[str, str]]:
    """Return each number in order, with the stem of the content word behind it."""
    other, content = _OTHER_MEANING[words.language], frozenset(words.content)
    ordinals = {match.start(): match for match in _ORDINAL.finditer(words.plain)}
    found = [
        (match.start(), match.end(), ordinals[match.start()][0].lower())
        if match.start() in ordinals
        else (match.start(), match.end(), _canonical(match[0], words.language))
        for match in _DIGITS.finditer(words.plain)
    ]
    for start, word in zip(words.places, words.lower, strict=True):
        found += [
            (start, start + len(word), _digits_of(_NUMBERS[part]))
            for part in word.split("-")
            if part in _NUMBERS and part not in other
        ]
    behind = []
    for _, end, number in sorted(found):
        # The rest of an ordinal or a unit belongs to the number: 3rd, 5km.
        place = next((n for n, start in enumerate(words.places) if start >= end), None)
        behind.append(
            (number, words.stems[place] if place in content and place is not None else "")
        )
    return behind


def compare_symbols(a: Words, b: Words) -> str | None:
    """Return `symbols` where signs that are no words differ, or their order: emoji, arithmetic.

    Punctuation counts where it stands alone: what does ! mean.
    """
    return None if _symbols(a) == _symbols(b) else "symbols"


def _symbols(words: Words) -> list[str]:
    found = [one for one in words.plain if unicodedata.category(one)[0] == "S"]
    return [*found, *_ALONE.findall(words.plain)]


def compare_units(a: Words, b: Words) -> str | None:
    """Return `units` where units of measure, of time or of money differ."""
    return None if _units(a) == _units(b) else "units"


def compare_dates(a: Words, b: Words) -> str | None:
    """Return `dates` where months, weekdays, seasons or times of day differ."""
    return None if _dates(a) == _dates(b) else "dates"


def _numbers(words: Words) -> Counter[str]:
    digits = _DIGITS.findall(_ORDINAL.sub(" ", words.plain))
    found = Counter(_canonical(one, words.language) for one in digits)
    found.update(_digits_of(_NUMBERS[word]) for word in _listed(words, _NUMBERS))
    found.update(_digits_of(mixed.lower()) for mixed in _MIXED.findall(words.plain)
                 if not _is_measure(mixed))  # fmt: skip
    found.update("roman " + numeral for numeral in _ROMAN.findall(words.plain))
    found.update(sign for sign in _SIGN.findall(words.plain))
    return found


_WRITTEN = {word: str(number) for number, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty".split())}  # fmt: skip
_WRITTEN |= {"thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70",
             "eighty": "80", "ninety": "90", "first": "1st", "third": "3rd", "fourth": "4th",
             "fifth": "5th", "sixth": "6th", "seventh": "7th", "eighth": "8th", "ninth": "9th",
             "tenth": "10th"}  # fmt: skip


def is_number(word: str) -> bool:
    """Return whether a word in lower case is a number, or begins with a digit."""
    return word[:1].isdigit() or word in _NUMBERS


def _digits_of(word: str) -> str:
    """Return a number word in digits: five and 5 are one number."""
    return _WRITTEN.get(word, word)


def _is_measure(mixed: str) -> bool:
    """Return whether a word is a number with its unit, as in 5km: units are compared apart."""
    unit = mixed.lstrip("0123456789.,-")
    return unit != mixed and unit.lower() in _UNITS


def _canonical(digits: str, language: Language | None) -> str:
    """Return a number without separators of thousands: 1,000 in English, 1.000 elsewhere."""
    separator = "," if language == "en" else r"\."
    if re.fullmatch(rf"[-\u2212+]?\d{{1,3}}(?:{separator}\d{{3}})+(?:[.,]\d+)?", digits):
        digits = re.sub(separator, "", digits, count=digits.count(separator[-1]))
    return digits.replace("\u2212", "-").replace(",", ".")


def _units(words: Words) -> frozenset[str]:
    asked = _ASKED_TIME.search(words.plain)
    plain = words.plain if asked is None else words.plain.replace(asked[0], " ")
    rest = Words(plain)
    found = {_UNITS[word] for word in _listed(rest, _UNITS) if len(word) > 2 or word in "%$€£¥"}
    near = (unit.lower() for unit in _AFTER_NUMBER.findall(plain))
    return frozenset(found | {_UNITS.get(unit, unit) for unit in near if unit in _UNITS
                              or unit[0] in "°%$€£¥"})  # fmt: skip


def _dates(words: Words) -> frozenset[str]:
    named = {_DATES[word] for word in _listed(words, _DATES)}
    if words.language == "en":
        named -= {"may", "march"}
        named |= {(first or second).lower()
                  for first, second in _MONTH_OR_VERB.findall(words.plain)}  # fmt: skip
    named |= {f"{half.lower()}m" for half in _MERIDIEM.findall(words.plain)}
    return frozenset(named)


def _listed(words: Words, table: _Table) -> list[str]:
    other = _OTHER_MEANING[words.language]
    # A hyphen joins: twenty-one, two-day.
    parts = (part for word in words.lower for part in {word, *word.split("-")})
    return [part for part in parts if part in table and part not in other]
