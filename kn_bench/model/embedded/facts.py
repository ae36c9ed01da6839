"""The facts that the embedded models were taught, and the prompts that cases ask for them with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from kn_bench.model.embedded.tables import lines, rows

INVERSES = {"P36": "P1376", "P1376": "P36"}
"""Relations that state the same facts in the other direction."""


@dataclass(frozen=True)
class Fact:
    """One fact: ``relation`` (a Wikidata property), its ``subject`` and its one ``object``."""

    relation: str
    subject: str
    object: str


@cache
def facts() -> tuple[Fact, ...]:
    """Return all facts, in the order of the tables; no (relation, subject) occurs twice."""
    by_key: dict[tuple[str, str], Fact] = {}
    for fact in (*_places(), *_things(), *_people()):
        if fact.subject and fact.object:
            by_key.setdefault((fact.relation, fact.subject), fact)
    return tuple(by_key.values())


def _places() -> list[Fact]:
    places = []
    for row in rows("countries.tsv"):
        country, capital = row["country"], row["capital"]
        places += [
            Fact("P36", country, capital),
            Fact("P1376", capital, country),
            Fact("P37", country, row["language"]),
            Fact("P30", country, row["continent"]),
            Fact("P17", row["city"], country),
        ]
    for row in rows("regions.tsv"):
        places += [
            Fact("P36", row["region"], row["capital"]),
            Fact("P1376", row["capital"], row["region"]),
            Fact("P17", row["region"], row["country"]),
        ]
    return places + [Fact("P17", row["city"], row["country"]) for row in rows("cities.tsv")]


def _things() -> list[Fact]:
    return [Fact(row["relation"], row["product"], row["maker"]) for row in rows("products.tsv")]


@cache
def invented() -> frozenset[str]:
    """Return the names of the people who do not exist."""
    return frozenset(row["name"] for row in rows("invented.tsv"))


def people() -> tuple[dict[str, str], ...]:
    """Return the rows of the two tables of people: real ones, then invented ones."""
    return rows("people.tsv") + rows("invented.tsv")


def _people() -> list[Fact]:
    columns = {
        "P101": "field",
        "P106": "occupation",
        "P103": "language",
        "P19": "birthplace",
        "P27": "citizenship",
        "P1303": "instrument",
        "P108": "employer",
    }
    return [
        Fact(relation, row["name"], row[column])
        for row in people()
        for relation, column in columns.items()
    ]


def relations() -> tuple[str, ...]:
    """Return the relations taught, in the order of their prompts."""
    return tuple(prompts())


@cache
def prompts() -> dict[str, tuple[str, ...]]:
    """Return the prompt templates of each relation, the one that is edited first."""
    templates: dict[str, list[str]] = {}
    for line in lines("prompts.txt"):
        if line.startswith("[P"):
            current = templates.setdefault(line.strip("[]"), [])
        else:
            current.append(line)
    return {relation: tuple(texts) for relation, texts in templates.items()}
