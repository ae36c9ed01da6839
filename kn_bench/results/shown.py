"""What a page names by number: texts, cases with what was asked of them, and the runs of its lines.

Two runs may ask different questions, and make different edits, under one case's id. So a case is
numbered by what was asked; runs that asked the same share its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import pandas as pd

from kn_bench.results.beside import differing
from kn_bench.results.board import GROUP, by_line
from kn_bench.results.loading import Runs
from kn_bench.results.texts import read_texts

ABOUT = ("task", "relation", "source", "cluster")
"""What a verdict says of its case."""
ASKED = ("subject", "prompt", "suffix", "target_true", "target_new")
"""What a run's texts say of it."""


class TextPool:
    """Texts by number, each once; 0 is the empty one."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {"": 0}

    def __call__(self, text: object) -> int:
        """Return the number of ``text``; missing values count as empty."""
        known = "" if text is None or text != text else str(text)
        return self._numbers.setdefault(known, len(self._numbers))

    def column(self, values: Iterable[object]) -> list[int]:
        """Return the numbers of ``values``."""
        # pandas hands its texts out one by one, and much faster all at once
        return list(map(self, values.tolist() if isinstance(values, pd.Series) else values))

    @property
    def all(self) -> list[str]:
        """The texts in the order of their numbers."""
        return list(self._numbers)


class Cases:
    """The cases of ``verdicts``, each by number.

    Attributes:
        number: run and case -> the case's number.
        prompts: run, case and probe -> the text before and after the answer.
        columns: what is known of each case, as numbers of texts.
    """

    def __init__(self, runs: Runs, verdicts: pd.DataFrame, texts: TextPool) -> None:
        about = verdicts.drop_duplicates(["run", "case"])
        wanted = set(zip(about["run"], about["case"], strict=True))
        self.prompts: dict[tuple[str, str, str], tuple[str, str]] = {}
        asked = {}
        for run, folder in runs.folders.items():
            for case in read_texts(folder):
                if (run, case.id) in wanted:
                    asked[run, case.id] = case
                    for probe in case.probes:
                        self.prompts[run, case.id, probe.id] = (probe.left, probe.right)
        self.number: dict[tuple[str, str], int] = {}
        entries: dict[tuple[int, ...], int] = {}
        for run, case_id, *said in about[["run", "case", *ABOUT]].itertuples(
            index=False, name=None
        ):
            text = asked.get((run, case_id))
            entry = texts.column((case_id, *said, *(getattr(text, name, "") for name in ASKED)))
            self.number[run, case_id] = entries.setdefault(tuple(entry), len(entries))
        names = ("id", *ABOUT, *ASKED)
        self.columns = {name: [entry[i] for entry in entries] for i, name in enumerate(names)}

    def of(self, frame: pd.DataFrame) -> list[int]:
        """Return the number of each row's case; -1 where it has none."""
        keys = zip(frame["run"].tolist(), frame["case"].tolist(), strict=True)
        return [self.number.get(key, -1) for key in keys]


def runs_behind(runs: Runs) -> dict[tuple[Any, ...], str]:
    """Return name of a line -> the run whose results it shows."""
    _, first = by_line(runs.verdicts)
    names = first[GROUP].itertuples(index=False, name=None)
    return dict(zip(names, first["run"], strict=True))


def unlike(runs: Runs, behind: Mapping[tuple[Any, ...], str]) -> dict[str, str]:
    """Return in what two runs differ, for each model of both and for lines of two models.

    Args:
        runs: all that are shown.
        behind: as :func:`runs_behind` gives it.

    Returns:
        Such as ``"0 1 tiny-gpt2"`` -> ``"data, seed"``: the places of the runs, in order, and the
        model ("" for two models). Runs that differ in nothing have no entry.
    """
    places = {run: place for place, run in enumerate(runs.folders)}
    of_model: dict[str, set[int]] = {"": {places[run] for run in behind.values()}}
    for name, run in behind.items():
        of_model.setdefault(name[GROUP.index("model")], set()).add(places[run])
    differences: dict[str, str] = {}
    for model, at in of_model.items():
        for i, j in combinations(sorted(at), 2):
            if aspects := differing([runs.manifests[i], runs.manifests[j]], model):
                differences[f"{i} {j} {model}"] = ", ".join(aspects)
    return differences
