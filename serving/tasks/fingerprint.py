"""A digest that is equal for texts that differ only in case, width and white space."""

import hashlib
import unicodedata


def text_digest(text: str) -> str:
    """Return the SHA-256 (hex) of a text without its differences in case, width and white space.

    Calibration data and evaluation suites are compared by it, so that no example is used both to
    tune a model and to evaluate it.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return hashlib.sha256(" ".join(folded.split()).encode("utf-8", "surrogatepass")).hexdigest()
