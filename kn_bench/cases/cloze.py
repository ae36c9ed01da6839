"""A text with one gap for its answer, and the spaces beside it.

Without ``[Y]`` a prompt does not say whether a space stands before its answer. What opens a quote
or a bracket, and what joins two parts of a word or number, is followed by the answer at once. A
mark that opens and closes alike (``"``, ``«`` in German, an apostrophe) opens where no other waits
to be closed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_OPENING = frozenset("([{„‚¿¡$€£¥")
_CLOSING = frozenset("’”]}%‰°…")
_ALIKE = frozenset('"`')
_PAIRED = {"«": "»", "»": "«", "‹": "›", "›": "‹", "“": "„", "‘": "‚"}
"""What opens in one language -> what it closes in another."""
_JOINING = frozenset("=/-–—")
_APOSTROPHE = frozenset("'’")
_QUOTE = re.compile(r"(?:^|[\s(\[{=/\"“„«-])['’]$")
_ELISION = re.compile(r"(?<![\w'’])(?:[cdjlmnst]|\w*qu|\w*ll|un)['’]$", re.IGNORECASE)
"""L'Italie, qu'Anna, dell'Umbria."""
_QUOTED = re.compile(r"(?:^|[\s(])'")


def is_unspaced(char: str) -> bool:
    """Tell whether no space stands beside ``char``: Chinese and Japanese script and its stops."""
    return "\u3000" <= char <= "\u9fff" or "\uff00" <= char <= "\uffef"


RUN_ON = "\u0e00-\u109f\u1780-\u17ff\u3000-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
"""Scripts that do not separate words, as a class of a pattern: Thai, Lao, Tibetan, Burmese; Khmer;
Chinese and Japanese, with what :func:`is_unspaced` tells, and their rarer characters."""


PLACE = "[Y]"
"""Marks where the answer stands in a user's own prompt."""


class Cloze(NamedTuple):
    """A text with one gap for the answer.

    ``left`` ends and ``right`` begins exactly where the answer stands, without the space that
    separates them: :meth:`fill` sets the spaces as English does. Where the text says otherwise,
    ``gap`` is what stands between ``left`` and the answer, a space or nothing, and ``right``
    follows the answer as it is.
    """

    left: str
    right: str = ""
    gap: str | None = None

    @classmethod
    def parse(cls, prompt: str, suffix: str = "") -> Cloze:
        """Return the question of a fact: the answer at ``[Y]``, or between the two texts.

        What stands beside ``[Y]``, or white space at the prompt's end, is kept as it is. Else
        spaces are set as English does, and none beside what opens or closes.
        """
        between_words = prompt[-1:].isalnum() and (suffix[:1] in ".,;:!?" or suffix[0].isalnum())
        if between_words and PLACE not in prompt:  # most prompts, in a tenth of the time
            return cls(prompt, suffix)
        left, place, rest = prompt.partition(PLACE)
        right = rest + suffix
        plain = cls(left.rstrip(), right.lstrip())
        space = "" if place or left[-1:].isspace() or opens(left) else plain.gap_space
        after = "" if place or right[:1].isspace() or closes(left, right) else plain.after_space
        before = left + space
        gap = " " if before.endswith(" ") else ""
        written = cls(before.removesuffix(" "), after + right, gap)
        return plain if plain.fill(PLACE) == written.fill(PLACE) else written

    @property
    def marked(self) -> tuple[str, str]:
        """The texts before and after the answer, with ``[Y]`` where they stand as they are."""
        return (self.left if self.gap is None else f"{self.left}{self.gap}{PLACE}"), self.right

    def fill(self, answer: str) -> str:
        """Return the text with ``answer`` in the gap."""
        return self.left + self.gap_space + answer + self.after_space + self.right

    def __repr__(self) -> str:
        # it is hashed with the data: the last field is left out where it says nothing
        named = self[:-1] if self.gap is None else self
        return f"Cloze({', '.join(map('{}={!r}'.format, self._fields, named))})"

    @property
    def gap_space(self) -> str:
        """The space between ``left`` and an answer: none at the start, none in unspaced scripts."""
        if self.gap is not None:
            return self.gap
        return " " if self.left and not is_unspaced(self.left[-1]) else ""

    @property
    def after_space(self) -> str:
        """The space between an answer and ``right``: none before punctuation, clitics, hyphens."""
        if self.gap is not None or not self.right:
            return ""
        if self.right[0] in ".,;:!?')" or is_unspaced(self.right[0]):
            return ""
        return "" if self.right[0] == "-" and self.right[1:2].isalnum() else " "

    @property
    def answer_is_last(self) -> bool:
        """Whether nothing but punctuation follows the gap: a causal model can answer it."""
        return not any(map(str.isalnum, self.right))


def split(text: str, subject: str) -> tuple[str, str]:
    """Return ``text`` before and after ``[Y]``, which stays with the first where it says more.

    Args:
        subject: what stands for ``{}``.
    """
    left, place, right = text.partition(PLACE)
    if not place:
        return text, ""
    usual = left.rstrip(), right.lstrip()
    asked = (Cloze.parse(*(part.replace("{}", subject) for part in parts))
             for parts in ((text, ""), usual))  # fmt: skip
    return usual if next(asked) == next(asked) else (left + PLACE, right)


def default_suffix(text: str) -> str:
    """Return what follows the answer of a prompt that does not say: nothing after a question."""
    return "" if PLACE in text or text.rstrip().endswith("?") else "."


def end_of(prompt: str) -> str:
    """Return the white space at the end of a prompt that says how its answer follows."""
    text = prompt.rstrip()
    end = "" if PLACE in text else prompt[len(text) :]
    return end if end.strip(" ") else " " if end and opens(text) else ""


def opens(text: str) -> bool:
    """Return whether an answer follows the end of ``text`` without a space."""
    last, rest = text[-1:], text[:-1]
    if last in _ALIKE:
        return rest.count(last) % 2 == 0
    if last in _PAIRED:
        return rest.count(_PAIRED[last]) <= rest.count(last)
    if last in _APOSTROPHE:
        return bool(_QUOTE.search(text) or (_ELISION.search(text) and not _QUOTED.search(rest)))
    if last == "#":  # not in "written in C#"
        return not rest[-1:].isalnum()
    if last in _JOINING:  # not in "capital ="
        return not text.rstrip(last)[-1:].isspace() and text != last
    return last in _OPENING


def closes(text: str, suffix: str) -> bool:
    """Return whether ``suffix`` follows an answer, itself after ``text``, without a space."""
    first = suffix[:1]
    if first in _ALIKE or first in _PAIRED:
        return not opens(text + first)
    return first in _CLOSING
