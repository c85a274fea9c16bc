"""The lines of a text file."""


def file_lines(text: str) -> list[str]:
    r"""Return a file's lines without their ends, which are \n or \r\n.

    str.splitlines() also splits at U+2028, U+0085 and others, which a JSON string may hold.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines
