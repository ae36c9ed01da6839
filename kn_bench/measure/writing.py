"""Free generation before and after an edit, measured as Meng et al. (2022) do.

    prompts         CounterFact's generation prompts; else the edited prompt and its paraphrases
    continuation    up to 100 tokens with the prompt, sampled from the 5 most probable, by seed
    measured        fluency, and the reference score where there are references, over whole texts

The unedited model writes by the same draws, once for all methods.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kn_bench.cases.case import Case
from kn_bench.cases.sampling import stable_hash
from kn_bench.cases.sources.records import read_records
from kn_bench.editing.applying import edited
from kn_bench.editing.edit import Edit, LookupEdit, NoEdit
from kn_bench.measure.measurement import Continuation, Written
from kn_bench.measure.text_metrics import TfIdf, check_tokenizer, fluency
from kn_bench.model.generating import top_k
from kn_bench.model.language_model import LanguageModel

MAX_TOKENS = 100
"""Length of a text with its prompt, as published; less where a model's context is shorter."""
TOP_K = 5
VOCABULARY, IDF = "tfidf_vocab.json", "idf.npy"
"""Published weights of TF-IDF, taken where they stand beside the references."""


@dataclass(frozen=True)
class References:
    """Texts about what could be the new target, by relation and target.

    Attributes:
        texts: (relation, target's id or name) -> texts.
        weights: of their words.
        content_hash: SHA-256 of the file, and of the weights where these stand beside it.
    """

    texts: Mapping[tuple[str, str], tuple[str, ...]]
    weights: TfIdf
    content_hash: str

    def about(self, case: Case) -> tuple[str, ...]:
        """Return the texts about the new target of ``case``; none where the file has none."""
        names = (case.open_ended.target_id, case.request.target_new)
        return next((t for n in names if (t := self.texts.get((case.relation, n)))), ())


def check_references(path: Path | None, generations: int) -> None:
    """Refuse references where the models write no text that could be compared with them.

    Raises:
        ValueError: one sentence.
    """
    if path is not None and not generations:
        raise ValueError(
            f"--references {path}: expected --generations N, the number of texts to compare with "
            "them; add it"
        )


def read_references(path: Path) -> References:
    """Read reference texts.

    Either ROME's ``attribute_snippets.json``, a list of ``{relation_id, target_id, samples:
    [{text}]}``, or records of one's own, ``{relation, target, texts}``. Words are weighed by
    ``idf.npy`` and ``tfidf_vocab.json`` where both stand beside the file, else over its texts.

    Raises:
        ValueError: one sentence, for a file that cannot be read or is in neither form.
    """
    by_target: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    try:
        records = read_records(path, wanted="relation, target and texts")
    except ValueError as error:
        raise ValueError(f"--references {error}") from None
    for record in records:
        try:
            by_target[_target(record.fields)] += _texts(record.fields)
        except (KeyError, TypeError):
            raise ValueError(
                f"--references {path.name}, {record.where}: expected relation, target and texts, "
                "or relation_id, target_id and samples with a text each"
            ) from None
    texts = {target: tuple(each) for target, each in by_target.items()}
    vocabulary, idf = path.with_name(VOCABULARY), path.with_name(IDF)
    content = hashlib.sha256(path.read_bytes())
    if vocabulary.is_file() and idf.is_file():
        weights = TfIdf.read(vocabulary, idf)
        for file in (vocabulary, idf):
            content.update(hashlib.sha256(file.read_bytes()).digest())
    else:
        weights = TfIdf.of([text for each in texts.values() for text in each])
    return References(texts, weights, content.hexdigest())


def _target(fields: Mapping[str, Any]) -> tuple[str, str]:
    if "relation_id" in fields:
        return str(fields["relation_id"]), str(fields["target_id"])
    return str(fields["relation"]), str(fields["target"])


def _texts(fields: Mapping[str, Any]) -> list[str]:
    texts = (
        [sample["text"] for sample in fields["samples"]] if "samples" in fields else fields["texts"]
    )
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("a list of texts")
    return texts


@dataclass(frozen=True)
class Writer:
    """Has a model write about the subjects of cases.

    Attributes:
        prompts: texts a case, at most as many as it has prompts.
        references: texts about the new targets; None leaves the reference score out.
        seed: of the sampling.

    Raises:
        ValueError: when fluency cannot be measured here.
    """

    prompts: int
    references: References | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_tokenizer()

    @property
    def described(self) -> dict[str, str]:
        """What a run's manifest says of it; its seed is the run's."""
        compared = {"references": self.references.content_hash} if self.references else {}
        return {"generations": str(self.prompts), **compared}

    def covered(self, cases: Sequence[Case], *, causal: bool) -> int:
        """Return how many of the cases have a reference.

        Args:
            cases: what is measured.
            causal: whether a model of the run may be causal.

        Raises:
            ValueError: one sentence, where nothing is written, or compared with the references.
        """
        if not causal:
            raise ValueError(
                f"--generations {self.prompts}: expected a causal model, for masked ones write "
                "nothing; leave it out, or name another model"
            )
        about = sum(bool(self.references.about(case)) for case in cases) if self.references else 0
        if self.references and not about:
            raise ValueError(
                f"--references: expected a text about the new target of a case, and no record has "
                f"the relation and target of any of {len(cases)} cases; give both as the cases do"
            )
        return about

    def written(self, lm: LanguageModel, case: Case, edit: Edit) -> Written | None:
        """Return what the model writes without and under ``edit``.

        None for a masked model, which continues nothing, for a look-up of answers, and for a case
        without a prompt that leaves room in the model's context.
        """
        prompts = self._prompts(lm, case)
        if not lm.is_causal or isinstance(edit, LookupEdit) or not prompts:
            return None
        key = ("written", self.seed, case.id, *prompts)
        before = lm.memo.get(key, lambda: [self._text(lm, case, prompt) for prompt in prompts])
        if isinstance(edit, NoEdit):
            after = before
        else:
            with edited(lm, edit):
                after = [self._text(lm, case, prompt) for prompt in prompts]
        return self._measured(case, prompts, before, after)

    def _prompts(self, lm: LanguageModel, case: Case) -> list[str]:
        offered = list(case.open_ended.prompts) or [
            probe.cloze.left
            for probe in case.probes
            if probe.criterion in ("reliability", "generality") and probe.cloze.answer_is_last
        ]
        distinct = [prompt for prompt in dict.fromkeys(offered) if prompt]
        return [p for p in distinct if self._room(lm, p) > 0][: self.prompts]

    def _room(self, lm: LanguageModel, prompt: str) -> int:
        """Return how many tokens may follow ``prompt``, and what an edit puts in front of it."""
        length = min(MAX_TOKENS, lm.tokens.max_length)
        return length - len(lm.tokens.encode(f"{lm.prompt_prefix} {prompt}".strip()).ids)

    def _text(self, lm: LanguageModel, case: Case, prompt: str) -> str:
        room = self._room(lm, prompt)
        if room < 1:  # the prefix of a prompt edit leaves none
            return ""
        choose = top_k(TOP_K, stable_hash("writing", self.seed, case.id, prompt))
        return lm.generate(prompt, max_new_tokens=room, choose=choose)

    def _measured(
        self, case: Case, prompts: Sequence[str], before: Sequence[str], after: Sequence[str]
    ) -> Written:
        texts = [
            [prompt + text for prompt, text in zip(prompts, given, strict=True)]
            for given in (before, after)
        ]
        about = self.references.about(case) if self.references else ()
        score = self.references.weights.reference_score if self.references and about else None
        return Written(
            tuple(map(Continuation, prompts, before, after)),
            *(fluency(each) for each in texts),
            *(score(each, about) if score else None for each in texts),
        )
