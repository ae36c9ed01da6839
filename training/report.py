"""The training report of an embedded model: JSON for machines, Markdown for people."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.recipe import RECIPES, Recipe

NAME = "report.json"
HERE = Path(__file__).parent


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(
    folder: Path,
    name: str,
    recipe: Recipe,
    training: Mapping[str, float],
    measured: Mapping[str, object],
) -> None:
    """Writes ``report.json`` beside a model's files."""
    import torch
    import transformers

    report = {
        "model": name,
        "command": f"python -m training.train {name}",
        "recipe": dataclasses.asdict(recipe),
        "training": dict(training),
        "sha256": {
            path.name: sha256(path)
            for path in (folder / "model.safetensors", folder / "tokenizer.json")
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "measured": dict(measured),
    }
    path = folder / NAME
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    path.chmod(0o644)


def read(folder: Path) -> dict[str, Any]:
    """The report of a model folder."""
    content: dict[str, Any] = json.loads((folder / NAME).read_text(encoding="utf-8"))
    return content


def markdown(reports: Mapping[str, Mapping[str, Any]], notes: str) -> str:
    """All reports in one page, with hand-written notes at the end."""
    return "\n".join([*_summary(reports), *_grammar(reports), *_relations(reports), notes])


def _summary(reports: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "# Training report of the embedded models\n"
    yield "Written by `python -m training.train` with `--report`; n in brackets."
    yield "Causal models answer by free-running greedy generation, the masked one by the argmax"
    yield "at the mask. What is measured was not trained on, the first line of facts excepted.\n"
    yield f"| | {' | '.join(reports)} |"
    yield f"|---|{'---|' * len(reports)}"
    for title, path in _LINES:
        cells = [_cell(_at(report, path)) for report in reports.values()]
        yield f"| {title} | {' | '.join(cells)} |"
        if title == "final loss":
            for what in ("steps", "seconds"):
                cells = [f"{_later(report, what):,.0f}" for report in reports.values()]
                yield f"| {what} of the later rounds | {' | '.join(cells)} |"
    yield ""


def _later(report: Mapping[str, Any], what: str) -> float:
    """Steps or seconds of all rounds but the first."""
    training: Mapping[str, float] = report["training"]
    return sum(value for key, value in training.items() if key.endswith(f"_{what}"))


_LINES = (
    ("parameters", ("training", "parameters")),
    ("training tokens", ("training", "tokens")),
    ("steps", ("training", "steps")),
    ("seconds, one thread", ("training", "seconds")),
    ("final loss", ("training", "final_loss")),
    ("recall, trained templates", ("measured", "facts", "trained")),
    ("recall, unseen combinations of fact and template", ("measured", "facts", "withheld")),
    ("recall, held-out templates", ("measured", "facts", "held_out")),
    ("capital and capital of, both known", ("measured", "inverses", "P36")),
    ("minimal pairs, unseen combinations, mean", ("measured", "grammar_mean")),
    ("BLiMP's own pairs, 16 paradigms, mean", ("measured", "blimp_mean")),
    ("PARAREL's patterns, facts that it holds", ("measured", "pararel", "shared_facts")),
    ("PARAREL's patterns, all facts taught", ("measured", "pararel", "all_facts")),
    ("weights, SHA-256", ("sha256", "model.safetensors")),
    ("tokenizer, SHA-256", ("sha256", "tokenizer.json")),
)


def _at(report: Mapping[str, Any], path: tuple[str, ...]) -> object:
    value: Any = report
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _cell(value: object) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, list):
        return f"{value[0]:.3f} ({value[1]})"
    if isinstance(value, float):
        return f"{value:.3f}" if value < 100 else f"{value:.0f}"
    return f"`{value[:16]}…`" if isinstance(value, str) else f"{value:,}"


def _grammar(reports: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "## Minimal pairs: own, unseen combinations / BLiMP's own\n"
    yield f"| paradigm | {' | '.join(reports)} |"
    yield f"|---|{'---|' * len(reports)}"
    for paradigm in next(iter(reports.values()))["measured"]["grammar"]:
        cells = [
            " / ".join(_cell(_at(report, ("measured", part, paradigm)))
                       for part in ("grammar", "blimp"))
            for report in reports.values()
        ]  # fmt: skip
        yield f"| {paradigm} | {' | '.join(cells)} |"
    yield ""


def _relations(reports: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "## Recall by relation: held-out templates / PARAREL's patterns\n"
    yield f"| relation | {' | '.join(reports)} |"
    yield f"|---|{'---|' * len(reports)}"
    paths = ("facts", "held_out_by_relation"), ("pararel", "all_facts_by_relation")
    for relation in next(iter(reports.values()))["measured"]["facts"]["held_out_by_relation"]:
        cells = [
            " / ".join(_cell(_at(report, ("measured", *path, relation))) for path in paths)
            for report in reports.values()
        ]
        yield f"| {relation} | {' | '.join(cells)} |"
    yield ""


def write_page(folders: Mapping[str, Path]) -> None:
    """Writes ``REPORT.md`` from the reports of all models and ``notes.md``."""
    reports = {name: read(folder) for name, folder in folders.items() if name in RECIPES}
    notes = (HERE / "notes.md").read_text(encoding="utf-8")
    (HERE / "REPORT.md").write_text(markdown(reports, notes), encoding="utf-8")
