"""Every Eval Ever, schema 0.3: an aggregate file a model and run, and its instances beside it.

    data/kn_bench/DEVELOPER/MODEL/UUID.json             figures with intervals
    data/kn_bench/DEVELOPER/MODEL/UUID_samples.jsonl    a row a verdict

The schema's models are plain models; here the *edited* model is evaluated, so the method and the
protocol are part of every evaluation's name and of its parameters.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from kn_bench.cases.case import CRITERIA
from kn_bench.measure.criteria import asked_as
from kn_bench.measure.measurement import CONTROL
from kn_bench.measure.statistics import Interval
from kn_bench.results.board import GROUP, Line, board
from kn_bench.results.exports.naming import distinct, identities, revision_of
from kn_bench.results.files import write_text
from kn_bench.results.loading import Runs, explained
from kn_bench.results.manifest import Manifest
from kn_bench.results.payload import measurements
from kn_bench.results.texts import read_texts, with_gap

SCHEMA = "0.3.0"
ABOUT = {
    "S": "Harmonic mean of reliability, generality and locality over the same cases.",
    "K": "Mean of symmetry and synonym invariance.",
    "reliability": "The edited prompt gives the new answer.",
    "generality": "Other prompts of the edited fact give the new answer.",
    "locality": "Neighbouring facts keep their answers.",
    "symmetry": "The inverse question follows the edit.",
    "synonym": "Reworded prompts and answers follow the edit.",
    "overturn": "The old answer no longer stands.",
}
PROBE = ("method", "case", "criterion", "protocol", "sequence", "asked")
"""What an instance has in common with its measurement."""
SAID = ("probe", "kind", "expected", "rejected", "after_generated")
"""What an instance takes from its measurement."""
MADE_OF = ("run", "model")
"""What two files are about."""
NAMESPACE = uuid.UUID("6f0c7d9a-4d52-4f0e-9d0b-1f6a4f1c2b7e")


class _Evaluation(NamedTuple):
    """One model in one run.

    Attributes:
        run, model: by their own names.
        model_id: what the model is called, ``developer/model``.
        id: what the evaluation is called: no other has it.
    """

    run: str
    model: str
    model_id: str
    id: str


def write(runs: Runs, folder: Path) -> None:
    """Write both files of every model and run below ``folder``.

    Raises:
        StoreError: when a file cannot be written.
    """
    lines = {tuple(line.name): line for line in board(runs)}
    manifests = dict(zip(runs.folders, runs.manifests, strict=True))
    for evaluation in _evaluations(runs, manifests):
        of_run, of_model = (runs.verdicts[name] == evaluation[i] for i, name in enumerate(MADE_OF))
        names = runs.verdicts.loc[of_run & of_model, GROUP].drop_duplicates()
        shown = [lines[name] for name in names.itertuples(index=False, name=None)]
        _write(runs, folder, manifests[evaluation.run], evaluation, shown)


def _evaluations(runs: Runs, manifests: Mapping[str, Manifest]) -> Iterator[_Evaluation]:
    """Yield the models of each run; those that would be called the same get a hash as well."""
    models = identities(runs.verdicts["model"].unique().tolist())
    pairs = runs.verdicts[[*MADE_OF]].drop_duplicates().itertuples(index=False, name=None)
    named = {json.dumps(pair): pair for pair in pairs}
    short = {
        key: f"kn_bench/{models[model]}/{_epoch(manifests[run])}"
        for key, (run, model) in named.items()
    }
    for key, id in distinct(named, short.__getitem__).items():
        run, model = named[key]
        yield _Evaluation(run, model, models[model], id)


def _write(
    runs: Runs, folder: Path, manifest: Manifest, evaluation: _Evaluation, lines: list[Line]
) -> None:
    key = _uuid4(f"{evaluation.run} {manifest.created} {evaluation.model}")
    path = f"data/kn_bench/{evaluation.model_id}/{key}"
    samples = "".join(
        json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        for row in _samples(runs, evaluation)
    )
    aggregate = _aggregate(manifest, evaluation, lines)
    aggregate["detailed_evaluation_results"] = {
        "format": "jsonl",
        "file_path": f"{path}_samples.jsonl",
        "hash_algorithm": "sha256",
        "checksum": hashlib.sha256(samples.encode()).hexdigest(),
        "total_rows": samples.count("\n"),
    }
    write_text(folder / f"{path}_samples.jsonl", samples)
    text = json.dumps(aggregate, ensure_ascii=False, indent=2, allow_nan=False)
    write_text(folder / f"{path}.json", text + "\n")


def _uuid4(text: str) -> str:
    """Return a UUID of version 4 in form, made of ``text``: the same run gives the same files."""
    digest = bytearray(uuid.uuid5(NAMESPACE, text).bytes)
    digest[6] = digest[6] & 0x0F | 0x40
    return str(uuid.UUID(bytes=bytes(digest)))


def _epoch(manifest: Manifest) -> str:
    return str(int(datetime.fromisoformat(manifest.finished or manifest.created).timestamp()))


def _aggregate(manifest: Manifest, evaluation: _Evaluation, lines: list[Line]) -> dict[str, Any]:
    model = evaluation.model
    revision = revision_of(model)
    return {
        "schema_version": SCHEMA,
        "evaluation_id": evaluation.id,
        "evaluation_timestamp": str(int(datetime.fromisoformat(manifest.created).timestamp())),
        "retrieved_timestamp": _epoch(manifest),
        "source_metadata": {
            "source_name": "kn_bench",
            "source_type": "evaluation_run",
            "source_organization_name": "kn_bench",
            "evaluator_relationship": "third_party",
        },
        "eval_library": {
            "name": "kn_bench",
            "version": manifest.versions.get("kn_bench", "unknown"),
            "additional_details": {"code": manifest.code, "seed": str(manifest.seed)},
        },
        "model_info": {
            "name": model,
            "id": evaluation.model_id,
            "inference_engine": {
                "name": "transformers",
                "version": manifest.versions.get("transformers", "unknown"),
            },
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "open_weights",
                "sha256": manifest.models.get(model, ""),
                **({"revision": revision} if revision else {}),
            },
        },
        "evaluation_results": [result for line in lines for result in _results(manifest, line)],
    }


def _results(manifest: Manifest, line: Line) -> Iterator[dict[str, Any]]:
    values: dict[str, Interval] = {"S": line.s, "K": line.k}
    values |= {criterion: line.criteria[criterion].interval for criterion in CRITERIA}
    for name, value in values.items():
        if math.isnan(value.mean):
            continue
        details: dict[str, Any] = {"num_samples": value.n}
        if not math.isnan(value.low):
            details["confidence_interval"] = {
                "lower": value.low,
                "upper": value.high,
                "confidence_level": 0.95,
                "method": "cluster bootstrap",
            }
        yield {
            "evaluation_result_id": result_id(line.name, name),
            "evaluation_name": _evaluation(line.name),
            "source_data": {
                "dataset_name": " ".join(manifest.data) or "unknown",
                "source_type": "other",
                "additional_details": dict(manifest.data),
            },
            "metric_config": {
                "evaluation_description": ABOUT[name],
                "metric_id": f"kn_bench.{name.lower()}",
                "metric_name": name,
                "metric_kind": "rate",
                "metric_unit": "proportion",
                "metric_parameters": {
                    "method": line.name.method,
                    "protocol": line.name.protocol,
                    "asked": line.name.asked,
                },
                "lower_is_better": False,
                "score_type": "continuous",
                "min_score": 0.0,
                "max_score": 1.0,
            },
            "score_details": {"score": value.mean, "uncertainty": details},
        }


def _evaluation(name: tuple[str, ...]) -> str:
    task, _, method, protocol, asked, *_ = name
    when = "" if protocol == "single" else f"/{protocol}/{asked}"
    return f"kn_bench/{'facts' if task == 'fact' else 'syntax'}/{method}{when}"


def result_id(name: tuple[str, ...], figure: str) -> str:
    """Return the id that joins an instance to its figure."""
    return f"{_evaluation(name)}/{figure.lower()}"


def _samples(runs: Runs, evaluation: _Evaluation) -> Iterator[dict[str, Any]]:
    """Yield one record per scored verdict, with its criterion's first question and answer.

    Where the answer must not come, any other is right: then there is no reference, and the answer
    stands among the metadata.
    """
    run, model, *_ = evaluation
    verdicts = runs.verdicts
    ours = explained(runs, verdicts[(verdicts["run"] == run) & (verdicts["model"] == model)])
    scored = ours[ours["verdict_score"].notna()]
    asked = {case.id: case for case in read_texts(runs.folders[run])}
    said = _first_probes(runs, run, model)
    for row in scored.to_dict("records"):
        named = {**row, "criterion": asked_as(row["criterion"])}
        probe = said.get(tuple(named[name] for name in PROBE), {})
        case = asked.get(str(row["case"]))
        prompts = {p.id: with_gap(p.left, p.right) for p in case.probes} if case else {}
        raw = prompts.get(str(probe.get("probe", "")), str(row["case"]))
        reference, unwanted = _references(str(row["criterion"]), probe)
        name = tuple(str(row[column]) for column in GROUP)
        yield {
            "schema_version": SCHEMA,
            "evaluation_id": evaluation.id,
            "model_id": evaluation.model_id,
            "evaluation_name": _evaluation(name),
            "evaluation_result_id": result_id(name, str(row["criterion"])),
            "sample_id": f"{row['case']}#{row['criterion']}#{row['sequence']}",
            "sample_hash": hashlib.sha256("".join([raw, *reference]).encode()).hexdigest(),
            "interaction_type": "single_turn",
            "input": {"raw": raw, "reference": reference},
            "output": {"raw": [str(probe.get("after_generated", ""))]},
            "answer_attribution": [
                {
                    "turn_idx": 0,
                    "source": "output.raw",
                    "extracted_value": str(probe.get("after_generated", "")),
                    "extraction_method": "prefix match or log-probabilities of the pair",
                    "is_terminal": True,
                }
            ],
            "evaluation": {
                "score": float(row["verdict_score"]),
                "is_correct": row["verdict_status"] == "holds",
            },
            "metadata": {
                "relation": str(row["relation"]),
                "criterion": str(row["criterion"]),
                "explanation": str(row["verdict_explanation"]),
                **({"unwanted": unwanted} if unwanted else {}),
            },
        }


def _references(criterion: str, probe: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the answers that are right, and the one that is not to come, if there is one."""
    if criterion == "overturn":
        return [], str(probe.get("rejected", ""))
    expected = str(probe.get("expected", ""))
    return ([], expected) if probe.get("kind") == "old_inverse" else ([expected], "")


def _first_probes(runs: Runs, run: str, model: str) -> Mapping[tuple[Any, ...], dict[str, Any]]:
    probes: dict[tuple[Any, ...], dict[str, Any]] = {}
    for frame in measurements(runs):
        own = frame[(frame["run"] == run) & (frame["model"] == model)]
        own = own[~own["method"].str.startswith(CONTROL)]
        columns: pd.DataFrame = own[[*PROBE, *SAID]]
        for row in columns.to_dict("records"):
            key = tuple(row[name] for name in PROBE)
            probes.setdefault(key, {str(name): value for name, value in row.items()})
    return probes
