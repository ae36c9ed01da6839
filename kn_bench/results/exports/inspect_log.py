"""Logs for inspect's viewer: one a method, model and task, a sample a case.

Each criterion is a score of its sample, with its sentence as the explanation; the transcript shows
the edited prompt and what the edited model answered. The file is inspect's JSON form, which its own
reader opens (``inspect view --log-dir FOLDER``).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kn_bench.cases.case import CRITERIA
from kn_bench.cases.sampling import slug, stable_hash
from kn_bench.measure.measurement import CONTROL
from kn_bench.results.board import GROUP, Line, board
from kn_bench.results.exports.naming import distinct
from kn_bench.results.files import together, write_text
from kn_bench.results.loading import Runs, explained
from kn_bench.results.manifest import Manifest
from kn_bench.results.payload import measurements
from kn_bench.results.texts import CaseText, read_texts, with_gap

TASKS = {"fact": "kn_bench_facts", "pair": "kn_bench_syntax"}


def write(runs: Runs, folder: Path) -> None:
    """Write one log a line of the board into ``folder``: all of them, or none.

    Raises:
        StoreError: when a file cannot be written.
    """
    lines: dict[tuple[Any, ...], Line] = {tuple(line.name): line for line in board(runs)}
    manifests = dict(zip(runs.folders, runs.manifests, strict=True))
    asked = {run: {c.id: c for c in read_texts(f)} for run, f in runs.folders.items()}
    said = _answers(runs)
    models = distinct(line.name.model for line in lines.values())
    methods = distinct(line.name.shown for line in lines.values())
    with together():
        for name, verdicts in explained(runs, runs.verdicts).groupby(GROUP, sort=False):
            run = str(verdicts["run"].iloc[0])
            line = lines[tuple(name)]
            log = _log(line, manifests[run], _samples(line, run, verdicts, asked[run], said))
            file = "_".join(
                (manifests[run].created[:19].replace(":", "-"), TASKS[line.name.task],
                 methods[line.name.shown], models[line.name.model], slug(line.name.protocol),
                 line.name.asked)
            )  # fmt: skip
            text = json.dumps(log, ensure_ascii=False, indent=1, allow_nan=False)
            write_text(folder / f"{file}.json", text + "\n")


def _answers(runs: Runs) -> Mapping[tuple[Any, ...], str]:
    """Return what the edited model answered to the edited prompt."""
    key = ["run", "model", "method", "case", "protocol", "sequence", "asked"]
    answers = {}
    for frame in measurements(runs):
        own = frame[
            (frame["criterion"] == "reliability") & ~frame["method"].str.startswith(CONTROL)
        ]
        for *at, text in own[[*key, "after_generated"]].itertuples(index=False, name=None):
            answers[tuple(at)] = str(text)
    return answers


def _id(*parts: object) -> str:
    """Return 22 letters and digits, as inspect's own ids have, the same for the same parts."""
    return f"{stable_hash(*map(str, parts)):016x}{stable_hash('more', *map(str, parts)):016x}"[:22]


def _log(line: Line, manifest: Manifest, samples: list[dict[str, Any]]) -> dict[str, Any]:
    name = line.name
    started, ended = manifest.created, manifest.finished or manifest.created
    scores = [
        {
            "name": criterion,
            "scorer": criterion,
            "params": {},
            "metrics": {
                "mean": {"name": "mean", "value": value.mean, "params": {}},
                **(
                    {
                        "low": {"name": "low", "value": value.low, "params": {}},
                        "high": {"name": "high", "value": value.high, "params": {}},
                    }
                    if not math.isnan(value.low)
                    else {}
                ),
            },
        }
        for criterion in CRITERIA
        if not math.isnan((value := line.criteria[criterion].interval).mean)
    ]
    return {
        "version": 2,
        "status": "success" if manifest.finished else "cancelled",
        "eval": {
            "eval_id": _id("eval", *name, manifest.run),
            "run_id": _id("run", manifest.run, manifest.created),
            "created": started,
            "task": TASKS[name.task],
            "task_id": _id("task", *name),
            "task_version": 1,
            "task_args": {"method": name.method, "protocol": name.protocol, "asked": name.asked},
            "dataset": {
                "name": " ".join(manifest.data),
                "samples": len(samples),
                "sample_ids": [sample["id"] for sample in samples],
            },
            "model": f"kn_bench/{name.model}",
            "model_args": {"method": name.method},
            "config": {},
            "packages": {"kn_bench": manifest.versions.get("kn_bench", "")},
            "metadata": {"seed": manifest.seed, "code": manifest.code, "run": manifest.run},
        },
        "plan": {"name": "plan", "steps": [], "config": {}},
        "results": {
            "total_samples": len(samples),
            "completed_samples": sum(bool(sample["scores"]) for sample in samples),
            "scores": scores,
        },
        "stats": {"started_at": started, "completed_at": ended, "model_usage": {}},
        "samples": samples,
    }


def _samples(
    line: Line,
    run: str,
    verdicts: Any,
    asked: Mapping[str, CaseText],
    said: Mapping[tuple[Any, ...], str],
) -> list[dict[str, Any]]:
    by_case: defaultdict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in verdicts.to_dict("records"):
        by_case[row["case"], int(row["sequence"])].append(row)
    name = line.name
    samples = []
    for (case, sequence), rows in by_case.items():
        key = (run, name.model, name.method, case, name.protocol, sequence, name.asked)
        answer = said.get(key, "")
        samples.append(_sample(line, case, sequence, rows, asked.get(case), answer))
    return samples


def _sample(
    line: Line,
    case: str,
    sequence: int,
    verdicts: Sequence[Mapping[str, Any]],
    text: CaseText | None,
    answer: str,
) -> dict[str, Any]:
    """Return one case as a conversation of two messages, scored by each criterion that counts."""
    prompt = with_gap(text.prompt, text.suffix).replace("{}", text.subject) if text else case
    model = f"kn_bench/{line.name.model}"
    said = {"role": "assistant", "content": answer, "model": model}
    scored = [row for row in verdicts if row["verdict_score"] == row["verdict_score"]]
    unscored = [row for row in verdicts if row["verdict_score"] != row["verdict_score"]]
    return {
        "id": case,
        "epoch": sequence + 1,
        "input": prompt,
        "target": text.target_new if text else "",
        "messages": [{"role": "user", "content": prompt}, said],
        "output": {"model": model, "choices": [{"message": said, "stop_reason": "stop"}]},
        "scores": {
            row["criterion"]: {
                "value": float(row["verdict_score"]),
                "answer": answer,
                "explanation": row["verdict_explanation"],
            }
            for row in scored
        },
        "metadata": {
            "relation": verdicts[0]["relation"],
            "target_true": text.target_true if text else "",
            "method": line.name.method,
            **{f"{row['criterion']}_not_scored": row["verdict_explanation"] for row in unscored},
        },
        "store": {},
        "events": [],
        "model_usage": {},
        "attachments": {},
    }
