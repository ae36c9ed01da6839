"""What the controller knows of the session, before and beside the workers.

It checks what the user asked for, names or opens the run, lends devices to workers, and starts the
recorder when the first test of ours is known. All of it without torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kn_bench.cases.case import Exclusion
from kn_bench.cases.sampling import slug
from kn_bench.editing import builtin, registry
from kn_bench.editing.registry import Registry, RegistryError
from kn_bench.measure.protocols import SINGLE
from kn_bench.model import embedded
from kn_bench.model.chat_template import REQUEST, digest, refuse_without, sentence
from kn_bench.model.source import on_hub, origin
from kn_bench.model.trial import refuse_unloadable
from kn_bench.testing import generations, method_fixtures, sequences, units
from kn_bench.testing.devices import DevicePool, expand, sharing
from kn_bench.testing.models import (
    content_of,
    defined_for,
    fingerprint,
    refuse_changed_settings,
    refuse_unfit,
)
from kn_bench.testing.options import Options
from kn_bench.testing.plan import TestPlan, limit_as_text, make_plan
from kn_bench.testing.progress import progress_file
from kn_bench.testing.selecting import settled
from kn_bench.testing.sequences import Drawing
from kn_bench.testing.worker_config import WorkerConfig

if TYPE_CHECKING:
    from kn_bench.results.manifest import Manifest
    from kn_bench.results.store import RunStore


class RunController:
    """One session, seen from its controller.

    Raises:
        pytest.UsageError: for anything asked for that cannot be, one sentence.
    """

    def __init__(
        self, options: Options, methods: Registry, manager: pytest.PytestPluginManager
    ) -> None:
        self.options = options
        self._registry = methods
        self._manager = manager
        self._selection = ""
        self.check()

    def check(self) -> None:
        """Find everything that is wrong before a worker is started."""
        try:
            self._methods = self._known_methods()
            chosen = [s for name, s in self._registry.methods.items() if name in self._methods]
            method_fixtures.refuse_unknown_fixtures(chosen, self._manager)
            refuse_changed_settings()
            self._choices = self._checked_choices()
            self.options, self._said = settled(self.options)
            self.plan: TestPlan = make_plan(self.options)
            self.fingerprints = {n: fingerprint(n) for n in self.plan.models.values()}
            self._origins = {n: text for n in self.fingerprints if (text := origin(n))}
            self.drawing = self._drawn()
            on_ray = self.options.engine != "pytest"  # which knows the devices of its machines
            devices = self.options.devices
            self.pool = DevicePool(devices if on_ray else expand(devices))
            self._corpus = self._checked_corpus()
            for model in self.plan.models.values():
                if self.options.chat_template:
                    refuse_without(model)
                self._check_loads(model)
            self._templates = self._rendered_templates()
            written, lines = generations.announced(self.options, self.plan)
            self._arguments = self._checked_arguments() | written
            self._said += lines
        except (ValueError, OSError, RegistryError) as error:
            raise pytest.UsageError(str(error)) from error
        if self.options.baseline is not None:
            self._check_gate(self.options.baseline)
        if self.options.save_baseline is not None:
            _check_writable(self.options.save_baseline)
        if self.options.resume:
            units.forget_attempts(self.store.folder / units.FOLDER)

    def _checked_corpus(self) -> str:
        """Return the named corpus with its hash, as the manifest has it."""
        if not self.options.corpus:
            return ""
        from kn_bench.model import corpus

        if self.options.corpus == corpus.SELF:
            return corpus.SELF
        named = corpus.file_named(self.options.corpus)
        return f"{named.name} SHA-256 {named.corpus.content_hash}"

    def _check_loads(self, model: str) -> None:
        refuse_unloadable(
            model,
            self.fingerprints[model],
            dtype=self.options.dtype,
            attention=self.options.attention,
            commit=self.fingerprints[model] if on_hub(model) else None,
            chat_template=self.options.chat_template,
        )

    def _rendered_templates(self) -> dict[str, str]:
        """Return the digests of the models' chat templates, by model, where they are asked so."""
        if not self.options.chat_template:
            return {}
        from kn_bench.model.loading_tokens import load_tokens

        commits = self._commits()
        return {
            name: digest(load_tokens(name, commit=commits.get(name), chat_template=True))
            for name in self.fingerprints
        }

    def _drawn(self) -> Drawing | None:
        """Return the sequences of the protocol; None under ``single``."""
        if self.options.protocol == SINGLE:
            return None
        return sequences.draw(self.plan, self.options, self._commits())

    def _commits(self) -> dict[str, str]:
        return {name: commit for name, commit in self.fingerprints.items() if on_hub(name)}

    def _check_gate(self, baseline: Path) -> None:
        """Find out before the run, not after it, that there is nothing to hold it against."""
        from kn_bench.results.baseline import read_baseline
        from kn_bench.results.files import StoreError
        from kn_bench.testing.gate import tolerances

        try:
            tolerances(self.options.gate)
            read_baseline(baseline)
        except StoreError as error:
            raise pytest.UsageError(str(error)) from error

    def _known_methods(self) -> dict[str, str]:
        """Return name -> origin of the methods to be measured.

        The built-in ones are read from their source; what installed packages offer is imported,
        for its code and its names bear on the run as those of any other method.
        """
        method_fixtures.load_entry_points(self._manager)
        names, known = list(self.options.methods), self._all_names()
        if not all(registry.is_pattern(n) or n in known for n in names):
            method_fixtures.load_builtin(self._manager)  # one of them may take an argument
            names = self._registry.fill(names)
            known = self._all_names()
        self._registry.check()
        chosen = registry.expand(names, known)
        return {name: known[name] for name in chosen or self._by_default(known)}

    def _checked_arguments(self) -> dict[str, str]:
        """Return SHA-256 of what methods were given by their argument, by the method's name."""
        specs = [self._registry.methods.get(name) for name in self._methods]
        hashes = {}
        for spec in specs:
            if spec is None or not spec.argument:
                continue
            for model in self.plan.models.values():
                if spec.check is not None:
                    spec.check(spec.argument, model, self.options.dtype)
            hashes[spec.name] = content_of(Path(spec.argument))
        return hashes

    def _checked_choices(self) -> dict[str, str]:
        """Return what ``--set`` and ``--preset`` say, by its name in the manifest; all of it valid.

        Only where something is said are the methods' files imported, and torch with them.
        """
        options = self.options
        if not options.sets and not options.presets:
            return {}
        from kn_bench.editing.presets import refuse_unused, used
        from kn_bench.results.manifest import PRESET

        method_fixtures.load_builtin(self._manager)
        specs = [self._registry.methods[name] for name in self._methods]
        choices = method_fixtures.choices_of(options, specs)
        models = options.models or embedded.NAMES
        refuse_unused(choices.presets, list(self._methods), models)
        refuse_unfit(choices, specs, models)
        chosen = used(choices.presets, list(self._methods), models)
        return {
            **({"set": " ".join(options.sets)} if options.sets else {}),
            **{
                f"{PRESET}{method} {model}": " ".join(
                    f"{n}={'none' if v is None else v}" for n, v in preset.values.items()
                )
                for (method, model), preset in chosen.items()
            },
        }

    def _by_default(self, known: Iterable[str]) -> list[str]:
        on_request = builtin.on_request()
        on_request |= {n for n, spec in self._registry.methods.items() if not spec.by_default}
        return [name for name in known if name not in on_request]

    def _all_names(self) -> dict[str, str]:
        known = builtin.names()
        for name, spec in self._registry.methods.items():
            registry.refuse_double(known, name, spec.origin)
            known[name] = spec.origin
        templates = builtin.templates()  # no methods without their argument
        return {name: origin for name, origin in known.items() if name not in templates}

    # -- the run ---------------------------------------------------------------------------

    @cached_property
    def run(self) -> str:
        """The run's name."""
        from kn_bench.results.store import find_run, unused_name

        if self.options.resume:
            return find_run(self.options.reports, self.options.resume).name
        return self.options.run or unused_name(self.options.reports)

    @cached_property
    def store(self) -> RunStore:
        """The run's log, opened for writing."""
        from kn_bench.results.files import StoreError
        from kn_bench.results.store import RunStore
        from kn_bench.results.texts import write_texts

        try:
            if self.options.resume:
                return RunStore.resume(self.options.reports, self.run, self.manifest())
            store = RunStore.create(self.options.reports, self.manifest())
            not_drawn = self.drawing.exclusions(self.plan) if self.drawing else []
            store.leave_out([*self.plan.exclusions, *not_drawn, *self._not_defined()])
            write_texts(store.folder, (c for cs in self.plan.labels.values() for c in cs))
            return store
        except StoreError as error:
            raise pytest.UsageError(str(error)) from error

    def begin(self, selection: str) -> RunStore:
        """Return the run's log, opened for writing.

        Args:
            selection: of a shard, a digest of the tests that it is cut from.

        Raises:
            pytest.UsageError: when a shard that is gone on with was cut from other tests.
        """
        self._selection = selection
        then = self.store.manifest.selection
        if then and then != selection:
            raise pytest.UsageError(
                f"--resume {self.run}: expected the tests that the shard was cut from, and others "
                "are selected now; give the same suites, --grain, -k, -m and --deselect as then"
            )
        return self.store

    def _not_defined(self) -> Iterator[Exclusion]:
        """Yield methods that have no tests on a model, as they are for models of the other kind."""
        kinds = builtin.kinds()
        kinds |= {name: spec.models for name, spec in self._registry.methods.items()}
        for model in () if self.options.methods else self.plan.models.values():
            for name in self._methods:
                if not defined_for(kinds.get(name, "any"), model):
                    yield Exclusion(slug(model), registry.only_defined_for(name, kinds[name]))

    def header(self, workers: int) -> list[str]:
        """State, before the first test, what is not plain from the command line."""
        chosen = self.options.chat_template
        lines = [f"{name}: {text}" for name, text in self._origins.items()]
        lines += [f"{n}: {text}" for n in self.fingerprints if (text := sentence(n, chosen))]
        lines += self._said
        lines += self.drawing.notes if self.drawing else ()
        on_ray = self.options.engine != "pytest"  # which says what its actors have
        if not on_ray and not set(self.fingerprints) <= set(embedded.NAMES):
            lines.append(sharing(workers))
        if self.options.resume:
            lines.append(f"run {self.run} has {len(self.store.done)} tests already")
        return [f"kn_bench: {line}" for line in lines]

    def manifest(self) -> Manifest:
        """Return what the run is made of."""
        from kn_bench.results.manifest import new_manifest

        return new_manifest(
            self.run,
            models=self.fingerprints,
            data=self.plan.data,
            options=self._bearing_on_results(),
            seed=self.options.seed,
            code=method_fixtures.code_hash(self._methods.values()),
            devices=self.options.devices,
            selection=self._selection,
        )

    def _bearing_on_results(self) -> Mapping[str, str]:
        from kn_bench.results.manifest import TEMPLATE

        options = self.options
        return {
            "cases": " ".join(self.plan.offered),
            "relations": " ".join(options.relations),
            "limit": limit_as_text(options),
            **({"known": "yes"} if options.known else {}),
            **({"shard": str(options.shard)} if options.shard else {}),
            "dtype": options.dtype,
            **({"attention": options.attention} if options.attention else {}),
            **({"chat template": REQUEST} if options.chat_template else {}),
            **{f"{TEMPLATE}{name}": text for name, text in self._templates.items()},
            **({"corpus": self._corpus} if self._corpus else {}),
            **{f"origin of {name}": text for name, text in self._origins.items()},
            "methods": " ".join(self._methods),
            **self._arguments,
            **self._choices,
            "protocol": str(options.protocol),
            **self._of_protocol(),
        }

    def _of_protocol(self) -> dict[str, str]:
        if self.drawing is None:
            return {}
        options = self.options
        apart = (f"{slug} {n}" for slug, n in self.drawing.put_apart.items())
        return {
            "sequences": str(options.sequences),
            "put apart": ", ".join(apart),
            **({"conflicts": "allowed"} if options.allow_conflicts else {}),
            **({"stop": "at collapse"} if options.stop_at_collapse else {}),
        }

    def method_names(self) -> dict[str, str]:
        """Return names by slug."""
        return {slug(name): name for name in self._methods}

    # -- workers ---------------------------------------------------------------------------

    def worker_config(self, worker: str, workers: int) -> WorkerConfig:
        """Return where ``worker`` is to compute, and what it is to leave out."""
        done = self.store.done if self.options.resume else frozenset()
        folder = self.options.reports / "runs" / self.run
        return WorkerConfig(
            self.pool.lease(worker),
            self._commits(),
            folder / units.FOLDER,
            done,
            workers,
            cases=self.options.cases,
            limit=self.options.limit,
            known=self.options.known_ids,
            sequences=sequences.pack_sequences(self.drawing),
            edits=folder / "edits",
            templates=self._templates,
            progress=progress_file(folder / units.FOLDER, worker),
        )


def _check_writable(file: Path) -> None:
    """Find out before the run that a file cannot be written after it."""
    nearest = next(path for path in (file, *file.parents) if path.exists())
    if (
        file.is_dir()
        or (nearest != file and not nearest.is_dir())
        or not os.access(nearest, os.W_OK)
    ):
        raise pytest.UsageError(f"--save-baseline {file} cannot be written: name another file")
