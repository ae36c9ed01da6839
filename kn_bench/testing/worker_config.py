"""What a process that runs tests is told by the controller, packed for the way between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from kn_bench.cases.case import Criterion
from kn_bench.measure.protocols import occasion_of
from kn_bench.testing.options import Options

if TYPE_CHECKING:
    from kn_bench.results.rows import Key

WORKER_INPUT = "kn_bench"


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Where a process that runs tests stands in the run.

    Attributes:
        device: where it computes.
        commits: of models on the hub, by name: all processes load the same, whatever happens there.
        units: folder of the units that processes share; None: each has its own.
        done: what a resumed run has measured already.
        workers: processes that share the machine.
        cases: sources that the controller settled on.
        limit: of cases, as the controller settled it; None for all.
        known: ids of the cases that are known, where only these are asked.
        sequences: what was drawn for the protocol, packed; "" under ``single``.
        edits: folder of the sequences' steps; None: they are not stored.
        templates: digests of the models' chat templates as the controller rendered them, by name.
        progress: file to report progress in; None for nobody.
    """

    device: str
    commits: Mapping[str, str]
    units: Path | None
    done: frozenset[Key]
    workers: int
    cases: tuple[str, ...] = ()
    limit: int | Literal["all"] | None = None
    known: tuple[str, ...] = ()
    sequences: str = ""
    edits: Path | None = None
    progress: Path | None = None
    templates: Mapping[str, str] = field(default_factory=dict)

    def applied(self, options: Options) -> Options:
        """Return the options of a worker with what the controller settled."""
        cases = self.cases or options.cases or ("embedded",)
        return replace(options, cases=cases, limit=self.limit, known_ids=self.known)


def pack(worker_config: WorkerConfig) -> dict[str, Any]:
    """Return a place in the builtins that xdist sends to a worker."""
    return {
        "device": worker_config.device,
        "commits": "\n".join("\t".join(pair) for pair in worker_config.commits.items()),
        "units": str(worker_config.units),
        "done": "\n".join(map(_packed_key, sorted(worker_config.done))),
        "workers": worker_config.workers,
        "cases": "\n".join(worker_config.cases),
        "limit": str(worker_config.limit),
        "known": "\n".join(worker_config.known),
        "sequences": worker_config.sequences,
        "edits": str(worker_config.edits),
        "progress": str(worker_config.progress or ""),
        "templates": "\n".join("\t".join(pair) for pair in worker_config.templates.items()),
    }


def _packed_key(key: Key) -> str:
    return "\t".join((*key[:4], key.occasion.slug))


def unpack(packed: Mapping[str, Any]) -> WorkerConfig:
    """Return the place that :func:`pack` packed."""
    return WorkerConfig(
        packed["device"],
        dict(line.split("\t") for line in packed["commits"].splitlines()),
        Path(packed["units"]),
        frozenset(_keys(packed["done"].split("\n"))),
        packed["workers"],
        tuple(packed["cases"].splitlines()),
        _limit(packed["limit"]),
        tuple(packed["known"].splitlines()),
        packed["sequences"],
        Path(packed["edits"]),
        Path(packed["progress"]) if packed["progress"] else None,
        dict(line.split("\t") for line in packed["templates"].splitlines()),
    )


def _limit(text: str) -> int | Literal["all"] | None:
    if text == "None":
        return None
    return "all" if text == "all" else int(text)


def _keys(lines: Iterable[str]) -> Iterable[Key]:
    from kn_bench.results.rows import Key

    for line in lines:
        if line:
            model, method, case, criterion, occasion = line.split("\t")
            yield Key(model, method, case, cast(Criterion, criterion), occasion_of(occasion))
