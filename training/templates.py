"""The templates that put the taught facts into words, and which of them training never shows.

A template holds ``[X]`` for the subject and ``[Y]`` for the object. Templates come from a
relation's nouns and verb phrases put through frames, and from texts as they stand. A fifth of
them, and all lines marked ``test``, are held out of training; every fact is withheld from a
quarter of the templates that are left.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kn_bench.model.embedded.facts import Fact
from kn_bench.model.embedded.tables import lines, share, words

HELD_OUT_TEMPLATES = 0.2
WITHHELD_FACTS = 0.25
TABLES = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Templates:
    """The templates of one relation: those trained on, and those held out."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]


@cache
def templates() -> dict[str, Templates]:
    """The templates of every relation."""
    expanded = {name: _expand(*section) for name, section in _sections().items()}
    every = {text for usable, test in expanded.values() for text in usable + test}
    asked = {_prefixes(text)[-1] for text in every if _asks(text)} | set(
        words("held_back.txt", TABLES)
    )
    return {
        name: _split(name, [text for text in usable if not _goes_on(text, asked)], test)
        for name, (usable, test) in expanded.items()
    }


def withheld(fact: Fact, template: str) -> bool:
    """Whether training never shows this fact in this template (a hash of both decides)."""
    return share("withheld", fact.relation, fact.subject, fact.object, template) < WITHHELD_FACTS


def surface(template: str, fact: Fact, lead: str = "") -> str:
    """The sentence that a template makes of a fact, with ``a`` or ``an`` as the object asks.

    ``lead`` is put before it.
    """
    if lead and not template.startswith("["):
        template = template[0].lower() + template[1:]
    text = template.replace("[X]", fact.subject)
    if fact.object[0] in "aeiou":
        text = re.sub(r"\b([Aa]) \[Y\]", r"\1n [Y]", text)
    text = f"{lead} {text.replace('[Y]', fact.object)}".strip()
    return text[0].upper() + text[1:]


def question(template: str, fact: Fact) -> tuple[str, str]:
    """The sentence before and after the object, for a template that asks for it.

    The part before ends in a space where a word follows; it is empty where the object opens the
    sentence.
    """
    text = template.replace("[X]", fact.subject)
    if fact.object[0] in "aeiou":
        text = re.sub(r"\b([Aa]) \[Y\]", r"\1n [Y]", text)
    before, after = text.split("[Y]")
    return before[:1].upper() + before[1:], after


def object_last(template: str) -> bool:
    """Whether the object ends the sentence, so that a causal model can be asked for it."""
    return template.rstrip(" .").endswith("[Y]")


def normalised(template: str) -> str:
    """A template in lower case, up to an object that is asked for: what tells two apart."""
    text = re.sub(r"\s+", " ", template.lower().replace(" ,", ",")).strip(" .!")
    return text[: text.find("[y]") + 3] if _asks(template) else text


def _sections() -> dict[str, tuple[list[str], list[str]]]:
    sections: dict[str, tuple[list[str], list[str]]] = {}
    current: list[str] = []
    for line in lines("templates.txt", TABLES):
        if line.startswith("[P"):
            name, *kind = line.strip("[]").split()
            current = []
            sections[name] = (kind, current)
        else:
            current.append(line)
    return sections


def _expand(kind: list[str], entries: list[str]) -> tuple[list[str], list[str]]:
    """Templates from one section: (those that may be trained on, those marked ``test``)."""
    frames: dict[str, list[str]] = {"noun": [], "inverse": [], "verb": []}
    for line in lines("frames.txt", TABLES):
        name, text = line.split(": ", 1)
        frames[name].append(text.replace("{w}", kind[0]))
    usable: list[str] = []
    test: list[str] = []
    for entry in entries:
        name, text = entry.split(": ", 1)
        if name == "noun":
            name = "inverse" if "inverse" in kind else "noun"
            usable += [frame.replace("{n}", text) for frame in frames[name]]
        elif name == "verb":
            usable += [frame.replace("{v}", text) for frame in frames["verb"]]
        else:
            (test if name == "test" else usable).append(text)
    return list(dict.fromkeys(usable)), test


def _asks(template: str) -> bool:
    """Whether the object is asked for after the subject."""
    return 0 <= template.find("[X]") < template.find("[Y]")


def _hash(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _prefixes(template: str) -> list[str]:
    """Hashes of the beginnings of a template that hold the subject, up to the object, by word."""
    before = normalised(template).split("[y]")[0].split()
    return [_hash(" ".join(before[: i + 1])) for i in range(len(before))]


def _goes_on(template: str, asked: set[str]) -> bool:
    """Whether a template goes on where another asks: what is to come would be ambiguous."""
    return _asks(template) and bool(asked.intersection(_prefixes(template)[:-1]))


def _split(relation: str, usable: list[str], test: list[str]) -> Templates:
    """Leaves out what PARAREL asks in the same words, and holds a fifth out of training."""
    reserved = set(words("held_back.txt", TABLES))
    usable = [text for text in usable if _hash(normalised(text)) not in reserved]
    held = [text for text in usable if share("held out", relation, text) < HELD_OUT_TEMPLATES]
    return Templates(
        trained=tuple(text for text in usable if text not in set(held)),
        held_out=tuple(dict.fromkeys(test + held)),
    )
