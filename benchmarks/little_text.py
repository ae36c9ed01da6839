"""ROME with C from little text: how much text is enough, and may the model write it itself?

    apt-get download fortunes && dpkg -x fortunes_*.deb fortunes     # or any text files
    python benchmarks/little_text.py --text fortunes/usr/share/games/fortunes

ROME edits facts that the model knows, once for each C: from real text and from text that the model
writes itself, of several sizes, the smaller ones the beginning of the larger. The optimised values
are the same for all (C enters behind the optimisation), so that rows differ by C alone. Printed is
the mean score over facts with its 95 % interval, clustered by subject, and the difference from the
largest real text on the same facts.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from kn_bench.cases.case import Case, Criterion
from kn_bench.edits.rome import Rome
from kn_bench.measure.criteria import judge
from kn_bench.measure.engine import Engine
from kn_bench.measure.known import known_ids, shown_by
from kn_bench.measure.statistics import mean_interval
from kn_bench.model.cache_folder import cache_folder
from kn_bench.model.corpus import Corpus, TextFile, Texts
from kn_bench.model.loading import load_model
from kn_bench.model.own_text import KEYS_PER_DIMENSION, own_text
from kn_bench.model.progress import Bars
from kn_bench.results.tables import markdown, number, share
from kn_bench.testing.options import Options
from kn_bench.testing.selecting import select_known

CRITERIA: tuple[Criterion, ...] = ("reliability", "generality", "locality")


def texts_in(path: Path, seed: int) -> Texts:
    """Return the passages of a text file, or of all files of a folder, in a seeded order.

    Passages end at an empty line, or at a line with a per cent sign alone, as in fortune files.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    passages = []
    for file in files:
        if file.is_file() and file.suffix in ("", ".txt", ".rst", ".md"):
            text = file.read_text("utf-8", errors="replace")
            passages += [" ".join(part.split()) for part in re.split(r"\n%\n|\n\s*\n", text)]
    passages = [passage for passage in passages if passage]
    random.Random(seed).shuffle(passages)
    return Texts(passages)


def known_facts(engine: Engine, relations: Sequence[str], each: int, seed: int) -> list[Case]:
    """Return up to ``each`` facts of each relation that the unedited model answers."""
    options = Options(
        cases=("real-world",), relations=tuple(relations), limit=each, known=True, seed=seed
    )
    chosen, asked = select_known(
        options, lambda cases: known_ids(engine, cases), lambda cases: shown_by(engine, cases)
    )
    count = f"{len(chosen)} known facts of {asked['fact']} asked"
    print(f"{count}: {', '.join(relations)}\n", flush=True)
    return chosen


def scores(engine: Engine, method: Rome, cases: Sequence[Case]) -> dict[Criterion, np.ndarray]:
    """Return each criterion's score of each case; NaN where none counts."""
    results = engine.measure("rome", method, cases).results
    by_criterion: dict[Criterion, np.ndarray] = {}
    for criterion in CRITERIA:
        verdicts = [judge(criterion, case, results[case.id]) for case in cases]
        by_criterion[criterion] = np.array(
            [np.nan if v.score is None else v.score for v in verdicts]
        )
    return by_criterion


def corpora(
    engine: Engine, real: Corpus, sizes: Sequence[int], own_sizes: Sequence[int]
) -> Iterator[tuple[str, Corpus | None, int]]:
    """Yield each C to be tried: its text, and how many tokens of it; the reference first."""
    for size in sorted(sizes, reverse=True):
        yield "real text", real, size
    yield "no C (rome-no-c)", None, 0
    own = TextFile(own_text(engine.model, max(own_sizes)))
    for size in sorted(own_sizes):
        yield "the model's own text", own, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True, help="a text file, or a folder of them")
    parser.add_argument("--tokens", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument(
        "--own-tokens", type=int, nargs="+", help="(default: --tokens and 10 d_mlp)"
    )
    parser.add_argument("--relation", nargs="+", default=["P36", "P37", "P103", "P1376"])
    parser.add_argument("--facts", type=int, default=5, help="known facts of each relation")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    lm = load_model(chosen.model)
    lm.progress = Bars()
    engine = Engine(lm, cache=cache_folder() / "answers")
    cases = known_facts(engine, chosen.relation, chosen.facts, chosen.seed)
    subjects = [case.cluster for case in cases]
    settings = Rome(lm).settings
    reference: dict[Criterion, np.ndarray] = {}
    rows = []
    own_sizes = chosen.own_tokens or [*chosen.tokens, KEYS_PER_DIMENSION * lm.d_mlp]
    real = texts_in(chosen.text, chosen.seed)
    for name, corpus, size in corpora(engine, real, chosen.tokens, own_sizes):
        started = time.perf_counter()
        how = replace(settings, mom2_adjustment=corpus is not None, mom2_n_tokens=size or None)
        scored = scores(engine, Rome(lm, how, corpus=corpus), cases)
        reference = reference or scored
        row: list[object] = [name, f"{size:,}" if size else "", f"{size / lm.d_mlp:.0f}"]
        for criterion in CRITERIA:
            row.append(share(mean_interval(scored[criterion], subjects)))
        for criterion in CRITERIA:
            moved = mean_interval(
                scored[criterion] - reference[criterion], subjects, bounds=(-1.0, 1.0)
            )
            row.append(number(100 * moved.mean, 0, signed=True))
        rows.append(row)
        print(" | ".join(map(str, row)), f"{time.perf_counter() - started:.0f} s", flush=True)
    differences = [f"{criterion} against the first" for criterion in CRITERIA]
    print("\n" + markdown(["C from", "tokens", "x d_mlp", *CRITERIA, *differences], rows))
    print(f"\nROME at layer {settings.layer} of {lm.n_layers}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
