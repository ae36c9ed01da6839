"""What the published forms have in common: answers with aliases, questions, prompts with a subject.

Questions (zsRE, QAEdit, WikiBigEdit, MQuAKE) are not clozes. A base model is asked them in a frame,
``Q: … A:``, which stands in the prompt itself and so in the hash of the data.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from kn_bench.cases.building.fact_row import LeftOut, Neighbour, Portability
from kn_bench.cases.cloze import PLACE, RUN_ON, Cloze

FRAME = "Q: {question} A:"
"""How a question is put to a base model."""
NO_ANSWER = "the data brings no answer to the question"
_RUNS_ON = re.compile(f"[{RUN_ON}]")
_HANGUL = re.compile("[가-힣]")
UNKNOWN_GROUP = "the group of questions is not one that its data set has"


class Unusable(Exception):  # noqa: N818 - a reason, not an error
    """A record of the right form that cannot be edited or asked; its text is the reason.

    Attributes:
        detail: what exactly, for the log.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


def text(fields: Mapping[str, Any], name: str) -> str:
    """Return the text of a field that must be there.

    Raises:
        ValueError: when it is missing, empty or not a text.
    """
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r}; expected a text that is not empty")
    return value.strip()


def optional(fields: Mapping[str, Any], name: str, default: str = "") -> str:
    """Return a field that may be missing or null as text; a number is written out.

    Raises:
        ValueError: when it is anything else: a list, an object, true or false.
    """
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, str) or _is_number(value):
        return value.strip() if isinstance(value, str) else _number(value)
    raise ValueError(f"{name} is {value!r}; expected a text")


def texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return the texts of a list that may be missing or null.

    Raises:
        ValueError: when it is not a list of texts that are not empty.
    """
    value = fields.get(name)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {value!r}; expected a list of texts")
    return tuple(text({name: item}, name) for item in value)


def answers(value: Any) -> tuple[str, ...]:
    """Return an answer and its aliases from a text, a list, or nested lists of aliases."""
    return tuple(dict.fromkeys(answer.strip() for answer in _leaves(value) if answer.strip()))


def new_answers(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return what a record is to be edited to, and its aliases.

    Raises:
        Unusable: when the record does not say.
    """
    new = answers(fields.get(name))
    if not new:
        raise Unusable("the data brings no new answer")
    return new


def prompts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return the prompts of a field, a text or a list of them, without blanks and repeats.

    Raises:
        ValueError: for anything else.
    """
    return tuple(dict.fromkeys(prompt for prompt in each_prompt(fields, name) if prompt))


def each_prompt(fields: Mapping[str, Any], name: str) -> list[str]:
    """Return the prompts of a field, each at its place; "" where there is none.

    Raises:
        ValueError: for what is neither a text, a list of texts nor null.
    """
    value = fields.get(name)
    if isinstance(value, list | tuple):
        return [prompt for item in value for prompt in each_prompt({name: item}, name)]
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}; expected a text or a list of texts")
    return [(value or "").strip()]


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, Mapping):  # RippleEdits: {"value": …, "aliases": […]}
        yield from _leaves(value.get("value", value.get("str", "")))
        yield from _leaves(value.get("aliases", []))
    elif _is_number(value):
        yield _number(value)


def _number(value: int | float) -> str:
    """Return a number as text, a whole one without the ``.0`` that tables give it."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_number(value: Any) -> bool:
    """Tell whether a value can be written out.

    Raises:
        ValueError: for NaN and infinity, which tables and some JSON have where nothing is known.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a value is {value}; expected a text or a number, or null for none")
    return isinstance(value, int | float) and not isinstance(value, bool)


def unrelated(fields: Mapping[str, Any], prefix: str = "") -> Iterator[Neighbour]:
    """Yield the question of ``loc`` with the answers of ``loc_ans``, where a record has both.

    Args:
        fields: of the record.
        prefix: what stands before each question of the data set.

    Raises:
        ValueError: for a question that is no text.
    """
    for question, expected in _answered(fields, "loc", "loc_ans"):
        cloze = cloze_of(question.removeprefix(prefix).strip(), question=True)
        yield Neighbour(cloze, expected[0], "other_relation", expected[1:])


def follows(kind: str, fields: Mapping[str, Any], name: str, answer: str) -> Iterator[Portability]:
    """Yield a question whose answer should follow from the edit, where a record has both.

    Raises:
        ValueError: for a question that is no text.
    """
    for question, expected in _answered(fields, name, answer):
        yield Portability(kind, cloze_of(question, question=True), expected)


def _answered(
    fields: Mapping[str, Any], name: str, answer: str
) -> Iterator[tuple[str, tuple[str, ...]]]:
    expected = answers(fields.get(answer))
    if expected and fields.get(name) not in (None, ""):
        yield text(fields, name), expected


def unanswered(
    group: str, fields: Mapping[str, Any], name: str, answer: str
) -> tuple[LeftOut, ...]:
    """Return the questions of a field that a record brings no answer to.

    Raises:
        ValueError: for a question that is no text.
    """
    if answers(fields.get(answer)):
        return ()
    return tuple(LeftOut(group, NO_ANSWER, prompt) for prompt in prompts(fields, name))


def is_question(prompt: str) -> bool:
    """Tell whether a prompt is a question rather than the beginning of a sentence."""
    return prompt.rstrip().endswith("?")


def framed(question: str) -> str:
    """Return a question in the frame in which a base model is asked it."""
    question = question.strip()
    return FRAME.replace("{question}", question if is_question(question) else f"{question}?")


def cloze_of(prompt: str, *, question: bool | None = None) -> Cloze:
    """Return what is asked by ``prompt``, the answer at ``[Y]`` or at its end.

    Args:
        question: whether it is a question; by its question mark when None.

    Raises:
        ValueError: for a text with a place for another text in it.
    """
    if "{}" in prompt:
        raise ValueError(f"the prompt {prompt!r}: expected the subject in full; write it for {{}}")
    if PLACE in prompt:
        return Cloze.parse(prompt)
    if is_question(prompt) if question is None else question:
        return Cloze(framed(prompt), "")
    return Cloze.parse(prompt.rstrip(), ".")


def place_subject(prompt: str, subject: str) -> tuple[str, str]:
    """Return ``prompt`` with ``{}`` where its subject stands, and the subject as spelled there.

    Both are as they were where the prompt does not name its subject: methods that need it are then
    not applicable, the others are. A whole word is preferred, as it stands or in other case, to a
    part of one, such as an inflected name.

    Raises:
        ValueError: for a prompt that marks another place for the answer than its end.
    """
    if "[Y]" in prompt:
        raise ValueError(f"the prompt {prompt!r}: expected the answer at its end; remove [Y]")
    if "{}" in prompt:
        return prompt, subject
    as_it_stands, in_any_case = (
        occurrences(subject, prompt, flags) for flags in (0, re.IGNORECASE)
    )
    whole_words = [*as_it_stands, *in_any_case]
    match = whole_words[0] if whole_words else re.search(re.escape(subject), prompt)
    if match is None:
        return prompt, subject
    return f"{prompt[: match.start()]}{{}}{prompt[match.end() :]}", match[0]


def occurrences(name: str, text: str, flags: int = 0) -> list[re.Match[str]]:
    """Return where ``name`` stands in ``text`` as a whole word, or as several."""
    return [match for match in re.finditer(re.escape(name), text, flags) if _is_whole(match)]


def _is_whole(match: re.Match[str]) -> bool:
    """Tell whether no word goes on beyond the match; a Korean particle may follow it."""
    text, start, end = match.string, match.start(), match.end()
    before, after = text[max(0, start - 1) : start + 1], text[end - 1 : end + 1]
    pairs = (before, "" if _HANGUL.match(after[1:]) else after)
    return not any(len(pair) == 2 and all(map(_spells, pair)) for pair in pairs)


def _spells(char: str) -> bool:
    """Tell whether ``char`` is part of a word in a script that separates words by spaces."""
    return not _RUNS_ON.match(char) and unicodedata.category(char)[0] in "LMN"


def edited_prompt(prompt: str, subject: str) -> tuple[str, str, str]:
    """Return prompt, suffix and subject of a request, the subject as the prompt spells it.

    A question is framed, a cloze is closed by a full stop.
    """
    placed, spelled = place_subject(prompt.strip(), subject)
    return (framed(placed), "", spelled) if is_question(placed) else (placed, ".", spelled)
