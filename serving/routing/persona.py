"""System messages that say who answers and not what to do."""

import re

_WHO = (
    r"(?:you are|you're|act as|du bist|sie sind|tu es|vous êtes|eres|usted es)"
    r" (?:an? |the |ein |eine |un |une |el |la )?"
)
_HELPER = (
    r"(?:assistant|chatbot|chat bot|bot|ai|language model|helper|assistent|assistente|asistente|"
    r"agent|system|model|ki|ia)"
)
_PERSONA = re.compile(
    rf"\A\s*(?:{_WHO}(?:[\w-]+ ){{0,4}}{_HELPER}(?: (?:named|called) \w+)?\s*[.!]?"
    r"|(?:please )?(?:answer|respond|reply|be) (?:\w+ )?(?:helpful(?:ly)?|concise(?:ly)?|"
    r"accurate(?:ly)?|brief(?:ly)?|polite(?:ly)?|honest(?:ly)?)(?:,? and \w+)?\s*[.!]?)\s*",
    re.IGNORECASE,
)


def is_persona(system: str) -> bool:
    """Tell whether a system message is nothing but "You are a helpful assistant" and its like."""
    rest = system
    while rest.strip():
        match = _PERSONA.match(rest)
        if match is None or match.end() == 0:
            return False
        rest = rest[match.end() :]
    return True
