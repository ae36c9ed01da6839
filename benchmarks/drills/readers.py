"""Every reader of files, with a good file of each kind and a second reader that knows no other.

The second reader examines what the first accepted: it looks at the file with ``json`` alone, or
compares with what was written, and returns what should not have been accepted.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kn_bench.cases import sources
from kn_bench.cases.case import CRITERIA, Exclusion, Selection
from kn_bench.cases.sources import blimp, pararel
from kn_bench.editing.edit import LowRank, LowRankEdit
from kn_bench.editing.presets import read_presets
from kn_bench.editing.provenance import Provenance
from kn_bench.editing.saving import load_edit, save_edit
from kn_bench.measure.cache import AnswerCache, TargetScores
from kn_bench.measure.verdict import STATUSES
from kn_bench.model.folder import check_folder
from kn_bench.results.baseline import baseline_of, read_baseline
from kn_bench.results.codec import encode
from kn_bench.results.columns import write_parquet
from kn_bench.results.loading import left_out, load_runs
from kn_bench.results.log import LOG
from kn_bench.results.manifest import FILE, read_manifest
from kn_bench.results.rows import kind_of
from kn_bench.results.store import EXCLUSIONS, RunStore
from tests.made_up import manifest, write_run
from tests.published_forms import FORMS
from tests.test_cases_jsonl import CANADA, FULL, PAIR
from tests.test_malformed import FACTS, PAIRS, PATTERNS, json_lines

Wrong = str
"""What should not have been accepted; "" for nothing."""


@dataclass(frozen=True)
class FileReader:
    """One kind of file.

    Attributes:
        name: of the kind.
        path: the file that is spoilt.
        good: what it holds.
        read: reads it; raises ValueError, one sentence, for a file that it refuses.
        second: examines what ``read`` returned of the spoilt file.
    """

    name: str
    path: Path
    good: bytes
    read: Callable[[], Any]
    second: Callable[[Any, bytes], Wrong]


def readers(folder: Path) -> Iterator[FileReader]:
    """Return all readers, with their good files in ``folder``."""
    yield from _of_cases(folder)
    yield from _of_results(folder)
    yield from _of_models(folder)


# -- cases ---------------------------------------------------------------------------------------

WRITTEN_OUT = ("None", "True", "False", "['", "[[", "{'", "\ud800")
"""How Python writes what is no text; no good file has them."""


def _cases_read(selection: Selection, content: bytes) -> Wrong:
    # a file may have been spoilt into a text that holds such marks itself
    marks = [
        mark
        for mark in WRITTEN_OUT
        if mark.encode(errors="surrogatepass") not in content
        and json.dumps(mark)[1:-1].encode() not in content
    ]
    ids = [case.id for case in selection.cases]
    if len(set(ids)) < len(ids):
        return "two cases with one id"
    for case in selection.cases:
        request = case.request
        texts = [request.subject, request.prompt, request.target_true, request.target_new]
        for probe in case.probes:
            texts += [probe.cloze.left, probe.cloze.right, probe.expected, probe.rejected]
        for text in texts:
            if not isinstance(text, str) or any(mark in text for mark in marks):
                return f"{text!r} is asked in {case.id}"
        if case.task == "fact" and not (request.target_new.strip() and request.subject.strip()):
            return f"{case.id} has no subject or no new target"
    return ""


def _of_cases(folder: Path) -> Iterator[FileReader]:
    own = {"facts.jsonl": json_lines(CANADA, FULL), "pairs.jsonl": json_lines(PAIR, PAIR)}
    header = b"subject,prompt,target_true,target_new,aliases\n"
    own["facts.csv"] = header + b'Canada,The capital of {} is,Ottawa,Paris,"[""City of Paris""]"\n'
    for name, records in FORMS.items():
        own[f"{name.replace(' ', '-')}.json"] = json_lines(*records)
        own[f"{name.replace(' ', '-')}-list.json"] = json.dumps(records).encode()
    for name, good in own.items():
        path = _written(folder / "cases" / name, good)
        yield FileReader(name, path, good, partial(sources.load, str(path)), _cases_read)
    pairs = json_lines(*PAIRS)
    path = _written(folder / "blimp" / "determiner_noun_agreement_1.jsonl", pairs)
    yield FileReader("BLiMP", path, pairs, partial(blimp.load, path.parent), _cases_read)
    for kind, good in (("facts", FACTS), ("patterns", PATTERNS)):
        here = folder / f"pararel-{kind}"
        for name, content in (("facts", FACTS), ("patterns", PATTERNS)):
            _written(here / name / "P36.jsonl", content)
        path = here / kind / "P36.jsonl"
        yield FileReader(f"PARAREL {kind}", path, good, partial(pararel.load, here), _cases_read)


# -- results -------------------------------------------------------------------------------------

SHARES = ("score", "prob", "tf_token", "tf_all", "generated")


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _numbers(member, key)
    elif isinstance(value, list):
        for member in value:
            yield from _numbers(member, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _verdicts_sound(lines: list[dict[str, Any]]) -> Wrong:
    keys = []
    for row in (row for row in lines if row.get("row") == "verdict"):
        verdict = row["verdict"]
        keys.append(json.dumps([row[n] for n in ("model", "method", "case", "criterion")]))
        if verdict["status"] not in STATUSES or row["criterion"] not in CRITERIA:
            return f"{verdict['status']} of {row['criterion']}"
        for name, number in _numbers(verdict):
            share = name in SHARES
            if math.isnan(number) or (share and not 0 <= number <= 1):
                return f"{name} is {number}"
            if name in ("counted", "left_out", "held") and number < 0:
                return f"{name} is {number}"
    return "a verdict stands there twice" if len(set(keys)) < len(keys) else ""


def _log_read(_: Any, content: bytes) -> Wrong:
    lines = []
    *whole, _ = content.split(b"\n")  # what follows the last line end is a write cut short
    for line in whole:
        # a board shows nothing of the answers, and does not read them; the other readers do
        if line.strip() and kind_of(line + b"\n") != "measurement":
            row = json.loads(line)
            if not isinstance(row, dict):
                return f"a line is {type(row).__name__}"
            lines.append(row)
    return _verdicts_sound(lines)


def _of_results(folder: Path) -> Iterator[FileReader]:
    run = write_run(folder / "runs", {"rome": {criterion: [1.0] for criterion in CRITERIA}})
    good, about = (run / LOG).read_bytes(), (run / FILE).read_bytes()
    yield FileReader("log: board", run / LOG, good, partial(load_runs, [run]), _log_read)
    again = write_run(folder / "again", {"rome": {criterion: [1.0] for criterion in CRITERIA}})
    judged = partial(load_runs, [again], judge_again=True)
    yield FileReader("log: judged again", again / LOG, good, judged, lambda *_: "")
    flat = _written(folder / "parquet" / LOG, good)
    parquet = partial(write_parquet, flat, folder / "x.parquet")
    yield FileReader("log: Parquet", flat, good, parquet, lambda *_: "")
    kept = write_run(folder / "kept", {"rome": {"reliability": [1.0, 0.0]}})

    def resume() -> int:
        with RunStore.resume(kept.parent.parent, kept.name, manifest(kept.name)) as store:
            return len(store.done)

    small = (kept / LOG).read_bytes()
    yield FileReader(
        "log: resumed", kept / LOG, small, resume, lambda n, _: "" if n <= 2 else str(n)
    )
    alone = _written(folder / "manifest" / FILE, about)
    yield FileReader("manifest", alone, about, partial(read_manifest, alone.parent), _manifest_read)
    baseline = (encode(baseline_of(load_runs([run]))) + "\n").encode()
    path = _written(folder / "baseline.json", baseline)
    yield FileReader(
        "baseline", path, baseline, lambda: read_baseline(path).frame(), _baseline_read
    )
    left = (encode(Exclusion("pararel/P36/x", "no template", None, "why")) + "\n").encode()
    outside = _written(folder / "left" / EXCLUSIONS, left)
    yield FileReader("exclusions", outside, left, partial(left_out, outside.parent), lambda *_: "")


def _manifest_read(_: Any, content: bytes) -> Wrong:
    about = json.loads(content)
    times = about.get("timings", {})
    bad = [n for n, t in times.items() if not (math.isfinite(t) and t >= 0)]
    return f"timings {bad}" if bad else ""


def _baseline_read(_: Any, content: bytes) -> Wrong:
    for scores in json.loads(content)["scores"]:
        lengths = {len(scores[name]) for name in ("cases", "clusters", "scores")}
        if len(lengths) > 1 or not all(0 <= score <= 1 for score in scores["scores"]):
            return f"scores of {scores['criterion']}"
        if scores["criterion"] not in CRITERIA:
            return f"the criterion {scores['criterion']}"
    return ""


# -- models, edits, caches -----------------------------------------------------------------------

SCORES = {bytes([n]) * 32: TargetScores((-1.0 - n,), (n % 2 == 0,)) for n in range(20)}
CONFIG = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 16,
          "architectures": ["GPT2LMHeadModel"]}  # fmt: skip
PRESET = b"""methods = ["rome"]

[models."EleutherAI/gpt-j-6b"]
layer = 5
"""


def _of_models(folder: Path) -> Iterator[FileReader]:
    edit = LowRankEdit((LowRank(0, torch.ones(4, 1), torch.ones(1, 2)),), notes={"loss": 0.5})
    path = folder / "edit.safetensors"
    made_by = Provenance(model="m", model_hash="a" * 64, method="rome", settings={"layer": 1})
    save_edit(edit, path, provenance=made_by)
    yield FileReader("saved edit", path, path.read_bytes(), partial(load_edit, path), _edit_read)
    cached = folder / "answers" / "m.sqlite"
    AnswerCache(cached.parent, "m").keep_scores(SCORES.items())

    def scores() -> dict[bytes, TargetScores]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a sentence: it is dropped, or done without
            return AnswerCache(cached.parent, "m").scores(list(SCORES))

    yield FileReader("cached answers", cached, cached.read_bytes(), scores, _scores_read)
    config = _written(folder / "model" / "config.json", json.dumps(CONFIG).encode())
    weights = config.with_name("model.safetensors")
    save_file({"wte": torch.ones(2, 2)}, weights)
    check = partial(check_folder, config.parent)
    yield FileReader("config.json", config, config.read_bytes(), check, _config_checked)
    yield FileReader("model.safetensors", weights, weights.read_bytes(), check, _weights_checked)
    preset = _written(folder / "preset.toml", PRESET)
    yield FileReader("preset", preset, PRESET, partial(read_presets, preset), lambda *_: "")


def _config_checked(_: Any, content: bytes) -> Wrong:
    layers = json.loads(content).get("n_layer", 2)
    sound = isinstance(layers, int) and not isinstance(layers, bool) and 0 < layers < 10_000
    return "" if sound else f"n_layer is {layers}"


def _weights_checked(_: Any, content: bytes) -> Wrong:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return "" if isinstance(header, dict) and header else "no header"


def _edit_read(edit: LowRankEdit, _: bytes) -> Wrong:
    (update,) = edit.updates
    same = torch.equal(update.u, torch.ones(4, 1)) and torch.equal(update.v, torch.ones(1, 2))
    return "" if same and update.layer == 0 and dict(edit.notes) == {"loss": 0.5} else repr(edit)


def _scores_read(scores: dict[bytes, TargetScores], _: bytes) -> Wrong:
    changed = [key for key, value in scores.items() if SCORES.get(key) != value]
    return f"{len(changed)} changed answers" if changed else ""


def _written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
