"""When a free-running continuation counts as an answer, and when two of them are the same answer.

Case, punctuation and articles do not matter; words do, so ``Paris`` is not found in ``Parisian``.
Vowel signs and accents belong to their word, in every script.
Only what the model generated is read, never the prompt, and the number of words or tokens of the
answer plays no part in generating it.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

ARTICLES = frozenset({"a", "an", "the"})
_UNSEEN = re.compile("[\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Joiners and variation selectors: they tell how a letter looks, not which it is."""


class _Patterns(NamedTuple):
    """What words and sentences are made of.

    Attributes:
        word: a word; ``C++`` and ``C#`` are not ``C``.
        acronym_stop: the stops of ``U.S.A.``, which is the word ``USA``.
        sentence_end: the end of an answer. Three characters before the stop: ``St. Louis`` goes on.
        ended: the same in a text that may go on: a stop at its end may be that of ``kn.bench``.
    """

    word: re.Pattern[str]
    acronym_stop: re.Pattern[str]
    sentence_end: re.Pattern[str]
    ended: re.Pattern[str]


def _patterns(text: str) -> _Patterns:
    r"""Return the patterns for ``text``: to Python, a vowel sign or an accent is no ``\w``."""
    marked = not text.isascii() and any(unicodedata.category(char)[0] == "M" for char in text)
    return _compiled(with_marks=marked)


@lru_cache(maxsize=2)
def _compiled(*, with_marks: bool) -> _Patterns:
    every = map(chr, range(sys.maxunicode + 1)) if with_marks else ()
    marks = "".join(char for char in every if unicodedata.category(char)[0] == "M")
    letter = rf"\w{marks}"
    ending = rf"(?<=[{letter}]{{3}})[.!?]"
    return _Patterns(
        re.compile(rf"\w[{letter}+#]*"),
        re.compile(rf"(?<=\w)(?<![{letter}]\w)\.(?=\w(?![{letter}]))"),
        re.compile(rf"{ending}(?=\s|$)|\n"),
        re.compile(rf"{ending}(?=\s)|\n"),
    )


@lru_cache(maxsize=1 << 16)
def words(text: str) -> tuple[str, ...]:
    """Return the words of ``text`` that matter when answers are compared.

    Case is folded and punctuation separates. Articles at the start are dropped, ``the`` everywhere
    (Republic of the Congo); an inner ``a`` may be a name (vitamin A) and stays. A text of articles
    alone keeps them.
    """
    all_words = every_word(text)
    first = next((i for i, word in enumerate(all_words) if word not in ARTICLES), None)
    if first is None:
        return all_words
    return tuple(word for word in all_words[first:] if word != "the")


def every_word(text: str) -> tuple[str, ...]:
    """Return the words of ``text``, case folded, with its articles."""
    text = _UNSEEN.sub("", unicodedata.normalize("NFKC", text).casefold())
    patterns = _patterns(text)
    return tuple(patterns.word.findall(patterns.acronym_stop.sub("", text)))


def starts_with_answer(generated: str, answer: str, aliases: Iterable[str] = ()) -> bool:
    """Tell whether ``generated`` begins with ``answer`` or one of ``aliases``, word by word.

    An answer without any word (``"!"``) is compared as it stands; an empty one never matches.
    """
    return any(_starts_with(generated, form) for form in (answer, *aliases))


def _starts_with(generated: str, answer: str) -> bool:
    wanted = words(answer)
    if not wanted:
        return bool(answer.strip()) and generated.strip().startswith(answer.strip())
    given = every_word(generated) if ARTICLES.issuperset(wanted) else words(generated)
    return given[: len(wanted)] == wanted


def same_answer(first: str, second: str) -> bool:
    """Tell whether two continuations have equal words up to the first sentence's end.

    What a model goes on to say after its answer is not the answer.
    """
    return words(first_sentence(first)) == words(first_sentence(second))


def first_sentence(text: str) -> str:
    """Return ``text`` up to its first sentence end or line break."""
    return _patterns(text).sentence_end.split(text.strip(), maxsplit=1)[0]


def is_settled(generated: str, n_words: int, *, sentence: bool) -> bool:
    """Whether no continuation of ``generated`` changes how it compares with other answers.

    Args:
        generated: the beginning of a text.
        n_words: words of the longest answer that it is compared with by :func:`starts_with_answer`.
        sentence: whether it is also compared by :func:`same_answer`.
    """
    end = _patterns(generated).ended.search(generated.lstrip())
    if end is None:
        return not sentence and _n_settled(generated) > n_words
    # the last word of a text may be a part of one, the last of a sentence is not
    whole = generated.lstrip()[: end.start()]
    return _n_settled(whole) >= n_words or _n_settled(generated) > n_words


def _n_settled(generated: str) -> int:
    """Return how many words a comparison sees, whatever follows: articles alone may yet go."""
    counted = words(generated)
    return 0 if ARTICLES.issuperset(counted) else len(counted)
