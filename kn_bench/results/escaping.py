"""Text from anywhere, made safe for the medium that shows it: one function a medium.

Names of methods and models, reasons and notes come from plug-ins, data files and exceptions. None
of them may open a tag, a link or a heading, or send a control sequence to a terminal.

    terminal    control characters made visible
    markdown    one line, no tag, no link, no cell border, no emphasis
    html        for an element or a quoted attribute
    csv         no formula for a spreadsheet

What needs no escaping stays as it is, so that a page is readable as plain text too.
"""

from __future__ import annotations

import html as _html
import re
import unicodedata

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_ENTITY = re.compile(r"&(?=#?\w+;)")
_LINK = re.compile(r"\](?=[(\[:])")
_ADDRESS = re.compile(r"(?<=\w):(?=//)|(?<=\bwww)\.|(?<=\bjavascript):", re.IGNORECASE)
_EDGE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that move the cursor, reverse the text or end a line."""


def terminal(text: str, *, lines: bool = False) -> str:
    r"""Return ``text`` with control and formatting characters as escapes such as ``\x1b``.

    Args:
        text: any text.
        lines: keep line ends; otherwise the text becomes one line.
    """
    if not lines:
        text = " ".join(text.split())
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character, lines) for character in text)


def _visible(character: str, lines: bool) -> str:
    if unicodedata.category(character) not in _INVISIBLE or (lines and character in "\n\t"):
        return character
    # joiners belong to the writing of several languages, and to emoji
    if character in "\u200c\u200d":
        return character
    return (
        character.encode("ascii", "backslashreplace").decode()
        if character > "\x7f"
        else (f"\\x{ord(character):02x}")
    )


def markdown(text: str) -> str:
    """Return ``text`` as one line of Markdown, or a cell of a table, that shows it literally.

    Entities are used where renderers disagree on backslashes (``<``), and only where a character
    would mean something: ``0.93 [0.88, 0.97]`` and ``rome_no_c`` stay as they are.
    """
    text = terminal(text)
    text = text.replace("\\", "\\\\")
    text = _ENTITY.sub("&amp;", text)
    text = _TAG.sub("&lt;", text)
    text = _LINK.sub(r"\\]", text)
    text = _ADDRESS.sub(lambda sign: f"&#{ord(sign[0])};", text)
    text = _EDGE.sub(r"\\_", text)
    return re.sub(r"([|`*~$])", r"\\\1", text)


def html(text: str) -> str:
    """Return ``text`` for the inside of an element or of a quoted attribute."""
    return _html.escape(terminal(text), quote=True)


def csv(text: str) -> str:
    """Return ``text`` as a cell that no spreadsheet takes for a formula."""
    text = terminal(text)
    dangerous = text[:1] in ("=", "+", "-", "@") and not _NUMBER.fullmatch(text)
    return f"'{text}" if dangerous else text
