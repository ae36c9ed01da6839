"""Measures embedded models: ``python -m training.evaluate NAME|FOLDER ...``.

Own data that was not trained on always; with ``--pararel`` and ``--blimp`` (folders with the
files of those benchmarks) also how far that carries to foreign phrasing and vocabulary.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from kn_bench.model.embedded.facts import INVERSES, Fact, facts, prompts, relations
from kn_bench.model.embedded.grammar import PARADIGMS, Grammar
from training.scoring import Scorer
from training.templates import object_last, question, templates, withheld

log = logging.getLogger(__name__)

CAUSAL_PARADIGMS = tuple(PARADIGMS)


class Rate(NamedTuple):
    """A share of right answers, and of how many."""

    rate: float
    n: int


class FactQuestion(NamedTuple):
    """A fact in a template."""

    fact: Fact
    template: str


def rate(outcomes: Iterable[bool]) -> Rate:
    """The share of true outcomes, rounded to 4 places; 0 of none."""
    values = list(outcomes)
    return Rate(round(sum(values) / max(1, len(values)), 4), len(values))


def recall(scorer: Scorer, asked: Sequence[FactQuestion]) -> list[bool]:
    """Which facts the model answers."""
    questions = [question(template, fact) for fact, template in asked]
    return scorer.answers(questions, [fact.object for fact, _ in asked])


def askable(scorer: Scorer, fact: Fact, template: str) -> bool:
    """Whether the model can be asked: a causal one for what comes last, else for one token."""
    if scorer.masked:
        return scorer.one_token(fact.object)
    return object_last(template)


def questions_of(scorer: Scorer, which: str) -> list[FactQuestion]:
    """All facts in templates: ``trained``, ``withheld`` (unseen combinations) or ``held_out``."""
    questions = []
    for fact in facts():
        known = templates()[fact.relation]
        texts = known.held_out if which == "held_out" else known.trained
        for template in texts:
            if which != "held_out" and withheld(fact, template) != (which == "withheld"):
                continue
            if which != "trained" and shown(fact, template):
                continue
            if askable(scorer, fact, template):
                questions.append(FactQuestion(fact, template))
    return questions


def shown(fact: Fact, template: str) -> bool:
    """Whether training may show the same words up to the object inside another sentence.

    So it is where templates differ behind the object alone ("..., is well known"), where one holds
    another ("Everyone says that ..."), and where the inverse relation has the same sentence.
    """
    before, after = question(template, fact)
    asks = template.find("[X]") < template.find("[Y]")
    text = _plain(before + fact.object + ("" if asks else after))
    return any(text in other for other in _sentences()[frozenset((fact.subject, fact.object))])


@cache
def _sentences() -> dict[frozenset[str], list[str]]:
    """All facts in all templates that training may show, by the two names that they hold."""
    by_names: dict[frozenset[str], list[str]] = {}
    for fact in facts():
        sentences = by_names.setdefault(frozenset((fact.subject, fact.object)), [])
        for template in templates()[fact.relation].trained:
            if not withheld(fact, template):
                before, after = question(template, fact)
                sentences.append(_plain(before + fact.object + after))
    return by_names


def _plain(text: str) -> str:
    return text.lower().strip(" .!")


def sample(items: Sequence[FactQuestion], count: int, seed: int) -> list[FactQuestion]:
    """So many of the items, or all; the same for the same seed."""
    if len(items) <= count:
        return list(items)
    return random.Random(seed).sample(items, count)


def fact_report(scorer: Scorer, count: int = 6000, seed: int = 0) -> dict[str, object]:
    """Recall on trained templates, unseen combinations and held-out templates, by relation too."""
    report: dict[str, object] = {}
    for which in ("trained", "withheld", "held_out"):
        asked = sample(questions_of(scorer, which), count, seed)
        right = recall(scorer, asked)
        report[which] = rate(right)
        report[f"{which}_by_relation"] = {
            name: rate(
                ok for item, ok in zip(asked, right, strict=True) if item.fact.relation == name
            )
            for name in relations()
        }
    return report


def unseen_prompt(scorer: Scorer, fact: Fact) -> str | None:
    """The first prompt of the fact's relation that never showed it, None where there is none."""
    held_out = templates()[fact.relation].held_out
    for template in prompts()[fact.relation] + held_out:
        unseen = template in held_out or withheld(fact, template)
        if unseen and not shown(fact, template) and askable(scorer, fact, template):
            return template
    return None


def inverse_report(scorer: Scorer) -> dict[str, Rate]:
    """For each relation with an inverse: how many of its facts are known in both directions."""
    report = {}
    by_relation = {name: [f for f in facts() if f.relation == name] for name in INVERSES}
    for name, other in INVERSES.items():
        back = {(f.subject, f.object): f for f in by_relation[other]}
        pairs = []
        for fact in by_relation[name]:
            inverse = back.get((fact.object, fact.subject))
            texts = unseen_prompt(scorer, fact), inverse and unseen_prompt(scorer, inverse)
            if inverse and texts[0] and texts[1]:
                pairs.append((FactQuestion(fact, texts[0]), FactQuestion(inverse, texts[1])))
        right = recall(scorer, [asked for pair in pairs for asked in pair])
        report[name] = rate(a and b for a, b in zip(right[::2], right[1::2], strict=True))
    return report


def grammar_report(scorer: Scorer, count: int = 200, seed: int = 0) -> dict[str, Rate]:
    """On pairs with combinations never trained on: how often the good one is likelier."""
    report = {}
    for paradigm in PARADIGMS:
        grammar = Grammar(f"measure {seed}", held_out=True)
        pairs = [grammar.pair(paradigm) for _ in range(count)]
        good = [pair.sentence_good for pair in pairs]
        report[paradigm] = preference(scorer, good, [pair.sentence_bad for pair in pairs])
    return report


def preference(scorer: Scorer, good: Sequence[str], bad: Sequence[str]) -> Rate:
    """The share of pairs whose good sentence is likelier."""
    scores = scorer.log_probabilities([*good, *bad])
    return rate(a > b for a, b in zip(scores[: len(good)], scores[len(good) :], strict=True))


def blimp_report(scorer: Scorer, folder: Path, count: int = 200) -> dict[str, Rate]:
    """The same on the first ``count`` pairs of BLiMP's own files."""
    report = {}
    for paradigm in PARADIGMS:
        with (folder / f"{paradigm}.jsonl").open(encoding="utf-8") as lines:
            pairs = [json.loads(line) for line in islice(lines, count)]
        good = [pair["sentence_good"] for pair in pairs]
        report[paradigm] = preference(scorer, good, [pair["sentence_bad"] for pair in pairs])
    return report


def pararel_report(scorer: Scorer, folder: Path, count: int = 6000) -> dict[str, object]:
    """Recall of the taught facts that PARAREL holds too, and of all, in PARAREL's own patterns."""
    shared, every = [], []
    for relation in relations():
        path = folder / "patterns" / f"{relation}.jsonl"
        if not path.exists():
            continue
        patterns = [json.loads(line)["pattern"] for line in path.open(encoding="utf-8")]
        rows = map(json.loads, (folder / "facts" / path.name).open(encoding="utf-8"))
        held = {(row["sub_label"], row["obj_label"]) for row in rows}
        for fact in facts():
            if fact.relation != relation:
                continue
            for pattern in patterns:
                text = " ".join(pattern.split()).replace(" .", ".").replace(" ,", ",")
                if not fits(text, fact) or not askable(scorer, fact, text):
                    continue
                every.append(FactQuestion(fact, text))
                if (fact.subject, fact.object) in held:
                    shared.append(FactQuestion(fact, text))
    report: dict[str, object] = {}
    for name, asked in (("shared_facts", shared), ("all_facts", every)):
        asked = sample(asked, count, 0)
        right = recall(scorer, asked)
        report[name] = rate(right)
        report[f"{name}_by_relation"] = {
            relation: rate(
                ok for item, ok in zip(asked, right, strict=True) if item.fact.relation == relation
            )
            for relation in relations()
        }
        report[f"{name}_by_pattern"] = {
            f"{relation} {pattern}": rate(
                ok
                for item, ok in zip(asked, right, strict=True)
                if item.template == pattern and item.fact.relation == relation
            )
            for relation, pattern in sorted({(a.fact.relation, a.template) for a in asked})
        }
    return report


def fits(pattern: str, fact: Fact) -> bool:
    """Whether a pattern's article, if it has one before the object, is the object's."""
    vowel = fact.object[0].lower() in "aeiou"
    words = pattern.lower().split("[y]")[0].split()
    article = words[-1] if words else ""
    return article not in ("a", "an") or (article == "an") == vowel


def measure(
    folder: Path, pararel: Path | None = None, blimp: Path | None = None, count: int = 6000
) -> dict[str, object]:
    """Everything that is measured of one model."""
    scorer = Scorer(folder)
    pairs = min(200, count)
    grammar = grammar_report(scorer, pairs)
    report: dict[str, object] = {
        "facts": fact_report(scorer, count),
        "inverses": inverse_report(scorer),
        "grammar": grammar,
        "grammar_mean": mean(grammar),
    }
    if blimp:
        of_blimp = blimp_report(scorer, blimp, min(60, pairs) if scorer.masked else pairs)
        report |= {"blimp": of_blimp, "blimp_mean": mean(of_blimp)}
    if pararel:
        report["pararel"] = pararel_report(scorer, pararel, count)
    return report


def mean(rates: dict[str, Rate]) -> float:
    """The mean of rates, each counted once."""
    return round(sum(share.rate for share in rates.values()) / len(rates), 4)


def main(arguments: list[str] | None = None) -> None:
    """The command line: a JSON object by model on standard output."""
    import sys

    from kn_bench.model.embedded import NAMES, folder

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="names of embedded models, or folders")
    parser.add_argument("--pararel", type=Path, help="folder with patterns/ and facts/")
    parser.add_argument("--blimp", type=Path, help="folder with one file a paradigm")
    parser.add_argument("--count", type=int, default=6000, help="questions of a kind at most")
    options = parser.parse_args(arguments)
    reports = {}
    for name in options.models:
        path = folder(name) if name in NAMES else Path(name)
        reports[name] = measure(path, options.pararel, options.blimp, options.count)
    sys.stdout.write(json.dumps(reports, indent=1) + "\n")


if __name__ == "__main__":
    main()
