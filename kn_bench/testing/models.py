"""The loaded models of one process, and their engines."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kn_bench.editing.registry import Kind, MethodSpec
from kn_bench.model.architecture import parameter_bytes
from kn_bench.model.progress import Progress, Silent
from kn_bench.testing.options import Options

if TYPE_CHECKING:
    from kn_bench.editing.settings import Choices
    from kn_bench.measure.engine import Engine
    from kn_bench.model.language_model import LanguageModel

ROOM = 1 << 30
"""Bytes of weights that may stay loaded beside the model in use: the embedded ones all fit."""

TOGETHER = 3 << 29
"""Bytes that the work of all workers on one CPU may take beside the weights, which they share:
with 0.3 GB that each process takes for itself, four of them stay below 4 GB."""


class Models:
    """Loads models as they are needed and keeps small ones.

    Args:
        options: dtype, memory and seed are taken from it.
        device: where this process computes.
        commits: which commit of a model on the hub to load, by the model's name.
        templates: digests of chat templates as the run records them, by the model's name.
        workers: processes that share the machine's memory.
        progress: what long work reports to.
    """

    def __init__(
        self,
        options: Options,
        device: str,
        commits: Mapping[str, str],
        *,
        templates: Mapping[str, str] | None = None,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> None:
        self._options = options
        self._workers = workers
        self._progress = progress or Silent()
        self._device = device
        self._commits = commits
        self._templates = templates or {}
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._failed: dict[str, str] = {}
        self._refused = ""

    def model(self, name: str) -> LanguageModel:
        """Return the model called ``name``.

        Raises:
            ValueError: when it cannot be loaded, one sentence, the same each time.
        """
        return self.engine(name).model

    def engine(self, name: str) -> Engine:
        """Return the engine of the model called ``name``; raises as :meth:`model` does."""
        if self._refused:
            raise ValueError(self._refused)
        if name in self._failed:
            raise ValueError(self._failed[name])
        if name not in self._engines:
            self._make_room()
            try:
                self._engines[name] = self._load(name)
            except ValueError as error:
                self._failed[name] = str(error)
                raise
        self._engines.move_to_end(name)
        return self._engines[name]

    def forget(self, name: str) -> None:
        """Drop a model that may not be what it was."""
        self._engines.pop(name, None)

    def refuse(self, reason: str) -> None:
        """Give no model from here on: what is measured in this process would not be right."""
        self._refused = reason

    def _load(self, name: str) -> Engine:
        from kn_bench.measure.engine import Engine
        from kn_bench.model.cache_folder import cache_folder
        from kn_bench.model.chat_template import digest
        from kn_bench.model.loading import load_model

        refuse_changed_settings()
        with self._progress.task("loading"):
            model = load_model(
                name,
                device=self._device,
                dtype=self._options.dtype,
                attention=self._options.attention or None,
                commit=self._commits.get(name),
                chat_template=self._options.chat_template,
            )
        if name in self._templates and digest(model.tokens) != self._templates[name]:
            raise ValueError(
                f"--chat-template: expected the text that the template of {name} rendered as the "
                "run began, and it renders another now, such as the time; have it state a fixed one"
            )
        model.progress = self._progress
        share_memory(model, name, self._device, self._workers)
        self._choose_corpus(model)
        answers = cache_folder() / "answers"
        return Engine(model, cache=answers, memory=self._options.memory, seed=self._options.seed)

    def _choose_corpus(self, model: LanguageModel) -> None:
        """Let C be taken over the text that the user named, if any."""
        from kn_bench.model.corpus import SELF

        named = self._options.corpus
        # a masked model writes no text, and no method takes C on it
        if named and (model.is_causal or named != SELF):
            from kn_bench.model.own_text import corpus_named

            model.corpus = corpus_named(model, named)

    def _make_room(self) -> None:
        while self._engines and sum(map(_size, self._engines.values())) > ROOM:
            self._engines.popitem(last=False)


def _size(engine: Engine) -> int:
    return parameter_bytes(engine.model.hf)


def share_memory(model: LanguageModel, name: str, device: str, workers: int) -> None:
    """Leave the batches of ``model`` a share of what all workers on a CPU take together.

    The embedded models are small, and keep their batches whatever the number of workers.
    """
    from kn_bench.model import embedded

    if device == "cpu" and workers > 1 and name not in embedded.NAMES:
        model.batcher.memory = min(model.batcher.memory, TOGETHER // workers)


def weight_bytes(name: str) -> int:
    """Return the size of a model's weights on disk, without loading it; 0 where they are not there.

    Raises:
        ValueError: when there is no such model.
    """
    from kn_bench.model.source import source_of

    folder = Path(source_of(name)[0])
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def kind_of(name: str) -> Literal["causal", "masked"] | None:
    """Return what kind of model ``name`` is by its configuration; None where that does not say."""
    from kn_bench.model.source import source_of

    # JSON by itself: transformers takes seconds to import, and collection asks this of every run
    try:
        config = json.loads((Path(source_of(name)[0]) / "config.json").read_text("utf-8"))
        names = " ".join(config.get("architectures") or ())
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    if "ForMaskedLM" in names:
        return "masked"
    return "causal" if "ForCausalLM" in names or "LMHeadModel" in names else None


def refuse_unfit(choices: Choices, specs: Iterable[MethodSpec], names: Iterable[str]) -> None:
    """Refuse, before any weight is loaded, chosen settings that a model cannot have.

    Such as a layer or a module that it does not have, or a context longer than it takes.

    Args:
        choices: the user's.
        specs: the methods that are measured.
        names: the models; each method's settings are held against those that it is defined for.

    Raises:
        SettingError: one sentence, for the first such setting.
        ValueError: for a model whose config or tokenizer cannot be read.
    """
    chosen = {given.method for given in choices.assignments}
    chosen |= {method for preset in choices.presets for method in preset.methods}
    methods = [(spec, cls) for spec in specs if spec.name in chosen and (cls := spec.settings)]
    from kn_bench.editing.settings import settings_for
    from kn_bench.model.loading import load_outline

    for name in names:
        fitting = [(spec, cls) for spec, cls in methods if defined_for(spec.models, name)]
        if not fitting:
            continue  # nothing is read for nothing
        outline = load_outline(name)
        for spec, cls in fitting:
            settings_for(spec.name, cls, outline, choices)


def defined_for(kind: Kind, model: str) -> bool:
    """Tell whether a method for models of ``kind`` may have a test on ``model``."""
    return kind == "any" or kind_of(model) in (kind, None)


def refuse_changed_settings() -> None:
    """Refuse what a conftest or plug-in set as it was imported; without torch it set nothing.

    Raises:
        ValueError: one sentence, naming every such setting.
    """
    if "torch" in sys.modules:
        from kn_bench.editing import process

        process.refuse_changed_settings()


def fingerprint(name: str) -> str:
    """Return SHA-256 of a model's files, or the hub's commit, without loading it.

    Raises:
        ValueError: when there is no such model, naming the embedded ones.
    """
    from kn_bench.model.source import source_of

    source, revision = source_of(name)
    if Path(source).is_dir():
        return content_of(Path(source))
    from kn_bench.model.hub import config_file

    return config_file(name, source, revision).parent.name


def content_of(path: Path) -> str:
    """Return SHA-256 of a file, or of the weights, settings and tokenizer in a folder."""
    from kn_bench.results.manifest import hash_files

    files = [path] if path.is_file() else path.iterdir()
    return hash_files([file for file in files if file.suffix in _WEIGHTS_AND_TOKENIZER])


_WEIGHTS_AND_TOKENIZER = (".safetensors", ".json", ".txt", ".model")
