"""Rough lengths of texts in tokens, where no tokenizer of the model is at hand. Pure."""


def quarter_tokens(text: str) -> int:
    """Return a rough length of a text in quarters of a token; lengths of parts add up.

    A character of English is a quarter of a token, of other alphabets a half, of Chinese, Japanese
    or Korean a whole one, an emoji two.
    """
    if text.isascii():
        return len(text)
    return sum(map(_quarters, text))


def _quarters(char: str) -> int:
    code = ord(char)
    if code < 0x80:
        return 1
    if code < 0x2E80:
        return 2
    return 4 if code < 0x10000 else 8
