"""Names from files, made harmless before they are shown: the one place that knows what a terminal would obey."""

from __future__ import annotations

import re

LONGEST_WORD = 500
LONGEST_LINE = 4000

# Unicode's controls (Cc: escapes, returns, bells), what turns the direction of a line or breaks it, and
# halves of letters, which no encoding can write.
_TURNS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029"
_OBEYED = re.compile(f"[\x00-\x1f\x7f-\x9f\ud800-\udfff{_TURNS}]")


def harmless(text: str, keep: str = "") -> str:
    """Text as it may be shown on a terminal: each character that it would obey becomes one that it only draws.

    Args:
        text: Any text, such as a name from a file.
        keep: Control characters that stay: a newline where the text is our own lines.

    Example:
        >>> harmless("a\\x1b[31mb\\nc")
        'a␛[31mb␊c'
    """
    return _OBEYED.sub(lambda found: found[0] if found[0] in keep else _drawn(found[0]), text)


def _drawn(letter: str) -> str:
    code = ord(letter)
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def cut(text: str, limit: int = LONGEST_WORD) -> str:
    """A name with its middle left out where it is longer than any that somebody would read.

    Example:
        >>> cut("a" * 1000, 40)
        'aaaaaaaaaaaaaa...(972 more)...aaaaaaaaaaaaaa'
    """
    if len(text) <= limit:
        return text
    end = (limit - 12) // 2
    return f"{text[:end]}...({len(text) - 2 * end} more)...{text[-end:]}"


def shown(name: object, limit: int = LONGEST_WORD) -> str:
    """A name from a file as it is put into a line of text: harmless, on one line, and cut.

    Example:
        >>> shown("conv\\x1b]0;owned\\x07")
        'conv␛]0;owned␇'
    """
    return cut(harmless(str(name)), limit)


def one_line(text: str) -> str:
    """A message on one line: harmless, each word cut, and the whole too.

    Example:
        >>> one_line("expected a\\n  tile, got \\x1b[2J")
        'expected a tile, got ␛[2J'
    """
    return cut(" ".join(shown(word) for word in text.split()), LONGEST_LINE)
