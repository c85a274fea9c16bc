"""The digest by which an example is recognised, however it was spaced or capitalised."""

import hashlib
import unicodedata


def text_digest(text: str) -> str:
    """Return the SHA-256 (hex) of a text without differences of case, width and white space.

    Calibration data and evaluation suites are compared by it, so that an example on which a model
    was tuned is never one on which it is judged.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return hashlib.sha256(" ".join(folded.split()).encode("utf-8", "surrogatepass")).hexdigest()
