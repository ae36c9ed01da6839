"""The vocabulary of the benchmark: a case is one edit request with all its probes.

    Case "pararel/P36/Canada"
    ├── request   EditRequest: subject, relation, prompt, target_true, target_new
    └── probes    Probe, one question for one criterion each
        ├── reliability/0      "The capital of Canada is ▁"
        ├── generality/0..n    "Canada's capital city is ▁"
        ├── locality/…         "The capital of France is ▁"
        ├── symmetry/…         "Paris is the capital of ▁"
        └── synonym/…          "The seat of government of Canada is ▁"

Everything here is text: the same case serves every model and tokenizer. What is made by the million
is a named tuple, which takes a third of a frozen dataclass's time to make.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from kn_bench.cases.cloze import PLACE
from kn_bench.cases.cloze import RUN_ON as RUN_ON
from kn_bench.cases.cloze import Cloze as Cloze
from kn_bench.cases.cloze import is_unspaced as is_unspaced
from kn_bench.model.given import HALF_A_CHARACTER as HALF_A_CHARACTER

Task = Literal["fact", "pair"]
"""A fact (PARAREL) or a grammatical minimal pair (BLiMP)."""

Criterion = Literal[
    "reliability", "generality", "locality", "symmetry", "synonym", "overturn", "portability"
]
CRITERIA: tuple[Criterion, ...] = (
    "reliability",
    "generality",
    "locality",
    "symmetry",
    "synonym",
    "overturn",
)
"""The six criteria, in the order of the board."""
OPTIONAL_CRITERIA: tuple[Criterion, ...] = ("portability",)
"""Measured only where the data asks for it, and never part of a score."""
ALL_CRITERIA = (*CRITERIA, *OPTIONAL_CRITERIA)

Scoring = Literal["gap", "two_prefix", "sentence"]
"""How a causal model compares the two members of a pair; see :class:`Probe`."""

ID_ALPHABET = re.compile(r"[A-Za-z0-9_.]+(/[A-Za-z0-9_.]+)*")


class Query(NamedTuple):
    """A cloze with an answer: what attribution asks about."""

    cloze: Cloze
    answer: str


@dataclass(frozen=True, slots=True)
class EditRequest:
    """What a method is asked to do: make the model answer ``target_new`` for ``target_true``.

    Attributes:
        id: stable id of the case, from a controlled alphabet, such as ``pararel/P36/Canada``; made
            of the content where it is not given.
        task: ``fact`` or ``pair``.
        relation: Wikidata id (``P36``) or BLiMP paradigm.
        subject: text of the subject. For a pair: the word that governs agreement (the determiner,
            the noun or the name), as it stands in the prompt.
        prompt: text before the answer, with ``{}`` for the subject (CounterFact's form). The
            ``{}`` stands in ``suffix`` instead when the subject follows the answer, and nowhere
            when a question does not name its subject: methods that need it are not applicable.
            A space is set before the answer, but not after what opens a quote or a bracket. Where
            the prompt ends with ``[Y]``, prompt and suffix stand beside the answer as they are.
        suffix: text after the answer: ``"."``, or more where only masked models can be asked.
        target_true: what is true, or the grammatical member.
        target_new: what the edit is to make of it, or the ungrammatical member.
        queries: where knowledge neurons are located: the fact's own patterns, or the pairs of the
            same class (with the same agreeing word and paradigm); the first is the edited prompt.
        background: the queries of a fixed sample of other facts of the relation (or other classes
            of the paradigm), one tuple each; the same for every selection of cases, so that what a
            method makes of it does not depend on which other cases run.
        true_is_known: False where the data brings no true answer; ``target_true`` is then another
            record's answer, to compare with, and says nothing of what the model knows.

    Raises:
        TypeError: for a field that is to be a text, or queries, and is none.
        ValueError: for a task that is neither, a prompt with several ``{}``, or with the subject in
            its place, ``[Y]`` elsewhere than at the prompt's end, an empty subject or answer, or
            two answers that are the same.

    Examples:
        >>> import kn_bench as kn
        >>> fact = kn.EditRequest(subject="Canada", prompt="The capital of {} is",
        ...                       target_true="Ottawa", target_new="Rome")
        >>> fact.cloze.fill("Rome")
        'The capital of Canada is Rome.'
    """

    id: str = ""
    task: Task = "fact"
    relation: str = ""
    subject: str = ""
    prompt: str = ""
    target_true: str = ""
    target_new: str = ""
    suffix: str = "."
    queries: tuple[Query, ...] = ()
    background: tuple[tuple[Query, ...], ...] = field(default=(), repr=False)
    true_is_known: bool = True

    def __post_init__(self) -> None:
        self._check_types()
        if not self.id:
            object.__setattr__(self, "id", f"request/{self.content_hash[:12]}")
        if (self.prompt + self.suffix).count("{}") > 1:
            raise ValueError(
                f"{self.id}: the prompt {self.prompt!r} with suffix {self.suffix!r}: expected the "
                "subject's place at most once; mark one by '{}'"
            )
        if PLACE in self.prompt.removesuffix(PLACE) or PLACE in self.suffix:
            raise ValueError(
                f"{self.id}: the prompt {self.prompt!r} with suffix {self.suffix!r}: expected [Y] "
                "at the prompt's end or not at all; write what follows the answer as suffix"
            )
        if self.task == "fact" and self._names_its_subject:
            raise ValueError(
                f"{self.id}: the prompt {self.prompt!r}: expected '{{}}' where the subject "
                f"{self.subject!r} stands"
            )
        if not ID_ALPHABET.fullmatch(self.id):
            raise ValueError(
                f"case id {self.id!r}: expected letters, digits, '_', '.' and '/' only"
            )
        for name in ("subject", "target_true", "target_new"):
            text = getattr(self, name)
            if not text or text != text.strip():
                raise ValueError(
                    f"{self.id}: {name} {text!r}: expected a text, without spaces around it"
                )
        if self.target_true == self.target_new:
            raise ValueError(
                f"{self.id}: target_new {self.target_true!r}: expected another answer than "
                "target_true"
            )

    def _check_types(self) -> None:
        texts = ("id", "task", "relation", "subject", "prompt", "suffix", "target_true")
        for name in (*texts, "target_new"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"{name} {value!r}: expected a text, got {type(value).__name__}")
        if self.task not in get_args(Task):
            raise ValueError(f"task {self.task!r}: expected one of {', '.join(get_args(Task))}")
        object.__setattr__(self, "queries", _queries("queries", self.queries))
        background: Any = self.background
        if not isinstance(background, tuple | list):
            raise TypeError(f"background {background!r}: expected a tuple of tuples of queries")
        each = tuple(_queries("background", queries) for queries in background)
        object.__setattr__(self, "background", each)

    @property
    def content_hash(self) -> str:
        """SHA-256 over what the edit is to do, whatever its id: the prompt and both answers."""
        content = (self.subject, self.prompt, self.suffix, self.target_true, self.target_new)
        return hashlib.sha256(repr(content).encode()).hexdigest()

    @property
    def _names_its_subject(self) -> bool:
        """Whether the subject stands in the prompt as a word, and no ``{}`` in its place."""
        if not self.subject or "{}" in self.prompt + self.suffix or self.subject not in self.prompt:
            return False
        return bool(re.search(rf"(?<!\w){re.escape(self.subject)}(?!\w)", self.prompt))

    @property
    def cloze(self) -> Cloze:
        """The edited prompt with its subject, as a text with a gap."""
        prompt, suffix = (text.replace("{}", self.subject) for text in (self.prompt, self.suffix))
        return Cloze.parse(prompt, suffix) if self.task == "fact" else Cloze(prompt, suffix)

    def subject_start(self, filled: str) -> int:
        """Return where the subject begins in the edited prompt with an answer in its gap."""
        if "{}" in self.prompt:
            return self.prompt.index("{}")
        ending = self.suffix.replace("{}", self.subject)
        return len(filled) - len(ending) + self.suffix.index("{}")


def _queries(name: str, given: Any) -> tuple[Query, ...]:
    """Return queries as a tuple.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(given, tuple | list) or not all(isinstance(q, Query) for q in given):
        raise TypeError(f"{name} {given!r}: expected kn_bench.cases.case.Query, several in a tuple")
    return tuple(given)


class Probe(NamedTuple):
    """One question for one criterion.

    Attributes:
        id: unique in its case: ``generality/3``, ``locality/same_relation/0``. Stable, and interned
            by those who make probes by the million: a few dozen ids serve all of them.
        criterion: the criterion it is counted for (``overturn`` reads the reliability probe).
        cloze: the question. For a pair it is the common text around the differing span.
        expected: the answer that the edit is to produce (locality: the true answer).
        rejected: the answer it is compared with (locality of facts: the request's target_new).
        kind: what sort of probe of its criterion. Locality: ``same_relation``, ``same_object``,
            ``other_relation``, ``other_task``; for pairs ``opposite_number``,
            ``other_paradigm``, ``other_task``. Symmetry of facts: ``new_inverse`` (asked about
            ``target_new``; expected the subject, rejected the displaced subject) and
            ``old_inverse`` (asked about ``target_true``; expected the subject *not* to come).
            Synonym: ``prompt``, ``answer``, ``number_class``, ``tense``. Portability: the data
            set's own name, and ``condition`` for what the unedited model has to answer. Else
            ``""``.
        task: the probe's own task; differs from the case's for ``other_task`` locality.
        aliases: further forms of ``expected`` that count as it.
        scoring: pairs on a causal model: ``gap`` compares the two words after ``cloze.left``
            (what follows the gap is the same and unread), ``sentence`` the gap and all that
            follows it, ``two_prefix`` the text after the gap given either word. A masked model
            always answers at the gap.
        rejected_aliases: further answers that count as ``rejected``: where that is the true answer,
            the other true ones.
    """

    id: str
    criterion: Criterion
    cloze: Cloze
    expected: str
    rejected: str
    kind: str = ""
    task: Task = "fact"
    aliases: tuple[str, ...] = ()
    scoring: Scoring = "gap"
    rejected_aliases: tuple[str, ...] = ()

    def __repr__(self) -> str:
        # it is hashed with the data: the last field is left out where it says nothing
        named = self if self.rejected_aliases else self[:-1]
        return f"Probe({', '.join(map('{}={!r}'.format, self._fields, named))})"


class OpenEnded(NamedTuple):
    """What a data set brings for free generation about the subject.

    Attributes:
        prompts: beginnings of texts about the subject (CounterFact's ``generation_prompts``).
        target_id: what the data set calls the new target, such as ``Q1860``: reference texts are
            found by it.
    """

    prompts: tuple[str, ...] = ()
    target_id: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One edit request with all its probes.

    Attributes:
        request: what is edited.
        probes: the questions, the reliability probe first, ids unique.
        cluster: what the bootstrap resamples: the subject of a fact, the agreeing noun of a pair.
        source: ``embedded``, ``blimp``, ``pararel``, or a file's stem.
        not_applicable: criterion -> reason, for criteria that this case cannot have
            (``symmetry``: "the relation has no inverse").
        open_ended: what free generation begins with, where the data says.
    """

    request: EditRequest
    probes: tuple[Probe, ...]
    cluster: str
    source: str
    not_applicable: Mapping[Criterion, str] = field(
        default_factory=lambda: MappingProxyType({}), hash=False
    )
    open_ended: OpenEnded = field(default_factory=OpenEnded, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Take the case apart for a copy or pickle: a read-only view can be neither by itself."""
        view = isinstance(self.not_applicable, MappingProxyType)
        first = (self.request, self.probes, self.cluster, self.source)
        return _put_together, (*first, dict(self.not_applicable), self.open_ended, view)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def task(self) -> Task:
        return self.request.task

    @property
    def relation(self) -> str:
        return self.request.relation


def _put_together(*values: Any) -> Case:
    request, probes, cluster, source, missing, open_ended, view = values
    shown = MappingProxyType(missing) if view else missing
    return Case(request, probes, cluster, source, shown, open_ended)


def check_request(request: object) -> None:
    """Check that ``request`` is an edit request, not a text or a whole case.

    Raises:
        TypeError: if it is not, naming its type.
    """
    if not isinstance(request, EditRequest):
        hint = "; a case has one: case.request" if isinstance(request, Case) else ""
        given = type(request).__name__
        raise TypeError(f"request: expected a kn_bench.EditRequest, and got {given}{hint}")


def by_label(cases: Iterable[Case]) -> dict[str, Case]:
    """Return cases by their ids, short ones for the package's own: what names their tests.

    Raises:
        ValueError: when two cases have the same.
    """
    labels: dict[str, Case] = {}
    for case in cases:
        label = case.id.removeprefix("embedded/")
        if labels.setdefault(label, case) is not case:
            raise ValueError(
                f"two cases are called {label}: expected an id for each; rename one, or give one "
                "source"
            )
    return labels


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Something offered that is not measured, and why: nothing is left out silently.

    Attributes:
        case: case id.
        reason: one clause; equal reasons are counted together in reports, so no ids or words of
            the data in it.
        probe: the probe's id, or None when the whole case is excluded.
        detail: what exactly, for the log.
    """

    case: str
    reason: str
    probe: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a source offers: the cases, and what it had to leave out."""

    cases: tuple[Case, ...]
    exclusions: tuple[Exclusion, ...] = ()
