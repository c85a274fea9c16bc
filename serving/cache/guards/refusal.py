"""All guards in one question: may two texts have the same answer? Pure."""

from collections.abc import Callable

from serving.cache.guards.closed_classes import compare_function_words
from serving.cache.guards.inflection import compare_inflection
from serving.cache.guards.names import compare_names
from serving.cache.guards.numbers import (
    compare_dates,
    compare_numbers,
    compare_symbols,
    compare_units,
)
from serving.cache.guards.operators import compare_modals, compare_quantifiers
from serving.cache.guards.order import compare_order
from serving.cache.guards.polarity import compare_antonyms, compare_negation
from serving.cache.guards.question import (
    compare_kind,
    compare_persons,
    compare_scope,
    compare_tense,
)
from serving.cache.guards.reference import compare_language, compare_reference
from serving.cache.guards.roles import compare_roles
from serving.cache.guards.sentences import compare_sentences
from serving.cache.guards.siblings import compare_siblings
from serving.cache.guards.substitution import compare_modifiers, compare_substitution
from serving.cache.guards.words import Words
from serving.cache.guards.writing import compare_writing

Guard = Callable[[Words, Words], str | None]

GUARDS: tuple[Guard, ...] = (
    compare_language,
    compare_numbers,
    compare_symbols,
    compare_units,
    compare_dates,
    compare_negation,
    compare_names,
    compare_antonyms,
    compare_modals,
    compare_quantifiers,
    compare_kind,
    compare_persons,
    compare_tense,
    compare_scope,
    compare_siblings,
    compare_reference,
    compare_substitution,
    compare_sentences,
    compare_order,
    compare_roles,
    compare_inflection,
    compare_writing,
    compare_function_words,
)
"""The cheapest first."""


MODIFIER_MARGIN = 0.05
"""What a cosine must exceed its threshold by where one text has a word more than the other."""


def refusal(a: Words, b: Words) -> str | None:
    """Return why two texts may not share an answer, in the word of the first guard; None if none.

    Equal for (a, b) and (b, a).
    """
    return next((reason for guard in GUARDS if (reason := guard(a, b)) is not None), None)


def refusal_at(a: Words, b: Words, similarity: float, threshold: float) -> str | None:
    """Return why two texts of that cosine may not share an answer; None where they may.

    A word that one text only has is let through from the threshold and MODIFIER_MARGIN on.
    """
    if similarity < threshold:
        return "far"
    reason = refusal(a, b)
    if reason is None and similarity < threshold + MODIFIER_MARGIN:
        return compare_modifiers(a, b)
    return reason
