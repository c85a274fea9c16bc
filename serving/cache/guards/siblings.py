"""Words of one family, of which each has another answer: cats and dogs, Spain and Italy. Pure."""

from serving.cache.guards.function_words import Language
from serving.cache.guards.words import Words, stem

# One family in each line; forms of one word are joined by |.
_FAMILIES: dict[Language, str] = {
    "en": """
cat|kitten dog|puppy horse cow pig sheep goat rabbit hamster parrot fish snake lizard turtle chicken duck bird bee wasp ant spider mosquito wolf fox bear lion tiger elephant whale dolphin shark mouse rat frog butterfly
red blue green yellow orange purple black white brown grey|gray pink
apple banana orange lemon grape strawberry peach pear cherry mango pineapple avocado tomato potato carrot onion garlic cucumber spinach broccoli cabbage mushroom pumpkin pepper
beef pork chicken lamb fish salmon tuna turkey shrimp tofu bacon
bread rice pasta pizza soup salad cake cookie|cookies pie pancake muffin egg|eggs cheese butter milk yogurt cream
water coffee tea beer wine juice milk soda vodka whiskey
gold silver copper iron steel aluminium|aluminum bronze lead zinc tin platinum titanium nickel
hydrogen oxygen nitrogen carbon helium methane ammonia chlorine
methanol ethanol acetone benzene propane butane
france germany italy spain portugal england scotland ireland wales poland russia ukraine china japan korea india brazil mexico canada australia austria switzerland sweden norway denmark finland iceland greece turkey egypt nigeria kenya argentina chile peru belgium netherlands
paris london berlin madrid rome vienna lisbon tokyo moscow beijing delhi sydney chicago boston toronto dublin munich hamburg barcelona
english french german spanish italian portuguese russian chinese japanese korean arabic hindi dutch swedish turkish greek latin
python java javascript typescript ruby rust golang perl php kotlin swift scala haskell
mysql postgresql|postgres sqlite oracle mongodb redis mariadb
windows linux macos android ios ubuntu debian fedora
chrome firefox safari edge opera
excel word powerpoint outlook
docker kubernetes podman
facebook twitter instagram linkedin youtube whatsapp telegram reddit tiktok
gmail outlook yahoo
mercury venus earth mars jupiter saturn uranus neptune pluto moon sun
guitar piano violin drum flute trumpet cello saxophone
football soccer basketball baseball tennis golf hockey cricket rugby volleyball swimming
heart liver kidney lung stomach brain bladder spleen pancreas
knee ankle shoulder elbow wrist hip neck back foot hand finger toe
arm leg eye ear nose tooth|teeth hair skin
flu cold measles malaria diabetes asthma cancer pneumonia arthritis migraine
headache backache toothache stomachache fever cough
aspirin ibuprofen paracetamol|acetaminophen antibiotic
vitamin mineral protein carbohydrate fat fiber
car bus train plane|airplane bicycle|bike motorcycle boat ship truck tram
oil gas coal wood electricity
doctor nurse dentist lawyer teacher engineer accountant plumber electrician carpenter
president king queen minister mayor governor senator judge chancellor emperor
mayor director ceo founder inventor author composer painter singer actor
mother father sister brother uncle aunt cousin grandfather grandmother son daughter
breakfast lunch dinner
kitchen bathroom bedroom garage garden basement attic
passport visa license
name address email|e-mail password phone username photo
circle square triangle rectangle cube sphere cylinder cone
area perimeter volume circumference diameter radius
mean median mode variance
sum product quotient difference
noun verb adjective adverb pronoun
atom molecule proton neutron electron
virus bacteria fungus parasite
list dictionary tuple set string array integer float
file folder|directory
branch tag commit
http https ftp ssh
tcp udp
north south east west
river lake ocean mountain desert island sea
capital population currency language flag area anthem religion
length width height depth weight
boiling melting freezing
birth death marriage
win lose draw
morning afternoon evening night
rent mortgage
wash dry iron
boil fry bake grill roast steam
cotton wool silk linen leather polyester
book film|movie song painting poem play
email letter fax
first second third
credit debit
checking savings
brother sister
wall floor ceiling roof door window
laptop phone tablet printer router keyboard mouse monitor
create|make|build|add delete|remove edit|change|update rename copy|duplicate move
install update uninstall
read write
send receive
sender recipient
""",
    "de": """
katze|katzen hund|hunde|hunden pferd|pferde kuh|kühe schwein schaf ziege kaninchen|hase hamster vogel|vögel fisch|fische schlange biene wespe maus ratte
rot rote blau blaue grün grüne gelb gelbe schwarz schwarze weiß weiße
apfel|äpfel banane|bananen orange|orangen zitrone erdbeere|erdbeeren birne|birnen tomate|tomaten kartoffel|kartoffeln karotte|karotten zwiebel|zwiebeln
reis nudeln brot kuchen suppe salat pizza eier|ei käse butter milch
wasser kaffee tee bier wein saft
gold silber kupfer eisen stahl aluminium zink blei
frankreich deutschland italien spanien portugal england irland polen russland china japan indien brasilien mexiko kanada österreich schweiz schweden norwegen dänemark finnland griechenland türkei
englisch französisch deutsch spanisch italienisch russisch
auto bus zug flugzeug fahrrad motorrad schiff
arzt anwalt lehrer ingenieur
präsident könig kanzler minister bürgermeister
mutter vater schwester bruder onkel tante
knie schulter rücken fuß hand kopf bauch
hauptstadt einwohnerzahl währung sprache fläche
passwort name adresse telefonnummer
breite länge höhe tiefe gewicht
""",
    "fr": """
chat|chats chien|chiens cheval|chevaux vache cochon mouton chèvre lapin|lapins oiseau|oiseaux poisson|poissons serpent abeille guêpe souris rat
rouge bleu|bleue vert|verte jaune noir|noire blanc|blanche
pomme|pommes banane|bananes citron|citrons fraise|fraises poire|poires tomate|tomates carotte|carottes oignon|oignons
riz pâtes pain gâteau soupe salade pizza œufs|œuf fromage beurre lait
eau café thé bière vin jus
or argent cuivre fer acier aluminium zinc plomb
france allemagne italie espagne portugal angleterre irlande pologne russie chine japon inde brésil mexique canada autriche suisse suède norvège danemark finlande grèce turquie belgique
anglais français allemand espagnol italien russe
voiture bus train avion vélo moto bateau
médecin avocat professeur ingénieur
président roi ministre maire
mère père sœur frère oncle tante
genou épaule dos pied main tête ventre
capitale population monnaie langue superficie
largeur longueur hauteur profondeur poids
""",
    "es": """
gato|gatos perro|perros caballo|caballos vaca cerdo oveja cabra conejo|conejos pájaro|pájaros pez|peces serpiente abeja avispa ratón rata
rojo|roja azul|azules verde|verdes amarillo|amarilla negro|negra blanco|blanca
manzana|manzanas plátano|plátanos limón|limones fresa|fresas pera|peras tomate|tomates zanahoria|zanahorias cebolla|cebollas
arroz pasta pan pastel sopa ensalada pizza huevo|huevos queso mantequilla leche
agua café té cerveza vino zumo|jugo
oro plata cobre hierro acero aluminio zinc plomo
francia alemania italia españa portugal inglaterra irlanda polonia rusia china japón india brasil méxico canadá austria suiza suecia noruega dinamarca finlandia grecia turquía
inglés francés alemán español italiano ruso
coche|carro autobús tren avión bicicleta moto barco
médico abogado profesor ingeniero
presidente rey ministro alcalde
madre padre hermana hermano tío tía
rodilla hombro espalda pie mano cabeza
capital población moneda idioma superficie
ancho longitud altura profundidad peso
""",
}

_Family = tuple[frozenset[str], ...]


def _families(lines: str, language: Language) -> tuple[_Family, ...]:
    return tuple(
        tuple(
            frozenset(stem(form, language) for form in member.split("|")) for member in line.split()
        )
        for line in lines.strip().splitlines()
    )


# Each family with the stems of all its members.
_BY_LANGUAGE = {
    code: [(family, frozenset[str]().union(*family)) for family in _families(lines, code)]
    for code, lines in _FAMILIES.items()
}


def compare_siblings(a: Words, b: Words) -> str | None:
    """Return `siblings` where each text has a member of a family that the other has not."""
    if a.language is None or a.language != b.language:
        return None
    stems_a, stems_b = frozenset(a.stems), frozenset(b.stems)
    only_a, only_b = stems_a - stems_b, stems_b - stems_a
    for family, stems in _BY_LANGUAGE[a.language]:
        if stems.isdisjoint(only_a) or stems.isdisjoint(only_b):
            continue
        in_a = {member for member in family if member & only_a and not member & stems_b}
        in_b = {member for member in family if member & only_b and not member & stems_a}
        if in_a and in_b:
            return "siblings"
    return None
