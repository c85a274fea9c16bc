"""Function words of the four languages that guards and router know. Lists only."""

from typing import Literal

Language = Literal["en", "de", "fr", "es"]

_EN = """
a an the i you he she it we they me him her us them my your his its our their mine yours myself
yourself this that these those who whom whose what which when where why how is are was were be been
being am do does did doing done have has had having will would shall should can could may might must
ought of in on at to from by for with about into onto over under between through during without
within against among as than then and or but nor so if because while although though until unless
since not no yes there here also too very just only even still already ever never again all any some
each every both either neither few many much more most less least other another such own same one
please tell get got
up out off down per via does let's
"""
_DE = """
der die das den dem des ein eine einen einem einer eines ich du er sie es wir ihr mich dich ihn uns
euch mir dir ihm ihnen mein meine meinen meinem meiner meines dein deine deinen deinem deiner sein
seine seinen seinem seiner unser unsere unseren ihre ihren ihrem ihrer man sich wer wen wem wessen
was welche welcher welches welchen welchem wann wo woher wohin warum wieso weshalb wie ist sind war
waren bin bist sei wird werden wurde wurden worden werde habe hat haben hatte hatten kann kannst
können könnte muss müssen musste soll sollte sollen darf dürfen will wollen möchte mag von vom im in
ins an am auf aus bei beim mit nach seit zu zum zur für durch gegen ohne um über unter zwischen vor
hinter neben während wegen und oder aber sondern denn weil dass ob wenn als damit nicht kein keine
keinen keinem keiner ja nein auch nur noch schon sehr so dann da dort hier mal bitte alle jeder jede
jedes einige viele viel mehr meisten weniger etwas gibt geben bedeutet heißt eigentlich denn etwa ungefähr
"""
_FR = """
le la les l' un une des du de d' je j' tu il elle on nous vous ils elles me m' te t' se s' lui leur
leurs mon ma mes ton ta tes son sa ses notre nos votre vos ce c' cet cette ces ça cela qui que qu'
quoi quel quelle quels quelles quand où pourquoi comment combien est sont était étaient fut être été
suis es sommes êtes sera seront ai as a ont avait avoir peut peux pouvez peuvent pourrait doit dois
doivent faut devrait devrais puis à au aux en dans sur sous par pour avec sans entre vers chez depuis
pendant contre et ou mais donc car si parce comme ne n' pas non oui y aussi très plus moins tout tous
toute toutes chaque quelques beaucoup peu même alors ici là fait font faire quoi donc moi
"""
_ES = """
el la los las lo un una unos unas de del al yo tú él ella ello nosotros ustedes vosotros ellos ellas
me te se le les nos os mi mis tu tus su sus nuestro nuestra este esta estos estas ese esa eso esto
aquel quién quien quiénes qué que cuál cuáles cuándo cuando dónde donde adónde cómo como cuánto
cuánta cuántos cuántas es son era eran fue fueron ser sido soy está están estaba estar ha han he
había haber hay puede puedo pueden podría debe debo deben debería hace hacer a ante bajo con contra
desde durante en entre hacia hasta para por según sin sobre tras y e o u pero sino porque pues si no
sí ni también muy más menos todo todos toda todas cada algunos algunas muchos mucho poco mismo aquí
ahí allí ya entonces
"""

FUNCTION_WORDS: dict[Language, frozenset[str]] = {
    "en": frozenset(_EN.split()),
    "de": frozenset(_DE.split()),
    "fr": frozenset(_FR.split()),
    "es": frozenset(_ES.split()),
}

# Words that leave the answer as it is: how surely, how politely, and nouns that say nothing more.
_EN_FILLERS = """
really actually truly exactly basically simply literally generally particularly specifically
personally ever currently possibly properly effectively successfully correctly
someone anyone somebody anybody something anything thing things people person
good best great nice way ways kind kinds type types sort piece example examples basic
become get got getting take want try use used using like go going make makes made give given know
think feel find help need
please tell explain describe suggest recommend share list name show
opinion view phrase word term called meant real time life world
start begin different various possible able can could located situated stand year time long much many
"""
_DE_FILLERS = """
wirklich eigentlich tatsächlich genau einfach bitte jemand etwas ding dinge leute mensch menschen
gut gute guten beste besten art weise beispiel beispiele
bekommen bekomme machen mache macht geben nennen nenne erkläre erklären erklär zeige sage sag
versteht genannt wort begriff überhaupt richtig sagen kannst könntest möglich befindet liegt
steht wofür grund jahr zeit lange erstellen erstelle
"""
_FR_FILLERS = """
vraiment exactement réellement simplement quelqu'un chose choses gens personne personnes
bon bonne meilleur meilleure façon manière exemple exemples
avoir obtenir donne donnez explique expliquer expliquez dire dis dites mot terme appelle svp plaît
peux tu veut possible trouve situe situé raison année temps faire compte
"""
_ES_FILLERS = """
realmente exactamente verdaderamente simplemente alguien algo cosa cosas gente persona personas
bueno buena mejor manera forma modo ejemplo ejemplos
obtener dame dime decir decirme explica explicar explicarme explícame palabra término llama favor
puedes posible tiene tienen encuentra situado ubicado razón año tiempo significa
"""

FILLERS: dict[Language, frozenset[str]] = {
    "en": frozenset(_EN_FILLERS.split()),
    "de": frozenset(_DE_FILLERS.split()),
    "fr": frozenset(_FR_FILLERS.split()),
    "es": frozenset(_ES_FILLERS.split()),
}
