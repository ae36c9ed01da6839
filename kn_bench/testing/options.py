"""The suites' command line: one option group, read once into a frozen dataclass."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from kn_bench.measure.protocols import SINGLE, Protocol
from kn_bench.model import embedded
from kn_bench.model.source import DTYPES
from kn_bench.testing import values

if TYPE_CHECKING:
    from kn_bench.testing.shards import Shard

Grain = Literal["case", "unit"]

_RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

EMBEDDED_LIMIT = 2
"""Cases of each relation and paradigm where the package settles which sources are read."""

UNMEASURED_BY = {
    "--forked": "runs each test in a process of its own, and a unit's tests share one model: leave "
    "it out, and use -n for several processes",
    "--setup-plan": "would end every test before it is measured: use --collect-only",
    "--setup-only": "would end every test before it is measured: leave it out",
}
"""Options of pytest and its plug-ins under which no test of ours could be measured."""

SHOWING = ("collectonly", "showfixtures", "show_fixtures_per_test")
"""Destinations of pytest's options under which it collects tests and runs none."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for.

    Attributes:
        models: names, folders or hub ids; empty: the embedded models.
        methods: names, patterns such as ``memit*``, or ``all``; empty: those by default.
        sets: settings of methods, ``METHOD.PARAMETER=VALUE``.
        presets: TOML files of settings.
        cases: sources; empty: those that fit the models, see :mod:`kn_bench.testing.selecting`.
        relations: relations and paradigms to keep; empty: all.
        limit: cases of each relation or paradigm; None: not asked for.
        known: whether the limit counts cases that the unedited models answer.
        known_ids: those cases, once they are settled; empty: all.
        seed: of every draw.
        devices: torch devices; several form the workers' pool.
        dtype: of the weights.
        attention: attention implementation; "" for transformers' choice.
        chat_template: whether every text begins with the model's chat template.
        corpus: text that second moments are taken over; "" for the default.
        run: name of the run's folder; "" for a new one.
        resume: run to go on with, or ``last``; "" for none.
        baseline, save_baseline: files of the gate, or None.
        gate: tolerances, such as ``symmetry:0.05``.
        strict: a missed criterion fails its test.
        grain: a test a case, or a test a relation.
        memory: bytes that a batch may use, or None.
        timeout_per_unit: seconds that a unit may take, or None.
        reports: folder of runs and leaderboard.
        protocol: how many edits a model holds, and when each is asked.
        sequences: repetitions of a protocol of several edits.
        allow_conflicts: let requests that contradict each other meet in one sequence.
        stop_at_collapse: end a sequence at the checkpoint that finds the model collapsed.
        shard: the part of the run's units that is measured here; None for all.
        generations: texts that the models write a case; 0 for none.
        references: texts about new targets, to compare those with.
        engine: what computes: ``pytest`` (this process, or xdist's workers) or ``ray[:ADDRESS]``.
        actors: most actors of Ray; None: as many as there is room for.
    """

    models: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    presets: tuple[Path, ...] = ()
    cases: tuple[str, ...] = ("embedded",)
    relations: tuple[str, ...] = ()
    limit: int | Literal["all"] | None = None
    known: bool = False
    known_ids: tuple[str, ...] = ()
    seed: int = 0
    devices: tuple[str, ...] = ("cpu",)
    dtype: str = "float32"
    attention: str = ""
    chat_template: bool = False
    corpus: str = ""
    run: str = ""
    resume: str = ""
    baseline: Path | None = None
    save_baseline: Path | None = None
    gate: tuple[str, ...] = ()
    strict: bool = False
    grain: Grain = "case"
    memory: int | None = None
    timeout_per_unit: float | None = None
    reports: Path = Path("reports")
    protocol: Protocol = SINGLE
    sequences: int = 1
    allow_conflicts: bool = False
    stop_at_collapse: bool = False
    shard: Shard | None = None
    generations: int = 0
    references: Path | None = None
    engine: str = "pytest"
    actors: int | None = None


def add_options(parser: pytest.Parser) -> None:
    """Add the group ``kn_bench``."""
    group = _Group(parser.getgroup("kn_bench", "kn_bench: what is measured, and how"))
    _add_subjects(group)
    _add_protocol(group)
    _add_machine(group)
    _add_run(group)


class _Group:
    """Adds options by their names, their destinations being ours."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def option(self, name: str, help: str, **kwargs: Any) -> None:
        self._group.addoption(name, dest=_dest(name), help=help, **kwargs)

    def repeatable(self, name: str, metavar: str, help: str) -> None:
        self.option(name, f"{help} Repeatable.", action="append", metavar=metavar, default=[])


def _add_subjects(group: _Group) -> None:
    """Add what is measured: models, methods and cases."""
    option, repeatable = group.option, group.repeatable
    repeatable("--model", "NAME", "Embedded model, smollm2-135m, folder, FILE.gguf, hub id or "
               "ID@REVISION (default: all embedded ones).")  # fmt: skip
    repeatable("--method", "NAME", "Editing method, a pattern such as 'memit*', 'all', or "
               "checkpoint:FOLDER for what was edited elsewhere (default: "
               "those that are quick).")  # fmt: skip
    repeatable("--set", "METHOD.PARAMETER=VALUE", "A setting of a method, such as memit.v_lr=0.1.")
    repeatable("--preset", "FILE", "TOML file of settings, such as `kn-bench tune` writes.")
    repeatable("--cases", "SOURCE", "embedded, NAME=FOLDER or FILE.jsonl (default: embedded; for a "
               "model of your own PARAREL and BLiMP).")  # fmt: skip
    repeatable("--relation", "ID", "Relation to keep, such as P36 (default: all).")
    repeatable("--paradigm", "NAME", "BLiMP paradigm to keep (default: all).")
    option(
        "--limit",
        "N cases of each relation or paradigm, or 'all' (default: of the embedded cases those "
        "that put 20 behind each criterion, all of others).",
        type=values.limit,
        metavar="N",
    )
    option("--known", "Count only cases that the unedited model answers.", action="store_true")
    option("--seed", "Seed of every draw (default: 0).", type=values.number, default=0, metavar="N")


def _add_protocol(group: _Group) -> None:
    """Add how edits meet in a model, and what is asked besides."""
    option = group.option
    option("--protocol", "single, batch:N, sequence:N or sequence:N/B (N edits, B a step; default: "
           "single).", type=values.protocol, default=SINGLE, metavar="PROTOCOL")  # fmt: skip
    option("--sequences", "Batches (no case in two) or sequences of the protocol, each drawn by "
           "the seed (default: 1; 3 or more give intervals over sequences).", type=values.count,
           default=1, metavar="K")  # fmt: skip
    option("--allow-conflicts", "Let requests about the same subject and relation meet in one "
           "sequence.", action="store_true")  # fmt: skip
    option("--stop-at-collapse", "End a sequence when the model's perplexity exceeds 10 times the "
           "unedited model's.", action="store_true")  # fmt: skip
    option("--generations", "Texts a case that the models write freely, for fluency and reference "
           "score (default: 0).", type=values.whole, default=0, metavar="N")  # fmt: skip
    option("--references", "Texts about new targets for the reference score, such as ROME's "
           "attribute_snippets.json.", type=Path, metavar="FILE")  # fmt: skip


def _add_machine(group: _Group) -> None:
    """Add how models are loaded, and by what the work is done."""
    option, repeatable = group.option, group.repeatable
    repeatable("--device", "DEVICE", "cpu, cuda or cuda:N; several are shared out; auto spreads a "
               "model over all GPUs (default: cpu).")  # fmt: skip
    option("--dtype", "Of the weights (default: float32).", default="float32", choices=DTYPES)
    option("--attention", "Attention implementation, such as eager.", default="", metavar="NAME")
    option("--chat-template", "Ask a chat model by its template (default: as a base model).",
           action="store_true")  # fmt: skip
    option("--corpus", "Text for second moments: a file, one document a line, a data set of the "
           "hub, or 'self' (default: a text set of the hub, or else 'self').", default="",
           metavar="TEXT")  # fmt: skip
    option(
        "--shard",
        "Measure one part of the run's units, such as 2/4; `kn-bench merge` joins the parts.",
        type=values.shard,
        metavar="INDEX/COUNT",
        default=None,
    )
    option("--engine", "pytest (with xdist's workers by -n) or ray[:ADDRESS], whose actors compute "
           "while this process reports (default: pytest).", type=values.engine, default="pytest",
           metavar="ENGINE")  # fmt: skip
    option("--actors", "Most actors of --engine ray (default: as many as there is room for).",
           type=values.count, metavar="N")  # fmt: skip
    option("--grain", "A test a case, or a test a relation (default: case).", default="case",
           choices=("case", "unit"))  # fmt: skip
    option("--memory", "Memory that a batch may use, such as 2G.", type=values.size, metavar="SIZE")
    option("--timeout-per-unit", "Seconds that a method may take for a unit of cases (default: no "
           "limit).", type=values.seconds, metavar="SECONDS")  # fmt: skip


def _add_run(group: _Group) -> None:
    """Add the run, what it is compared with, and where it is written."""
    option, repeatable = group.option, group.repeatable
    option("--run", "Name of the run's folder.", default="", metavar="NAME")
    option("--resume", "Go on with a run: its name, or 'last'.", default="", metavar="RUN")
    option("--baseline", "Fail when a criterion fell significantly.", type=Path, metavar="FILE")
    option("--save-baseline", "Write this run as a baseline.", type=Path, metavar="FILE")
    repeatable("--gate", "CRITERION:FALL", "Tolerated fall, such as symmetry:0.05.")
    option("--strict-criteria", "A missed criterion fails its test.", action="store_true")
    option("--reports", "Folder of runs and leaderboard (default: reports).", type=Path,
           default=Path("reports"), metavar="DIR")  # fmt: skip


def _dest(name: str) -> str:
    return "kn_bench_" + name.removeprefix("--").replace("-", "_")


def read_options(config: pytest.Config) -> Options:
    """Return the options of this session; the defaults where the group was not added.

    Raises:
        pytest.UsageError: for options that contradict each other, in one sentence.
    """

    def get(name: str, default: Any) -> Any:
        # a suite collected through a parent folder has no options of ours on its command line
        value = config.getoption(_dest(name), default)
        return default if value is None or value == [] else value

    def path(name: str) -> Path | None:
        value = get(name, None)
        return None if value is None else config.invocation_params.dir / value

    options = Options(
        models=tuple(dict.fromkeys(get("--model", ()))),
        methods=tuple(dict.fromkeys(get("--method", ()))),
        sets=tuple(get("--set", ())),
        presets=tuple(
            config.invocation_params.dir / file for file in dict.fromkeys(get("--preset", ()))
        ),
        cases=tuple(dict.fromkeys(get("--cases", _default_cases(get("--model", ()))))),
        relations=tuple(dict.fromkeys([*get("--relation", ()), *get("--paradigm", ())])),
        limit=get("--limit", None),
        known=get("--known", False),
        seed=get("--seed", 0),
        devices=tuple(dict.fromkeys(get("--device", ("cpu",)))),
        dtype=get("--dtype", "float32"),
        attention=get("--attention", ""),
        chat_template=get("--chat-template", False),
        corpus=get("--corpus", "") or os.environ.get("KN_BENCH_CORPUS", ""),
        run=get("--run", ""),
        resume=get("--resume", ""),
        baseline=path("--baseline"),
        save_baseline=path("--save-baseline"),
        gate=tuple(get("--gate", ())),
        strict=get("--strict-criteria", False),
        grain=get("--grain", "case"),
        shard=get("--shard", None),
        engine=get("--engine", "pytest"),
        actors=get("--actors", None),
        memory=get("--memory", None),
        timeout_per_unit=get("--timeout-per-unit", None),
        reports=config.invocation_params.dir / get("--reports", Path("reports")),
        protocol=get("--protocol", SINGLE),
        sequences=get("--sequences", 1),
        allow_conflicts=get("--allow-conflicts", False),
        stop_at_collapse=get("--stop-at-collapse", False),
        generations=get("--generations", 0),
        references=path("--references"),
    )
    _refuse_contradictions(options, config)
    return options


def _default_cases(models: Sequence[str]) -> tuple[str, ...]:
    """Return the embedded cases for embedded models; for others they are yet to be settled."""
    return ("embedded",) if set(models) <= set(embedded.NAMES) else ()


def _refuse_contradictions(options: Options, config: pytest.Config) -> None:
    if options.run and options.resume:
        raise pytest.UsageError(
            f"--run {options.run} starts a run and --resume {options.resume} goes on with one: "
            "give one of them"
        )
    if options.run and not _RUN_NAME.fullmatch(options.run):
        raise pytest.UsageError(
            f"--run {options.run!r}: expected letters, digits, '_', '.' and '-' only"
        )
    if options.protocol == SINGLE and options.sequences != 1:
        raise pytest.UsageError(
            f"--sequences {options.sequences}: expected a --protocol of several edits, such as "
            "sequence:100; under single every case is measured once"
        )
    for given, option in (
        (options.allow_conflicts, "--allow-conflicts"),
        (options.stop_at_collapse, "--stop-at-collapse"),
    ):
        if given and options.protocol == SINGLE:
            raise pytest.UsageError(
                f"{option}: expected a --protocol of several edits, such as sequence:100; under "
                "single no two edits meet; leave it out"
            )
    if options.generations and options.protocol != SINGLE:
        raise pytest.UsageError(
            f"--generations {options.generations}: expected --protocol single, which this is "
            "measured under alone; leave one of them out"
        )
    if options.references:
        from kn_bench.measure.writing import check_references  # imports torch

        try:
            check_references(options.references, options.generations)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
    if options.engine == "pytest" and options.actors is not None:
        raise pytest.UsageError(
            "--actors: expected with --engine ray only; workers of pytest are given by -n"
        )
    if options.engine != "pytest" and config.getoption("tx", None):
        raise pytest.UsageError(
            f"-n starts xdist's workers and --engine {options.engine} Ray's actors: leave -n out, "
            "and use --actors"
        )
    if options.gate and options.baseline is None:
        raise pytest.UsageError(
            "--gate: expected with --baseline FILE, whose tolerances it sets; add that"
        )
    for option, effect in UNMEASURED_BY.items():
        if config.getoption(option, False):
            raise pytest.UsageError(f"{option} {effect}")
    if config.getoption("dist", "no") == "each":
        raise pytest.UsageError(
            "--dist each: expected another: each worker would measure every case; leave it out"
        )


def runs_nothing(config: pytest.Config) -> bool:
    """Tell whether this session only shows its tests or their fixtures."""
    return any(config.getoption(name, False) for name in SHOWING)


def addressed(config: pytest.Config) -> bool:
    """Tell whether this invocation names the suites, or this plug-in with ``-p``.

    Our options have common names (``--model``, ``--seed``): in a session of another project they
    would clash with its own, so they exist only where the suites are asked for.
    """
    words = command_line(config) + _ini_words(config, "testpaths")
    return any(_names_suites(word, config.invocation_params.dir) for word in words)


def command_line(config: pytest.Config) -> list[str]:
    """Return the words of the command line, of ``addopts`` and of ``PYTEST_ADDOPTS``, as given."""
    return [
        *(str(arg) for arg in config.invocation_params.args),
        *_ini_words(config, "addopts"),
        *shlex.split(os.environ.get("PYTEST_ADDOPTS", "")),
    ]


def _ini_words(config: pytest.Config, name: str) -> list[str]:
    try:
        return [str(word) for word in config.getini(name)]
    except (KeyError, ValueError):  # loaded by -p, before pytest knows its own settings
        return []


def _names_suites(word: str, folder: Path) -> bool:
    path = word.removeprefix("-p").partition("::")[0]
    if path == "kn_bench" or path.startswith(("kn_bench.suites", "kn_bench.testing.plugin")):
        return True
    if not path or path.startswith("-"):
        return False
    try:
        target = (folder / path).resolve()
    except (OSError, RuntimeError, ValueError):
        return False
    suites = suites_folder()
    return target == suites or suites in target.parents or target == checkout_root()


def suites_folder() -> Path:
    """Return where ``kn_bench.suites`` really lies: beside the package in a checkout."""
    import kn_bench

    return (Path(kn_bench.__file__).parent / "suites").resolve()


def checkout_root() -> Path | None:
    """Return the checkout's root, or None for an installed wheel."""
    import kn_bench

    parent = suites_folder().parent
    return None if parent == Path(kn_bench.__file__).resolve().parent else parent
