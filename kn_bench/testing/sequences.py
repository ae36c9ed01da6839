"""Batches and sequences of a session: drawn once by the controller, the same in every worker.

    suites/test_reliability.py::test_reliability[rome-tiny_gpt2-sequence_100.0.retained-P36/Canada]

Which cases fit a model only its tokenizer knows, so the controller loads the tokenizers; the
workers are told what was drawn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kn_bench.cases.case import Case, Exclusion
from kn_bench.measure.protocols import SINGLE, Occasion, Protocol, occasion_of
from kn_bench.testing.options import Options
from kn_bench.testing.plan import TestPlan

if TYPE_CHECKING:
    from kn_bench.model.tokens import Tokens
    from kn_bench.testing.node_ids import NodeId

WHOLE = "all"
"""The label of a test that stands for all cases of a sequence (``--grain unit``)."""
NOT_DRAWN = "not drawn: the protocol's sequences are shorter than the cases offered"


@dataclass(frozen=True)
class PlannedSequence:
    """The cases of one batch or sequence, in the order of editing.

    Attributes:
        number: of the model's sequences, from 0; those of facts come before those of pairs.
    """

    number: int
    cases: tuple[Case, ...]

    def occasions(self, protocol: Protocol) -> Iterator[Occasion]:
        """Return when its cases are asked."""
        for asked in protocol.asked:
            yield Occasion(str(protocol), self.number, asked)


@dataclass(frozen=True)
class Drawing:
    """What was drawn for all models.

    Attributes:
        sequences: model slug -> its sequences.
        put_apart: model slug -> requests that contradict one that was drawn.
        notes: a sentence for each task of a model that has too few cases.
    """

    sequences: Mapping[str, tuple[PlannedSequence, ...]]
    put_apart: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def exclusions(self, plan: TestPlan) -> list[Exclusion]:
        """Return the cases that no model's sequences have."""
        drawn = {c.id for of_model in self.sequences.values() for s in of_model for c in s.cases}
        return [Exclusion(case.id, NOT_DRAWN) for case in _cases(plan) if case.id not in drawn]


def cases_of(plan: TestPlan, drawing: Drawing | None, node_id: NodeId) -> tuple[Case, ...]:
    """Return the cases that a test is about: those of its label, else of its sequence."""
    if node_id.label in plan.labels:
        return plan.labels[node_id.label]
    if node_id.occasion and drawing is not None:
        number = occasion_of(node_id.occasion).sequence
        drawn = drawing.sequences.get(node_id.model, ())
        return next((s.cases for s in drawn if s.number == number), ())
    return ()


def draw(plan: TestPlan, options: Options, commits: Mapping[str, str]) -> Drawing:
    """Draw the sequences of every model.

    Raises:
        ValueError: when a model has too few cases of every task, or its tokenizer cannot be
            loaded; one sentence.
    """
    from kn_bench.measure.drawing import TooFewCases, by_task, draw_sequences
    from kn_bench.measure.encoded import BUDGET
    from kn_bench.measure.encoding import Unencodable, encode_probe

    sequences: dict[str, tuple[PlannedSequence, ...]] = {}
    put_apart: dict[str, int] = {}
    notes: list[str] = []
    for slug, name in plan.models.items():
        tokens = _tokens(name, commits.get(name), options)
        of_model: list[PlannedSequence] = []
        shortages: list[str] = []
        for task, cases in by_task(_cases(plan)).items():
            try:
                drawn = draw_sequences(
                    cases,
                    options.protocol,
                    options.sequences,
                    seed=options.seed,
                    fits=lambda case, tokens=tokens: (  # type: ignore[misc]
                        not isinstance(
                            encode_probe(case.probes[0], tokens, budget=BUDGET), Unencodable
                        )
                    ),
                    allow_conflicts=options.allow_conflicts,
                )
            except TooFewCases as shortage:
                shortages.append(f"{name}, {task}s: {shortage}")
                continue
            put_apart[slug] = put_apart.get(slug, 0) + drawn.put_apart
            numbers = range(len(of_model), len(of_model) + len(drawn.sequences))
            of_model += map(PlannedSequence, numbers, drawn.sequences)
        if not of_model:
            raise ValueError("; ".join(shortages))
        notes += shortages
        sequences[slug] = tuple(of_model)
    return Drawing(sequences, put_apart, tuple(notes))


def _cases(plan: TestPlan) -> list[Case]:
    return [case for cases in plan.labels.values() for case in cases]


def _tokens(name: str, commit: str | None, options: Options) -> Tokens:
    from kn_bench.model.loading_tokens import load_tokens

    return load_tokens(name, commit=commit, chat_template=options.chat_template)


def tests_of(
    sequence: PlannedSequence, options: Options
) -> Iterator[tuple[str, tuple[Case, ...], Occasion]]:
    """Yield label, cases and occasion of each test of a sequence."""
    for occasion in sequence.occasions(options.protocol):
        if options.grain == "unit":
            yield WHOLE, sequence.cases, occasion
            continue
        for case in sequence.cases:
            yield case.id.removeprefix("embedded/"), (case,), occasion


# -- from the controller to a worker -----------------------------------------------------------


def pack_sequences(drawing: Drawing | None) -> str:
    """Return what a worker is told: ids by model and sequence; "" under the protocol ``single``."""
    if drawing is None:
        return ""
    return json.dumps(
        {
            slug: [
                [sequence.number, *(case.id for case in sequence.cases)] for sequence in of_model
            ]
            for slug, of_model in drawing.sequences.items()
        }
    )


def unpack_sequences(
    packed: str, plan: TestPlan, protocol: Protocol
) -> dict[str, tuple[PlannedSequence, ...]]:
    """Return the sequences by model slug; none under the protocol ``single``."""
    if protocol == SINGLE or not packed:
        return {}
    by_id = {case.id: case for case in _cases(plan)}
    told: dict[str, Sequence[Sequence[str]]] = json.loads(packed)
    return {
        slug: tuple(
            PlannedSequence(int(number), tuple(by_id[case] for case in ids))
            for number, *ids in sequences
        )
        for slug, sequences in told.items()
    }
