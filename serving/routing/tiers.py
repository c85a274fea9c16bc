"""From complexity to a tier of frontier models."""

import re

from serving.contracts.routing import Tier
from serving.contracts.routing_settings import ComplexityThresholds
from serving.routing.conversation import Reading

_SHORT_WORDS = 6
_LONG_CHARS = 6000
_HARD = re.compile(
    r"\b(?:prove|proof|theorem|derive|lemma|refactor|debug|concurren\w+|implement|optimi[sz]e|"
    r"beweise?n?|démontre\w*|demuestra)\b",
    re.IGNORECASE,
)


def tier_of_score(score: float, thresholds: ComplexityThresholds) -> Tier:
    """Return the tier of a complexity score, the dearer one within the margin below a threshold."""
    if score + thresholds.margin < thresholds.low:
        return "economy"
    if score + thresholds.margin < thresholds.medium:
        return "standard"
    return "frontier"


def tier_by_rule(reading: Reading) -> Tier:
    """Return the tier where no score can be trusted.

    Economy: one turn of a few words without code. Frontier: code, proofs and very long prompts.
    Standard: everything else.
    """
    prompt = reading.prompt
    if reading.has_code or len(prompt.text) > _LONG_CHARS or _HARD.search(prompt.user):
        return "frontier"
    few = len(prompt.user.split()) <= _SHORT_WORDS and not prompt.system
    return "economy" if few and reading.turns == 1 and not reading.wants_more else "standard"
